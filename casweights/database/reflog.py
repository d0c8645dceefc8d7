"""Refs as logs: one small object for each move, named by its position.

The highest position is where the ref is. Where the store creates objects exclusively, each
position goes to exactly one writer. Elsewhere the snapshot and the one before it are part of the
name, so that nothing is overwritten, and a writer owns a position only once a listing shows its
move alone there, or earlier than all others by more than the store's clocks may differ. The times
also say which of several moves readers take meanwhile. docs/design/016 has the reasoning.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgpack

from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.stores.base import ObjectInfo, ObjectStore

_MAX_REF = 4096
_KEPT = 100  # moves of a ref that stay; twice as many and the older half is removed
_PATIENCE = 30.0  # seconds until a listing must show what was put before it
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 2.0  # seconds between listings that wait for others
_YIELD = 2.0  # seconds after which a writer gives up a position that a rival does not leave
_SETTLE = 3  # times as long a writer waits for rivals of the move that it builds on
_MOVE = re.compile(
    rf"(?P<ref>.+)/(?P<position>[0-9]{{{names.POSITION_DIGITS}}})"
    r"(-(?P<snapshot>[0-9a-f]{64})(-(?P<before>[0-9a-f]{64}))?"
    rf"(-[0-9a-f]{{{names.WRITER_DIGITS}}})?)?{re.escape(names.REF_SUFFIX)}"
)


@dataclass(frozen=True, slots=True)
class Move:
    """One entry of a log, as its name tells.

    Attributes:
        name: The object's name.
        ref: The branch or tag.
        position: Number of the move, from 1.
        created: When, by the store's clock, in microseconds; 0 if it has none.
        snapshot: Where to; None if only the object says.
        before: Where from; None if the name does not say.
    """

    name: str
    ref: str
    position: int
    created: int
    snapshot: SnapshotId | None
    before: SnapshotId | None = None


def parse_move(info: ObjectInfo, kind: str) -> Move:
    """The move that an object is.

    Raises:
        IntegrityError: Moves are called otherwise.
    """
    match = _MOVE.fullmatch(info.name, len(kind))
    if match is None or not names.is_ref_name(match["ref"]):
        raise corrupt(info.name, "its name is not that of a move of a ref")
    snapshot, before = (
        None if digits is None else SnapshotId.from_hex(digits)
        for digits in (match["snapshot"], match["before"])
    )
    return Move(info.name, match["ref"], int(match["position"]), info.created, snapshot, before)


def encode_move(snapshot: SnapshotId) -> bytes:
    """The object for a move to a version, made now."""
    microseconds = int(datetime.now(UTC).timestamp() * 1e6)
    payload: bytes = msgpack.packb({"snapshot": snapshot, "time": microseconds})
    return seal(ObjectKind.REF, payload)


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
        self._skew = store.capabilities.clock_skew * 1e6
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
                    yield parse_move(info, self.kind)

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

        Waits for them, but not for ever: one of them may have died.
        """
        begin, slowest, pauses = time.monotonic(), 0.0, _pauses()
        while True:
            start = time.monotonic()
            moves = self.moves(ref)
            if self._exclusive or not moves or not self._rivals(moves, latest(moves)):
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
        new = not self._exclusive  # nobody else uses this name
        [created] = self._store.put_all([(name, content)], new=new)
        if self._exclusive and not created:
            return False, []
        won, moves = self._outcome(ref, name, after, before)
        if not won:
            with suppress(CasweightsError):  # it is of no effect where it lies
                self._store.delete(name)
                self._withdrawn.add(name)
            return False, [other for other in moves if other.name != name]
        if len(moves) >= 2 * _KEPT and len(way(moves)) >= 2 * _KEPT:
            old = [move for move in moves if move.position <= after + 1 - _KEPT]
            with suppress(CasweightsError):  # the next move removes them
                self.remove(set(old) - set(beside(moves)))
        return True, moves

    def _outcome(
        self, ref: str, name: str, after: int, before: SnapshotId | None
    ) -> tuple[bool, list[Move]]:
        """Whether a move that was just made counts, and the listing that says so.

        It counts for good once it is alone at its position, on top of one that is alone at its
        own: whoever comes later sees it and withdraws. Among rivals the first waits for the others
        to withdraw, unless it is so much earlier that no clock can be wrong about it. One that
        does not withdraw may have been alone before the others came, so in the end the first does.
        """
        start, pauses = time.monotonic(), _pauses()
        moves = self._list_with(ref, name, after)
        lag = time.monotonic() - start
        patience, start = max(_YIELD, 2 * lag), start + lag
        while (mine := _named(moves, name)) and self._counts(mine, after, before, moves):
            if self._exclusive:
                return True, moves
            near = [move for move in moves if move.position in (after, after + 1)]
            base, has_rivals = first(near, after), self._rivals(near, mine)
            is_on_first = base is None or base.snapshot in (None, before)
            if not (has_rivals or (base and self._rivals(near, base))):
                return is_on_first, moves
            if time.monotonic() - start > (patience if has_rivals else _settling(lag)):
                return is_on_first and not has_rivals, moves
            time.sleep(next(pauses))
            moves = self._list_with(ref, name, after)
        return False, moves

    def _counts(
        self, mine: Move, after: int, before: SnapshotId | None, moves: Sequence[Move]
    ) -> bool:
        """Whether a move is part of the ref's way, from where its writer saw it."""
        taken = way(moves)
        there, base = taken.get(after + 1), taken.get(after)
        if there is None or there is not first(moves, after + 1) or not _same(there, mine):
            return False
        if after == 0:  # a branch that is this long has lost its first moves, or is about to
            return max(taken) < 2 * _KEPT
        return base is not None and self.snapshot(base) == before

    def _rivals(self, moves: Iterable[Move], mine: Move) -> bool:
        """Whether other moves are at the position of this one that the clock cannot tell apart."""
        return any(
            move.position == mine.position
            and abs(move.created - mine.created) <= self._skew
            and not _same(move, mine)
            for move in moves
        )

    def _list_with(self, ref: str, name: str, after: int) -> list[Move]:
        """The moves of a ref once this one is among them, and all that were made before it.

        It may also be gone for good: others removed it, who are at its position or beyond it.
        """
        deadline, pauses = time.monotonic() + _PATIENCE, _pauses()
        while True:
            moves = self.moves(ref)
            if any(move.name == name for move in moves):
                return moves
            if time.monotonic() > deadline:
                if any(move.position > after for move in moves):
                    return moves
                raise StoreError(
                    ErrorCode.UNREACHABLE,
                    f"{self._store.url} does not list {name} {_PATIENCE:g} s after it was made: "
                    "whether the ref has moved is unknown, look at it later",
                )
            time.sleep(next(pauses))

    def remove(self, moves: Iterable[Move]) -> None:
        """Forget moves; the one that says where the ref is goes last, so that no other does."""
        ordered = sorted(moves, key=_rank, reverse=True)
        self._store.delete_all([move.name for move in ordered])


