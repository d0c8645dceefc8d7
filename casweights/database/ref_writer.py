"""Moves of refs whose outcome is known even if a call to the store failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.database.moves import encode_move, latest
from casweights.errors import ErrorCode, NotFoundError, StoreError

if TYPE_CHECKING:
    from casweights.database.moves import Move, Version
    from casweights.database.reflog import RefLog
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore


class _Step(NamedTuple):
    """A change of a ref from the version `before` at position `after` to the next position."""

    ref: str
    after: int
    before: SnapshotId | None
    snapshot: SnapshotId


class RefWriter:
    """Moves the refs of one log, and determines what failed calls have done.

    An error of the store does not say whether a move was made: the store may have failed after the
    move, or its answer was lost. So `append` reads the log again after an error, and returns
    normally if the move is in it. A ref whose change ended in an error is *in doubt*: a caller who
    repeats a call checks `is_doubted`, and does nothing if the ref is where that call would move
    it. A change of the ref that succeeds ends the doubt. Doubts are in memory, so only the same
    open store knows them.

    Args:
        store: The store that contains the log.
        log: The log.
    """

    def __init__(self, store: ObjectStore, log: RefLog) -> None:
        self._store = store
        self._log = log
        self._doubts: dict[str, SnapshotId] = {}  # where each ref in doubt may have been moved to

    def doubt(self, ref: str, snapshot: SnapshotId) -> None:
        """Put a ref in doubt: its move to a version succeeded, but the caller gets an error."""
        self._doubts[ref] = snapshot

    def settle(self, ref: str) -> None:
        """End the doubt about a ref, because a repeated call has found its move."""
        self._doubts.pop(ref, None)

    def is_doubted(self, ref: str, snapshot: SnapshotId | None = None) -> bool:
        """Whether the last change of a ref ended in an error.

        Args:
            ref: The branch or tag.
            snapshot: Count only a move to this version; None for any move.
        """
        if snapshot is None:
            return ref in self._doubts
        return self._doubts.get(ref) == snapshot

    def append(
        self,
        ref: str,
        after: int,
        before: SnapshotId | None,
        snapshot: SnapshotId,
        version: Version | None = None,
    ) -> tuple[bool, list[Move]]:
        """Move a ref to the position after `after`, where it must be at version `before`.

        Args:
            ref: The branch or tag.
            after: Its position; 0 for a new one.
            before: The version at that position, or `GONE`; None for a new one.
            snapshot: The version to move it to; `GONE` to delete it.
            version: The object of that version, if the move is to be whole.

        Returns:
            Whether it moved, and the moves of the ref that were listed, as in `RefLog.append`.

        Raises:
            StoreError: The move failed. The error's `snapshot` is set if it is unknown whether
                the ref has moved.
        """
        try:
            made = self._log.append(ref, after, before, snapshot, version)
        except BaseException as error:
            self._doubts[ref] = snapshot
            if not isinstance(error, Exception):  # KeyboardInterrupt and the like end it at once
                raise
            moves = self._moves_if_made(_Step(ref, after, before, snapshot), error)
            if not moves:
                raise
            return True, moves
        self._doubts.pop(ref, None)
        return made

    def _moves_if_made(self, step: _Step, error: Exception) -> list[Move]:
        """Return the moves of a ref if a step was made in spite of an error; otherwise no moves.

        Raises:
            StoreError: The log cannot be read, so that the outcome is unknown.
        """
        try:
            return self._find_made(step)
        except Exception as again:
            if isinstance(error, NotFoundError):  # the store is gone, so the move was not made
                raise error from None
            code = error.code if isinstance(error, StoreError) else ErrorCode.IO_FAILED
            unknown = StoreError(
                code,
                f"{error}. It is unknown whether {step.ref!r} has moved to {step.snapshot} "
                f"({again}): repeat the call, which does nothing twice",
            )
            unknown.snapshot = step.snapshot
            raise unknown from error

    def _find_made(self, step: _Step) -> list[Move]:
        """Return the moves of a ref if a step is its newest move; otherwise no moves."""
        log = self._log
        moves = log.settled(step.ref)
        last = latest(moves) if moves else None
        if last is None or (last.position, log.snapshot(last)) != (step.after + 1, step.snapshot):
            return []
        bases = [log.snapshot(move) for move in moves if move.position == step.after]
        if step.after and step.before not in bases:
            return []
        # The failed call may have made the object visible, but not durable. Putting the same
        # object again makes it so, and changes nothing.
        if self._store.probe().exclusive_create:
            self._store.put(last.name, [encode_move(step.snapshot, step.before)])
        return moves
