"""Moves of refs: the entries of their logs, and what several of them say together.

Nothing here reads a store. The *line* of a ref is the moves by which it came to where it is; other
moves lie off it, because their writers lost a race.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgpack

from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights.stores.base import ObjectInfo

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
    """The move that an object stands for.

    Raises:
        IntegrityError: The name is not that of a move.
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
    """The content of an object for a move to a version, with the present time."""
    microseconds = int(datetime.now(UTC).timestamp() * 1e6)
    payload: bytes = msgpack.packb({"snapshot": snapshot, "time": microseconds})
    return seal(ObjectKind.REF, payload)


def latest(moves: Sequence[Move]) -> Move:
    """Where a ref is: the highest position, and of several there the first one."""
    return min(moves, key=removal_rank)


def removal_rank(move: Move) -> tuple[int, int, str]:
    """Orders moves from the one that says where the ref is to those that matter least."""
    return (-move.position, *_order(move))


def line(moves: Iterable[Move]) -> dict[int, Move]:
    """The moves by which a ref came to where it is, by position, the newest first.

    At each position that is the move to the version that the next one came from, or else the
    first. Moves below a position without any move are left over from older times.
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


def off_line(moves: Sequence[Move]) -> list[Move]:
    """The moves that are not on a ref's line, the oldest first.

    Their writers are about to withdraw them, died before they could, or were displaced.
    """
    taken = line(moves).values()
    on_line, led_to = {move.name for move in taken}, {move.snapshot for move in taken} - {None}
    found = [move for move in moves if move.name not in on_line and move.snapshot not in led_to]
    return sorted(found, key=lambda move: (move.position, *_order(move)))


def first(moves: Sequence[Move], position: int) -> Move | None:
    """The first move to a position, by the store's clock."""
    return min((move for move in moves if move.position == position), key=_order, default=None)


def named(moves: Iterable[Move], name: str) -> Move | None:
    """The move of an object; None if it is not among them."""
    return next((move for move in moves if move.name == name), None)


def is_same(one: Move, other: Move) -> bool:
    """Whether two moves are one, or differ in nothing but their writers."""
    if one.name == other.name:
        return True
    steps = [(move.position, move.snapshot, move.before) for move in (one, other)]
    return one.snapshot is not None and steps[0] == steps[1]


def _order(move: Move) -> tuple[int, str]:
    return move.created, move.name