def latest(moves: Sequence[Move]) -> Move:
    """Where a ref is: the highest position, and of several there the first one."""
    return min(moves, key=_rank)


def _rank(move: Move) -> tuple[int, int, str]:
    return (-move.position, *_order(move))


def way(moves: Iterable[Move]) -> dict[int, Move]:
    """The moves by which a ref came to where it is, by position, the newest first.

    At each position that is the one that the next move says it came from, or else the first.
    Everything below a position that nobody holds is what remained of older times.
    """
    there: defaultdict[int, list[Move]] = defaultdict(list)
    for move in moves:
        there[move.position].append(move)
    taken: dict[int, Move] = {}
    before: SnapshotId | None = None
    position = max(there, default=0)
    while at_it := there.get(position):
        if before is not None:
            at_it = [move for move in at_it if move.snapshot in (None, before)]
        before = None
        if at_it:
            taken[position] = move = at_it[0] if len(at_it) == 1 else min(at_it, key=_order)
            before = move.before
        position -= 1
    return taken


def beside(moves: Sequence[Move]) -> list[Move]:
    """The moves that are not part of a ref's way, the oldest first.

    Their writers are about to withdraw them, died before they could, or were displaced.
    """
    taken = way(moves).values()
    on_it, led_to = {move.name for move in taken}, {move.snapshot for move in taken} - {None}
    found = [move for move in moves if move.name not in on_it and move.snapshot not in led_to]
    return sorted(found, key=lambda move: (move.position, *_order(move)))


def first(moves: Sequence[Move], position: int) -> Move | None:
    """The first move to a position, by the store's clock."""
    return min((move for move in moves if move.position == position), key=_order, default=None)


def _named(moves: Iterable[Move], name: str) -> Move | None:
    return next((move for move in moves if move.name == name), None)


def _same(one: Move, other: Move) -> bool:
    """Whether two moves are one, or differ in nothing but their writers."""
    if one.name == other.name:
        return True
    ways = [(move.position, move.snapshot, move.before) for move in (one, other)]
    return one.snapshot is not None and ways[0] == ways[1]


def _order(move: Move) -> tuple[int, str]:
    return move.created, move.name


def _settling(lag: float) -> float:
    """Seconds to wait for rivals of a move that one builds on, where a listing lags so much.

    A rival may need twice its own lag to give up, and some calls to withdraw its move.
    """
    return _SETTLE * max(_YIELD, 4 * lag)


def _pauses() -> Iterator[float]:
    """Seconds to sleep between one listing and the next."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _MAX_PAUSE)
