"""Bring back what a collection has set aside."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, NotFoundError
from casweights.format.collection import Part, part_name
from casweights.operations.collections import Collection, list_collections
from casweights.operations.marking import Marking, look, snapshot_in
from casweights.operations.moving import bring_back
from casweights.results import UndeleteStats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casweights.database import Database
    from casweights.ids import SnapshotId


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
            raise NotFoundError(
                ErrorCode.OBJECT_NOT_FOUND,
                f"the store has no collection {collection!r}: it was finished or undeleted, or "
                "never existed. `casweights gc` lists those there are",
            )
        return _bring_back(own, known[collection], known.values())


def _bring_back(db: Database, found: Collection, known: Iterable[Collection]) -> UndeleteStats:
    db.heed_findings()
    places = look(db)
    members = db.snapshots.archives.members_aside(found.aside)
    versions = _versions(found) | {version for inside in members.values() for version in inside}
    marking = Marking(db, places, going=())
    marking.keep(versions)
    where = {name: info.name for other in known for name, info in other.aside.items()}
    where |= {name: info.name for name, info in found.aside.items()}
    sizes = {name: info.size for other in known for name, info in other.aside.items()}
    copied = bring_back(db.objects, where, sorted(marking.restored | set(found.aside)))
    _forget(db, found)
    nbytes = sum(sizes[name] for name in copied)
    return UndeleteStats(versions=tuple(sorted(versions)), objects=len(copied), nbytes=nbytes)


def _versions(found: Collection) -> set[SnapshotId]:
    return {version for name in found.aside if (version := snapshot_in(name)) is not None}


def _forget(db: Database, found: Collection) -> None:
    """Delete the copies that a collection had, and the objects that describe it."""
    aside = [info.name for info in found.aside.values()]
    parts = [part_name(found.id, part) for part in (Part.PLAN, Part.END)]
    db.objects.delete_all([*aside, *parts])
