"""Moves of refs, and what the moves of one ref say together. This module reads no store.

The *line* of a ref consists of the moves from its first version to its head. Other moves are off
the line, because another writer moved the ref at the same moment. Several moves can have the same
position only where the store does not create objects exclusively; docs/design/016 has the rules.
There, the object of a *whole* move is the version itself.

A ref is deleted by a move to `GONE`. Once that is the newest move for good, a *mark* at the same
position can take the place of all moves of the ref; docs/design/031 has the reasoning.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from casweights.errors import IntegrityError
from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import SnapshotId
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights.stores.base import Parts

_MOVE = re.compile(
    rf"(?P<ref>.+)/(?P<position>{names.POSITION})"
    r"(-(?P<snapshot>[0-9a-f]{64})(-(?P<before>[0-9a-f]{64}))?"
    rf"(?P<writer>-[0-9a-f]{{{names.WRITER_DIGITS}}})?)?(?P<suffix>\.ref|\.step|\.off)"
)
MAX_MOVE = 4096  # bytes of a move's object, unless it is whole; honest ones have about 100
GONE = SnapshotId(bytes(32))  # where a move that deletes a ref leads: no version has this ID


@dataclass(frozen=True, slots=True)
class Move:
    """A move, as the name of its object and a listing describe it.

    Attributes:
        name: Name of the object.
        ref: Name of the branch or tag.
        position: Number of the move, from 1.
        created: Time of its creation by the store's clock, in microseconds; 0 if the store has no
            clock that orders objects.
        snapshot: The version that the ref moves to, or `GONE`; None if only the object's content
            says so.
        before: The version that it moves from; None for a first move, or if the name does not say.
    """

    name: str
    ref: str
    position: int
    created: int
    snapshot: SnapshotId | None
    before: SnapshotId | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the move's object is the version itself."""
        return self.name.endswith(names.STEP_SUFFIX)

    @property
    def is_mark(self) -> bool:
        """Whether the object stands for the whole log of a ref that was deleted."""
        return self.name.endswith(names.OFF_SUFFIX)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest move of a branch.

    Attributes:
        branch: The branch's name.
        position: Number of the move, from 1.
        snapshot: The version that the branch names.
    """

    branch: str
    position: int
    snapshot: SnapshotId


class Content(NamedTuple):
    """What the object of a move says.

    Attributes:
        snapshot: The version that the ref moves to, or `GONE`.
        before: The version that the ref named before; only of a deletion.
    """

    snapshot: SnapshotId
    before: SnapshotId | None


@dataclass(frozen=True, slots=True)
class Displaced:
    """A version that a writer moved a branch to, and that is off the branch's line.

    Attributes:
        snapshot: The version.
        before: The version that its writer moved the branch from; None if that is unknown.
    """

    snapshot: SnapshotId
    before: SnapshotId | None


class Version(NamedTuple):
    """The object of a version, for a whole move.

    Attributes:
        parts: Its bytes.
        assume_store: Whether to save the request that checks whether the store still exists.
        companions: Other objects to put in the same batch, after it, of names of its own.
    """

    parts: Parts
    assume_store: bool = False
    companions: Sequence[tuple[str, Parts]] = ()


def parse_move(info: ObjectInfo, kind: str) -> Move:
    """Return the move that an object's name and creation time describe.

    Args:
        info: The object, from a listing.
        kind: `names.HEADS` or `names.TAGS`, with which the name begins.

    Raises:
        IntegrityError: No move has such a name.
    """
    match = _MOVE.fullmatch(info.name, len(kind))
    if match is None or not names.is_ref_name(match["ref"]):
        raise _misnamed(info)
    snapshot, before = (
        None if digits is None else SnapshotId.from_hex(digits)
        for digits in (match["snapshot"], match["before"])
    )
    move = Move(info.name, match["ref"], int(match["position"]), info.created, snapshot, before)
    if move.is_whole and (snapshot in (None, GONE) or kind != names.HEADS):
        raise _misnamed(info)
    if move.is_mark and (snapshot != GONE or before in (None, GONE) or match["writer"]):
        raise _misnamed(info)
    return move


def _misnamed(info: ObjectInfo) -> IntegrityError:
    return corrupt(info.name, "no move of a branch or tag has such a name")


def version_in(name: str) -> SnapshotId | None:
    """Return the version that an object is if it is a whole move; None for all other objects."""
    if not (name.startswith(names.HEADS) and name.endswith(names.STEP_SUFFIX)):
        return None
    with suppress(IntegrityError):
        return parse_move(ObjectInfo(name, 0), names.HEADS).snapshot
    return None


def encode_move(snapshot: SnapshotId, before: SnapshotId | None = None) -> bytes:
    """Return the content of an object for a move at the present time.

    Args:
        snapshot: The version that the ref moves to, or `GONE`.
        before: The version that it moves from, which only a deletion records.
    """
    fields: dict[str, object] = {"snapshot": snapshot}
    fields["time"] = int(datetime.now(UTC).timestamp() * 1e6)  # microseconds
    if snapshot == GONE:
        fields["before"] = before
    payload: bytes = msgpack.packb(fields)
    return seal(ObjectKind.REF, payload)


def decode_move(data: bytes, move: Move) -> Content:
    """Return what the object of a move says, if that is no whole move.

    Raises:
        IntegrityError: The object is damaged, or contradicts its name.
    """
    payload = unseal(ObjectKind.REF, data, move.name)
    try:
        data_of = Unpacker(payload)
        table = data_of.fields(
            {
                "time": lambda: data_of.scalar(int),
                "snapshot": lambda: data_of.scalar(bytes),
                "before": lambda: data_of.scalar(bytes),
            },
            optional={"before"},
        )
        data_of.finish()
        snapshot, before = SnapshotId(table["snapshot"]), None
        if snapshot == GONE:
            if "before" not in table:
                raise ValueError("it deletes a ref and lacks before")
            before = SnapshotId(table["before"])
    except MALFORMED as error:
        raise corrupt(move.name, str(error)) from error
    if move.snapshot not in (None, snapshot):
        raise corrupt(move.name, f"it leads to {snapshot}, but its name says {move.snapshot}")
    if before is not None and move.before not in (None, before):
        raise corrupt(move.name, f"it comes from {before}, but its name says {move.before}")
    return Content(snapshot, before)


def latest(moves: Sequence[Move]) -> Move:
    """Return the newest move of a ref: the earliest of those at the highest position."""
    return min(moves, key=removal_rank)


def removal_rank(move: Move) -> tuple[int, bool, int, str]:
    """Return a sort key that puts the newest move of a ref first.

    Moves are deleted in the reverse order, so that no other move becomes the newest one.
    """
    return (-move.position, *_order(move))


def line(moves: Iterable[Move]) -> dict[int, Move]:
    """Return the moves on a ref's line by position, from the newest to the oldest.

    The line is followed from the highest position down. At each position it goes through the
    earliest of the moves to the version that the next move came from; a position without such a
    move is left out. The line ends with a mark, or above the first position that has no moves at
    all: moves below are remains of a deletion.
    """
    at: defaultdict[int, list[Move]] = defaultdict(list)
    for move in moves:
        at[move.position].append(move)
    taken: dict[int, Move] = {}
    before: SnapshotId | None = None
    position = max(at, default=0)
    while candidates := at.get(position):
        if before is not None:
            candidates = [move for move in candidates if move.snapshot in (None, before)]
        before = None
        if candidates:
            move = candidates[0] if len(candidates) == 1 else min(candidates, key=_order)
            taken[position], before = move, move.before
            if move.is_mark:
                break
        position -= 1
    return taken


def off_line(moves: Sequence[Move]) -> list[Move]:
    """Return the moves off a ref's line to versions that the line does not pass, oldest first.

    The writer of each is about to withdraw it, died before it could, or was displaced. Moves that a
    mark stands for are left out, and deletions.
    """
    taken = line(moves).values()
    on_line, passed = {move.name for move in taken}, {move.snapshot for move in taken} - {None}
    passed.add(GONE)
    marked = max((move.position for move in moves if move.is_mark), default=0)
    found = [
        move
        for move in moves
        if move.position > marked and move.name not in on_line and move.snapshot not in passed
    ]
    return sorted(found, key=lambda move: (move.position, *_order(move)))


def first(moves: Sequence[Move], position: int) -> Move | None:
    """Return the earliest move to a position by the store's clock; None without any."""
    return min((move for move in moves if move.position == position), key=_order, default=None)


def named(moves: Iterable[Move], name: str) -> Move | None:
    """Return the move whose object has this name; None if it is not among the moves."""
    return next((move for move in moves if move.name == name), None)


def has_mark(moves: Iterable[Move], position: int, before: SnapshotId | None) -> bool:
    """Whether a mark took the place of a deletion at a position, and of the moves below it."""
    return any(m.is_mark and (m.position, m.before) == (position, before) for m in moves)


def is_same(one: Move, other: Move) -> bool:
    """Whether two moves make the same step of a ref, perhaps by different writers."""
    if one.name == other.name:
        return True
    steps = [(move.position, move.snapshot, move.before) for move in (one, other)]
    return one.snapshot is not None and steps[0] == steps[1]


def _order(move: Move) -> tuple[bool, int, str]:
    """Return a sort key for moves at one position: by time, then by name, for all readers alike.

    A mark comes first, because it was added only after its position was decided.
    """
    return not move.is_mark, move.created, move.name
