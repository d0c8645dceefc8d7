"""Bring deleted branches and tags back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.database.hints import note_similar
from casweights.database.ref_deletions import no_ref
from casweights.database.resolve import check_stands
from casweights.errors import ErrorCode, NotFoundError

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


def undelete(db: Database, name: str, as_name: str | None = None) -> SnapshotId:
    """Let a deleted branch or tag name its last version again, perhaps under another name.

    Args:
        db: The store.
        name: The branch or tag, or ``heads/NAME`` or ``tags/NAME``.
        as_name: The name to give it; None for its own.

    Returns:
        The version.

    Raises:
        NotFoundError: No such branch or tag was deleted, or both were, or the version is gone.
        ConflictError: The name is in use.
    """
    kind, deletion = _find(db, name)
    ref = name.removeprefix(kind)
    snapshot = db.snapshots.load(deletion.snapshot).id
    check_stands(db, snapshot)
    if as_name is not None and as_name != ref:
        if kind == _HEADS:
            db.refs.set_branch(as_name, snapshot, force=False)
        else:
            db.refs.create_tag(as_name, snapshot)
    elif kind == _HEADS:
        db.refs.branch_deletions.undelete(ref, deletion)
    else:
        db.refs.tag_deletions.undelete(ref, deletion)
    db.refs.take_in(snapshot)
    return snapshot


def _find(db: Database, name: str) -> tuple[str, Deletion]:
    """Return the kind of the ref of this name that was deleted, and its last deletion.

    Of a branch and a tag, one whose name is still free comes first.
    """
    deletions = {_HEADS: db.refs.branch_deletions, _TAGS: db.refs.tag_deletions}
    kinds = [kind for kind in deletions if name.startswith(kind)] or [*deletions]
    last = {kind: deletions[kind].last(name.removeprefix(kind)) for kind in kinds}
    found = [(kind, deletion) for kind, deletion in last.items() if deletion is not None]
    free = [(kind, deletion) for kind, deletion in found if deletion.is_last]
    if len(free or found) > 1:
        raise NotFoundError(
            ErrorCode.AMBIGUOUS,
            f"a branch {name!r} and a tag {name!r} were deleted: say heads/{name} or tags/{name}",
        )
    if not found:
        error = no_ref("deleted branch or tag", name)
        known = deleted(db)
        note_similar(error, name, [*known, *(each.partition("/")[2] for each in known)])
        raise error
    return (free or found)[0]
