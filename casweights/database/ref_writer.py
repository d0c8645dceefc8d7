"""Changes of refs whose outcome is known, also where a call failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.database.moves import encode_move, latest
from casweights.errors import ErrorCode, NotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database.moves import Move
    from casweights.database.reflog import RefLog
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore


class _Step(NamedTuple):
    """A move of a ref from one position to the next; see `RefLog.append`."""

    ref: str
    after: int
    before: SnapshotId | None
    snapshot: SnapshotId


class RefWriter:
    """Moves and deletes the refs of one log, and finds out what failed calls have done.

    An error does not tell whether a move was made: the store may have failed right after it, or
    its answer may be lost. So the log is read again, and a move that was made is no error. Where
    reading fails, too, the ref is *in doubt*: a caller who repeats the call asks `is_doubted`, so
    that nothing is done twice. The next change that succeeds ends the doubt.

    Args:
        store: Where the log lies.
        log: The log.
    """

    def __init__(self, store: ObjectStore, log: RefLog) -> None:
        self._store = store
        self._log = log
        self._doubts: dict[str, SnapshotId | None] = {}  # where refs may be; None: deleted

    def doubt(self, ref: str, snapshot: SnapshotId) -> None:
        """Remember that a caller was told of an error after a ref had moved there."""
        self._doubts[ref] = snapshot

    def is_doubted(self, ref: str, snapshot: SnapshotId | None = None) -> bool:
        """Whether a change of a ref ended in an error: that to a snapshot, or any."""
        if snapshot is None:
            return ref in self._doubts
        return self._doubts.get(ref) == snapshot

    def append(
        self,
        ref: str,
        after: int,
        before: SnapshotId | None,
        snapshot: SnapshotId,
        move: bytes | None = None,
    ) -> tuple[bool, list[Move]]:
        """Move a ref; see `RefLog.append`.

        Raises:
            StoreError: The move failed. The error's `snapshot` is set if it is unknown whether
                the ref has moved.
        """
        try:
            made = self._log.append(ref, after, before, snapshot, move)
        except BaseException as error:
            self._doubts[ref] = snapshot
            if not isinstance(error, Exception):
                raise
            moves = self._moves_if_made(_Step(ref, after, before, snapshot), error)
            if not moves:
                raise
            return True, moves
        self._doubts.pop(ref, None)
        return made

    def _moves_if_made(self, step: _Step, error: Exception) -> list[Move]:
        """The moves of a ref, if a step was made although it failed; else none.

        Raises:
            StoreError: This cannot be found out.
        """
        try:
            return self._find_made(step)
        except Exception as again:
            if isinstance(error, NotFoundError):  # the store has gone, and refused the move
                raise error from None
            code = error.code if isinstance(error, StoreError) else ErrorCode.IO_FAILED
            unknown = StoreError(
                code,
                f"{error}. Whether {step.ref!r} has moved to {step.snapshot} is unknown ({again}): "
                "repeat the call, which does nothing twice",
            )
            unknown.snapshot = step.snapshot
            raise unknown from error

    def _find_made(self, step: _Step) -> list[Move]:
        log = self._log
        moves = log.settled(step.ref)
        last = latest(moves) if moves else None
        if last is None or (last.position, log.snapshot(last)) != (step.after + 1, step.snapshot):
            return []
        bases = [log.snapshot(move) for move in moves if move.position == step.after]
        if step.after and step.before not in bases:
            return []
        if self._store.probe().exclusive_create:  # what is put twice is durable, too
            self._store.put(last.name, [encode_move(step.snapshot)])
        return moves

    def delete(self, ref: str) -> bool:
        """Forget a ref; False if there is none, and no failed call can have deleted it."""
        moves: Sequence[Move] = self._log.moves(ref)
        if not moves:
            return self._doubts.pop(ref, ref) is None
        try:
            self._log.remove(moves)
        except BaseException as error:
            self._doubts[ref] = None
            if not isinstance(error, Exception) or self._log.moves(ref):
                raise
        else:
            self._doubts.pop(ref, None)
        return True
