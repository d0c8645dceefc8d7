"""What one open store remembers of the moves of branches that it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.database.moves import off_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database.moves import Head, Move
    from casweights.ids import SnapshotId


class OwnMoves:
    """The last move of each branch by one `Refs`, and displaced moves that were not reported yet.

    A move that was acknowledged may be displaced later. Its writer learns of that once, from an
    error of the next call that moves the branch.
    """

    def __init__(self) -> None:
        self._heads: dict[str, list[Head]] = {}  # by branch: unreported displaced ones, last one

    def add(self, head: Head, moves: Sequence[Move]) -> None:
        """Remember a move, and forget earlier ones except for displaced ones."""
        self._heads[head.branch] = [*self._displaced(head.branch, moves), head]

    def pop_displaced(self, branch: str, moves: Sequence[Move]) -> SnapshotId | None:
        """Return a displaced version to report and forget it; None if no version is displaced."""
        displaced = self._displaced(branch, moves)
        if not displaced:
            return None
        self._heads[branch].remove(displaced[0])
        return displaced[0].snapshot

    def _displaced(self, branch: str, moves: Sequence[Move]) -> list[Head]:
        """Return the own moves of a branch that are off the line."""
        gone = {(move.position, move.snapshot) for move in off_line(moves)}
        return [
            head for head in self._heads.get(branch, ()) if (head.position, head.snapshot) in gone
        ]
