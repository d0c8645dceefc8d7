"""Versions that were displaced from their branches, until somebody takes them in or drops them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database import Database
    from casweights.database.refs import Displaced
    from casweights.ids import SnapshotId

_MAX_SEARCHED = 200  # newest versions of a branch among which a displaced one is looked for


def displaced(db: Database) -> dict[str, tuple[SnapshotId, ...]]:
    """Versions that are beside their branches, by branch; see `Repository.displaced`."""
    found = db.refs.displaced()
    heads = db.refs.branches() if found else {}
    left = {
        branch: _not_in(db, heads[branch], versions)
        for branch, versions in found.items()
        if branch in heads
    }
    return {branch: versions for branch, versions in left.items() if versions}


def drop_displaced(db: Database, branch: str, version: SnapshotId) -> None:
    """Forget that a version was displaced; see `Repository.drop_displaced`."""
    if not db.refs.drop_displaced(version, branch):
        raise NotFoundError(
            ErrorCode.REF_NOT_FOUND, f"{version} is no displaced version of branch {branch!r}"
        )


def _not_in(
    db: Database, head: SnapshotId, versions: Sequence[Displaced]
) -> tuple[SnapshotId, ...]:
    """Those of these versions that did not get into a branch in another way."""
    left = dict.fromkeys(each.snapshot for each in versions)
    ends = {each.before for each in versions}
    for snapshot in islice(db.snapshots.ancestry(head), _MAX_SEARCHED):
        left.pop(snapshot.id, None)
        ends.discard(snapshot.id)  # what came from it was found before
        if not left or not ends:
            break
    return tuple(left)
