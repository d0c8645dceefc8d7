"""Bring back what collections have set aside."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from casweights.database.deleting import try_delete
from casweights.errors import ErrorCode, NotFoundError
from casweights.format.collection import Part, part_name
from casweights.operations.collections import list_collections
from casweights.operations.marking import Marking, look, snapshot_in
from casweights.operations.moving import bring_back
from casweights.results import UndeleteStats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from casweights.database import Database
    from casweights.ids import SnapshotId
    from casweights.operations.collections import Collection as Aside
    from casweights.stores.base import ObjectInfo


def undelete_collection(db: Database, collection: str) -> UndeleteStats:
    """Bring everything back that a collection has set aside, and what its versions need.

    The versions get no names: what is not named within the grace time is collected again.

    Args:
        db: The store.
        collection: The digits of the collection.

    Raises:
        NotFoundError: There is no such collection, or it was finished.
        IntegrityError: Something that its versions need is gone; nothing was changed.
        StoreError: The store could not be written.
    """
    with closing(db.apart()) as own:
        known = list_collections(own.objects)
        if collection not in known:
            error = NotFoundError(
                ErrorCode.OBJECT_NOT_FOUND,
                f"the store has no collection {collection!r}: it was finished or undeleted, or "
                "never existed. `casweights gc` lists those there are",
            )
            error.add_note("a version comes back with a name: `casweights undelete ID --as NAME`")
            raise error
        found = known[collection]
        members = own.snapshots.archives.members_aside(found.aside)
        versions = _versions(found).union(*members.values())
        copied = _bring_back(own, versions, found.aside, [*known.values(), found])
        _forget(own, found)
    nbytes = sum(info.size for info in copied.values())
    return UndeleteStats(versions=tuple(sorted(versions)), objects=len(copied), nbytes=nbytes)


def bring_back_version(db: Database, version: SnapshotId) -> None:
    """Bring a version back with all that it needs, unless it is in its place.

    Nothing that this handle remembers counts. The caller names the version then: what is not named
    within the grace time is collected again.

    Raises:
        NotFoundError: The store does not contain the version, and no collection has it.
        IntegrityError: Something that it needs is gone; nothing was changed.
        StoreError: The store could not be written.
    """
    if db.snapshots.archives.stands(version):
        return
    with closing(db.apart()) as own:
        try:
            own.snapshots.load(version)
        except NotFoundError as error:
            error.add_note("no collection has it: it was deleted for good, or was never there")
            raise
        _bring_back(own, {version}, (), list_collections(own.objects).values())


def _bring_back(
    db: Database,
    versions: Collection[SnapshotId],
    others: Iterable[str],
    known: Iterable[Aside],
) -> dict[str, ObjectInfo]:
    """Bring back what versions need, and other objects.

    Args:
        db: A handle that remembers nothing.
        versions: The versions.
        others: The names that the other objects had.
        known: All collections; of several that have one object, the last counts.

    Returns:
        What was set aside and came back, by the names that it had.
    """
    db.heed_findings()
    marking = Marking(db, look(db), going=())
    marking.keep(versions)
    where = {name: info for found in known for name, info in found.aside.items()}
    places = {name: info.name for name, info in where.items()}
    copied = bring_back(db.objects, places, sorted(marking.restored.union(others)))
    return {name: where[name] for name in copied}


def _versions(found: Aside) -> set[SnapshotId]:
    return {version for name in found.aside if (version := snapshot_in(name)) is not None}


def _forget(db: Database, found: Aside) -> None:
    """Delete what a collection had set aside, and the objects that describe it, if possible."""
    aside = [info.name for info in found.aside.values()]
    parts = [part_name(found.id, part) for part in (Part.PLAN, Part.END)]
    try_delete(db.objects, [*aside, *parts])  # else a later collection deletes them
