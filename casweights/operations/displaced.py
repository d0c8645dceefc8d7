"""Versions that were displaced from their branches, until a user merges or drops them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database import Database
    from casweights.database.moves import Displaced
    from casweights.ids import SnapshotId

_MAX_SEARCHED = 200  # newest versions of a branch that are searched for a displaced one


def displaced(db: Database) -> dict[str, tuple[SnapshotId, ...]]:
    """Return the displaced versions of each branch that are still not in its history.

    Branches without any are left out.
    """
    found = db.refs.displaced()
    heads = db.refs.branches() if found else {}
    # A client that may not delete the moves cannot forget that these were displaced.
    named = {*heads.values(), *(db.refs.tags().values() if found else ())}
    left = {
        branch: _not_in(db, heads[branch], [v for v in versions if v.snapshot not in named])
        for branch, versions in found.items()
        if branch in heads
    }
    return {branch: versions for branch, versions in left.items() if versions}


def drop_displaced(db: Database, branch: str, version: SnapshotId) -> None:
    """Forget that a version was displaced from a branch.

    Raises:
        NotFoundError: It does not exist, or is not recorded as displaced from this branch.
    """
    if not db.refs.drop_displaced(version, branch):
        db.snapshots.load(version)  # for the error if there is no such version
        raise NotFoundError(
            ErrorCode.REF_NOT_FOUND, f"{version} is not a displaced version of branch {branch!r}"
        )


def _not_in(
    db: Database, head: SnapshotId, versions: Sequence[Displaced]
) -> tuple[SnapshotId, ...]:
    """Return the displaced versions that the history of `head` does not contain."""
    left = dict.fromkeys(each.snapshot for each in versions)
    ends = {each.before for each in versions}
    for snapshot in islice(db.history.line(head), _MAX_SEARCHED):
        left.pop(snapshot, None)
        # The search goes back in time: a version that was displaced from `before` is newer than
        # `before`, so once all of these are passed, nothing more can be found.
        ends.discard(snapshot)
        if not left or not ends:
            break
    return tuple(left)
