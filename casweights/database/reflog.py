"""Refs as logs: one small object for each move, named by its position.

The highest position is where the ref is. Where the store creates objects exclusively, each
position goes to exactly one writer. Elsewhere the snapshot and the one before it are part of the
name, so that nothing is overwritten, and a writer owns a position only once a listing shows its
move alone there, or earlier than all others by more than the store's clocks may differ. The times
also say which of several moves readers take meanwhile. docs/design/016 has the reasoning.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from casweights.database.moves import (
    Move,
    encode_move,
    first,
    is_same,
    latest,
    line,
    named,
    off_line,
    parse_move,
    removal_rank,
)
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, unseal
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.stores.base import ObjectInfo, ObjectStore

_MAX_REF = 4096  # bytes of a move's object; honest ones have a hundred
_KEPT_MOVES = 100  # of a ref; once there are twice as many, the older half is removed
_LISTING_SECONDS = 30.0  # until a listing must show what was put before it
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 2.0  # seconds between listings that wait for other writers
_YIELD_SECONDS = 2.0  # after which a writer gives up a position that a rival does not leave
_SETTLE_FACTOR = 3  # times as long a writer waits for rivals of the move that it builds on


class RefLog:
    """The logs of all branches, or of all tags.

    Args:
        store: Where they lie.
        kind: `names.HEADS` or `names.TAGS`.

    Attributes:
        kind: As above.
    """

    def __init__(self, store: ObjectStore, kind: str) -> None:
        self._store = store
        self.kind = kind
        skew = store.capabilities.clock_skew
        self._has_clock = skew is not None
        self._skew = (skew or 0.0) * 1e6  # microseconds
        self._withdrawn: set[str] = set()  # listings may show them for a while

    @property
    def _exclusive(self) -> bool:
        return self._store.probe().exclusive_create

    def all(self, infos: Iterable[ObjectInfo] | None = None) -> dict[str, list[Move]]:
        """The moves of each ref, by its name.

        Args:
            infos: A listing that has all of them, if there is one already.
        """
        listed = self._store.list(self.kind) if infos is None else infos
        found: dict[str, list[Move]] = {}
        for move in self._moves(listed):
            found.setdefault(move.ref, []).append(move)
        return dict(sorted(found.items()))

    def moves(self, ref: str) -> list[Move]:
        """The moves of one ref."""
        listed = self._store.list(f"{self.kind}{ref}/")
        moves = self._moves(listed)
        return [move for move in moves if move.ref == ref and move.name not in self._withdrawn]

    def _moves(self, infos: Iterable[ObjectInfo]) -> Iterator[Move]:
        """The moves among some objects; others, which `verify` reports, are passed over."""
        for info in infos:
            if info.name.startswith(self.kind):
                with suppress(IntegrityError):
                    move = parse_move(info, self.kind)
                    yield move if self._has_clock else replace(move, created=0)

    def target(self, move: Move) -> SnapshotId:
        """Where a move leads to, as its object says.

        Raises:
            IntegrityError: The object is damaged.
        """
        payload = unseal(ObjectKind.REF, self._store.read(move.name, _MAX_REF), move.name)
        try:
            data = Unpacker(payload)
            table = data.fields(
                {"time": lambda: data.scalar(int), "snapshot": lambda: data.scalar(bytes)}
            )
            data.finish()
            snapshot = SnapshotId(table["snapshot"])
        except MALFORMED as error:
            raise corrupt(move.name, str(error)) from error
        if move.snapshot not in (None, snapshot):
            raise corrupt(move.name, f"it leads to {snapshot}, which is not what its name says")
        return snapshot

    def snapshot(self, move: Move) -> SnapshotId | None:
        """Where a move leads to; None if it was removed since it was listed.

        Raises:
            IntegrityError: Only its object can tell, and is damaged.
        """
        if move.snapshot is not None:
            return move.snapshot
        try:
            return self.target(move)
        except NotFoundError:
            return None

    def settled(self, ref: str) -> list[Move]:
        """The moves of a ref, once no two writers compete for its newest position.

        Also waits while the newest move may be withdrawn because its base is gone. Waits for a
        limited time only: the writer may have died.
        """
        begin, slowest, pauses = time.monotonic(), 0.0, _pauses()
        while True:
            start = time.monotonic()
            moves = self.moves(ref)
            if self._exclusive or not moves or not self._is_contested(moves, latest(moves)):
                return moves
            slowest = max(slowest, time.monotonic() - start)
            if time.monotonic() - begin > _settling(slowest):
                return moves
            time.sleep(next(pauses))

    def append(
        self,
        ref: str,
        after: int,
        before: SnapshotId | None,
        snapshot: SnapshotId,
        move: bytes | None = None,
    ) -> tuple[bool, list[Move]]:
        """Move a ref to the position behind `after`, where it must lead to `before`.

        Args:
            ref: The branch or tag.
            after: Where it is; 0 if there is none.
            before: The version there.
            snapshot: Where it goes.
            move: What `encode_move` made for that earlier.

        Returns:
            Whether it moved; it does not where another writer was first, or nothing is at `after`
            any more. And the moves of the ref, as far as this had to list them.
        """
        writer = secrets.token_hex(names.WRITER_DIGITS // 2)
        what = () if self._exclusive else (snapshot, before, writer)
        name = names.move_name(self.kind, ref, after + 1, *what)
        content = [move or encode_move(snapshot)]
        unique = not self._exclusive  # nobody else uses this name
        [created] = self._store.put_all([(name, content)], assume_absent=unique)
        if self._exclusive and not created:
            return False, []
        won, moves = self._outcome(ref, name, after, before)
        if not won:
            with suppress(CasweightsError):  # it is of no effect where it lies
                self._store.delete(name)
                self._withdrawn.add(name)
            return False, [other for other in moves if other.name != name]
        if len(moves) >= 2 * _KEPT_MOVES and len(line(moves)) >= 2 * _KEPT_MOVES:
            old = [move for move in moves if move.position <= after + 1 - _KEPT_MOVES]
            with suppress(CasweightsError):  # the next move removes them
                self.remove(set(old) - set(off_line(moves)))
        return True, moves

    def _outcome(
        self, ref: str, name: str, after: int, before: SnapshotId | None
    ) -> tuple[bool, list[Move]]:
        """Whether a move that was just made counts, and the listing that says so.

        It counts for good once it is alone at its position, on top of one that is alone at its
        own and has its base: whoever comes later sees it and withdraws. Among rivals, the one on
        the line waits for the others to withdraw, unless it is so much earlier that no clock can be
        wrong about it. One that does not withdraw may have been alone before the others came, so
        in the end the one that waits withdraws.
        """
        start, pauses = time.monotonic(), _pauses()
        moves = self._list_with(ref, name, after)
        lag = time.monotonic() - start
        patience, start = max(_YIELD_SECONDS, 2 * lag), start + lag
        while (mine := named(moves, name)) and self._counts(mine, after, before, moves):
            if self._exclusive:
                return True, moves
            near = [move for move in moves if abs(move.position - after) <= 1]
            base, has_rivals = first(near, after), self._rivals(near, mine)
            is_on_first = base is None or base.snapshot in (None, before)
            if not (has_rivals or (base and self._is_contested(near, base))):
                return is_on_first, moves
            if time.monotonic() - start > (patience if has_rivals else _settling(lag)):
                return is_on_first and not has_rivals, moves
            time.sleep(next(pauses))
            moves = self._list_with(ref, name, after)
        return False, moves

    def _counts(
        self, mine: Move, after: int, before: SnapshotId | None, moves: Sequence[Move]
    ) -> bool:
        """Whether a move is on the ref's line, after the move that its writer saw."""
        taken = line(moves)  # through a move that others built on, even if a rival is earlier
        there, base, ahead = taken.get(after + 1), taken.get(after), first(moves, after + 1)
        if there is None or ahead is None or not is_same(there, mine):
            return False
        if there.created - ahead.created > self._skew:
            return False
        if after == 0:  # a branch that is this long has lost its first moves, or is about to
            return max(taken) < 2 * _KEPT_MOVES
        return base is not None and self.snapshot(base) == before

    def _is_contested(self, moves: Sequence[Move], newest: Move) -> bool:
        """Whether the writer of a move may be about to withdraw it.

        It has rivals, or the move that it builds on is gone.
        """
        return self._rivals(moves, newest) or (
            newest.before is not None
            and not any(
                move.position == newest.position - 1 and move.snapshot in (None, newest.before)
                for move in moves
            )
        )

    def _rivals(self, moves: Iterable[Move], mine: Move) -> bool:
        """Whether other moves are at the position of this one that the clock cannot tell apart."""
        return any(
            move.position == mine.position
            and abs(move.created - mine.created) <= self._skew
            and not is_same(move, mine)
            for move in moves
        )

    def _list_with(self, ref: str, name: str, after: int) -> list[Move]:
        """The moves of a ref once this one is among them, and all that were made before it.

        It may also be gone for good: others removed it, who are at its position or beyond it.
        """
        deadline, pauses = time.monotonic() + _LISTING_SECONDS, _pauses()
        while True:
            moves = self.moves(ref)
            if any(move.name == name for move in moves):
                return moves
            if time.monotonic() > deadline:
                if any(move.position > after for move in moves):
                    return moves
                raise StoreError(
                    ErrorCode.UNREACHABLE,
                    f"{self._store.url} does not list {name} {_LISTING_SECONDS:g} s after it was "
                    "made: whether the ref has moved is unknown, look at it later",
                )
            time.sleep(next(pauses))

    def remove(self, moves: Iterable[Move]) -> None:
        """Forget moves; the one that says where the ref is goes last, so that no other does."""
        ordered = sorted(moves, key=removal_rank, reverse=True)
        self._store.delete_all([move.name for move in ordered])


def _settling(lag: float) -> float:
    """Seconds to wait for rivals of a move that one builds on, where a listing lags so much.

    A rival may need twice its own lag to give up, and some calls to withdraw its move.
    """
    return _SETTLE_FACTOR * max(_YIELD_SECONDS, 4 * lag)


def _pauses() -> Iterator[float]:
    """Seconds to sleep between one listing and the next."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _MAX_PAUSE)
