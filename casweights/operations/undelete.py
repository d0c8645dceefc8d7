"""Bring back deleted branches and tags, and versions that nothing names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from casweights.database.hints import note_similar
from casweights.database.ref_deletions import no_ref
from casweights.database.resolve import is_full_id, is_prefix, resolve_anywhere
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.format.names import check_ref_name
from casweights.operations.bring_back import bring_back_version
from casweights.operations.reliance import Looked, Sighting

if TYPE_CHECKING:
    from casweights.database import Database
    from casweights.database.ref_deletions import Deletion
    from casweights.ids import SnapshotId

_HEADS, _TAGS = "heads/", "tags/"


def deleted(db: Database) -> dict[str, SnapshotId]:
    """Return the deleted branches as ``heads/NAME`` and tags as ``tags/NAME``, by name.

    Each has the version that it named last.
    """
    branches, tags = db.refs.branch_deletions.all(), db.refs.tag_deletions.all()
    found = {_HEADS + name: version for name, version in branches.items()}
    return found | {_TAGS + name: version for name, version in tags.items()}


def undelete(db: Database, what: str | SnapshotId, as_name: str | None = None) -> SnapshotId:
    """Let a deleted branch or tag name its last version again, or give a version a name.

    If collections have set the version aside, it comes back first, with all that it needs.

    Args:
        db: The store.
        what: The branch or tag, or ``heads/NAME`` or ``tags/NAME``; or a version, by its ID or the
            first digits of it.
        as_name: The name to give it, of the same kind; or ``heads/NAME`` or ``tags/NAME``. None for
            its own; a version has none, and is given a branch.

    Returns:
        The version.

    Raises:
        InvalidInputError: A version is given, and no name; or no ref can have the name.
        NotFoundError: Nothing of this name was deleted, or both a branch and a tag were, or the
            version is gone.
        ConflictError: The name is in use.
        IntegrityError: Something that the version needs is gone.
    """
    if isinstance(what, str) and not is_full_id(what):
        found = _last_deletion(db, what)
        if found is not None:
            return _undelete_ref(db, what, *found, as_name)
        if not is_prefix(what):
            raise _no_deleted(db, what)
    return _undelete_version(db, what, as_name)


def _undelete_ref(
    db: Database, name: str, kind: str, deletion: Deletion, as_name: str | None
) -> SnapshotId:
    ref, snapshot = name.removeprefix(kind), deletion.snapshot
    if as_name is not None and _split(as_name, kind) != (kind, ref):
        return _name(db, snapshot, *_split(as_name, kind))
    ready = _brought_back(db, snapshot)
    deletions = db.refs.branch_deletions if kind == _HEADS else db.refs.tag_deletions
    deletions.undelete(ref, deletion, ready=ready)
    db.refs.take_in(snapshot)
    return snapshot


def _undelete_version(db: Database, what: str | SnapshotId, as_name: str | None) -> SnapshotId:
    snapshot = resolve_anywhere(db, what) if isinstance(what, str) else what
    if as_name is None:
        db.snapshots.load(snapshot)  # for the error if it is gone
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"version {snapshot} needs a name, or a later collection sets it aside again: choose "
            "one for a branch at it (--as NAME), or for a tag (--as tags/NAME)",
        )
    return _name(db, snapshot, *_split(as_name, _HEADS))


def _name(db: Database, snapshot: SnapshotId, kind: str, ref: str) -> SnapshotId:
    """Bring a version back, and let a new ref name it."""
    check_ref_name(ref)
    ready = _brought_back(db, snapshot)
    if kind == _HEADS:
        db.refs.set_branch(ref, snapshot, force=False, ready=ready)
    else:
        db.refs.create_tag(ref, snapshot, ready=ready)
    db.refs.take_in(snapshot)
    return snapshot


def _brought_back(db: Database, snapshot: SnapshotId) -> Sighting:
    """Bring a version back, and again where its name comes hours later."""
    db.announce()
    return Looked(partial(bring_back_version, db, snapshot))


def _split(name: str, kind: str) -> tuple[str, str]:
    """Return the kind of ref that a name says, or else this one, and the name without it."""
    for prefix in (_HEADS, _TAGS):
        if name.startswith(prefix):
            return prefix, name.removeprefix(prefix)
    return kind, name


def _last_deletion(db: Database, name: str) -> tuple[str, Deletion] | None:
    """Return the kind of the ref of this name that was deleted, and its last deletion.

    Of a branch and a tag, one whose name is still free comes first.

    Raises:
        NotFoundError: It may be either.
    """
    found = db.refs.last_deletions(name)
    free = {kind: deletion for kind, deletion in found.items() if deletion.is_last}
    if len(free or found) > 1:
        raise NotFoundError(
            ErrorCode.AMBIGUOUS,
            f"a branch {name!r} and a tag {name!r} were deleted: say heads/{name} or tags/{name}",
        )
    return next(iter((free or found).items()), None)


def _no_deleted(db: Database, name: str) -> NotFoundError:
    error = no_ref("deleted branch or tag", name)
    known = deleted(db)
    note_similar(error, name, [*known, *(each.partition("/")[2] for each in known)])
    return error
