"""Refs as logs: one small object for each move, named by its position.

The highest position is where the ref is. Where the store creates objects exclusively, each
position goes to exactly one writer. Elsewhere the snapshot is part of the name, so that nothing is
overwritten; of several moves to one position the first counts, by the store's clock, and who made
another one learns of it from the listing that follows. docs/design/003 has the reasoning.
"""

from __future__ import annotations

import re
import time
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
from casweights.format.envelope import Kind, corrupt, seal, unseal
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.stores.base import ObjectInfo, ObjectStore

_MAX_REF = 4096
_KEPT = 100  # moves of a ref that stay; twice as many and the older half is removed
_PATIENCE = 30.0  # seconds until a listing must show what was put before it
_MOVE = re.compile(
    rf"(?P<ref>.+)/(?P<position>[0-9]{{{names.POSITION_DIGITS}}})"
    rf"(-(?P<snapshot>[0-9a-f]{{64}}))?{re.escape(names.REF_SUFFIX)}"
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
    """

    name: str
    ref: str
    position: int
    created: int
    snapshot: SnapshotId | None


def parse_move(info: ObjectInfo, kind: str) -> Move:
    """The move that an object is.

    Raises:
        IntegrityError: Moves are called otherwise.
    """
    match = _MOVE.fullmatch(info.name, len(kind))
    if match is None or not names.is_ref_name(match["ref"]):
        raise corrupt(info.name, "its name is not that of a move of a ref")
    digits = match["snapshot"]
    snapshot = None if digits is None else SnapshotId.from_hex(digits)
    return Move(info.name, match["ref"], int(match["position"]), info.created, snapshot)


def encode_move(snapshot: SnapshotId) -> bytes:
    """The object for a move to a version, made now."""
    microseconds = int(datetime.now(UTC).timestamp() * 1e6)
    payload: bytes = msgpack.packb({"snapshot": snapshot, "time": microseconds})
    return seal(Kind.REF, payload)


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
        self._exclusive = store.capabilities.exclusive_create

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
        return [move for move in self._moves(listed) if move.ref == ref]

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
        payload = unseal(Kind.REF, self._store.read(move.name, _MAX_REF), move.name)
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

    def append(
        self,
        ref: str,
        after: int,
        before: SnapshotId | None,
        snapshot: SnapshotId,
        move: bytes | None = None,
    ) -> bool:
        """Move a ref to the position behind `after`, where it must lead to `before`.

        Args:
            ref: The branch or tag.
            after: Where it is; 0 if there is none.
            before: The version there.
            snapshot: Where it goes.
            move: What `encode_move` made for that earlier.

        Returns:
            False if it was not there any more, or another writer was first.
        """
        name = names.move_name(self.kind, ref, after + 1, None if self._exclusive else snapshot)
        # A move of a version that was made just now cannot be there, its name has the version.
        new = move is not None and not self._exclusive
        [created] = self._store.put_all([(name, [move or encode_move(snapshot)])], new=new)
        if self._exclusive and not created:
            return False
        moves = self._list_with(ref, name, after)
        if not self._was_at(after, before, moves) or not _counts(name, after, moves):
            with suppress(CasweightsError):  # it is of no effect where it lies
                self._store.delete(name)
            return False
        if len(moves) >= 2 * _KEPT:
            with suppress(CasweightsError):  # the next move removes them
                self.remove(move for move in moves if move.position <= after + 1 - _KEPT)
        return True

    def _was_at(self, position: int, snapshot: SnapshotId | None, moves: Sequence[Move]) -> bool:
        """Whether the log still is the one that the caller saw."""
        if position == 0:  # a branch that is this long has lost its first moves, or is about to
            return max(move.position for move in moves) < 2 * _KEPT
        move = _first(moves, position)
        return move is not None and self.snapshot(move) == snapshot

    def _list_with(self, ref: str, name: str, after: int) -> list[Move]:
        """The moves of a ref once this one is among them, and all that were made before it.

        It may also be gone for good: others removed it, who are at its position or beyond it.
        """
        deadline, pause = time.monotonic() + _PATIENCE, 0.1
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
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def remove(self, moves: Iterable[Move]) -> None:
        """Forget moves; the one that says where the ref is goes last, so that no other does."""
        ordered = sorted(moves, key=_rank, reverse=True)
        self._store.delete_all([move.name for move in ordered])


def latest(moves: Sequence[Move]) -> Move:
    """Where a ref is: the highest position, and of several there the first one."""
    return min(moves, key=_rank)


def _rank(move: Move) -> tuple[int, int, str]:
    return (-move.position, *_order(move))


def _first(moves: Sequence[Move], position: int) -> Move | None:
    """The move to this position that counts."""
    return min((move for move in moves if move.position == position), key=_order, default=None)


def _order(move: Move) -> tuple[int, str]:
    return move.created, move.name


def _counts(name: str, after: int, moves: Sequence[Move]) -> bool:
    """Whether the move of this name is part of the ref's way, and not beside it."""
    positions = {move.position for move in moves}
    is_last_or_followed = max(positions) == after + 1 or after + 2 in positions
    first = _first(moves, after + 1)
    return is_last_or_followed and first is not None and first.name == name
