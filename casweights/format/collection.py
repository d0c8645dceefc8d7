"""Collections: the objects that describe one, and the names of what it sets aside.

A collection moves objects that nothing needs any more, or that others replace, to names below
``aside/``, and a later run deletes them. `docs/design/033-collection.md` has the reasoning.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from casweights.errors import IntegrityError
from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import ArchiveId, Digest, PackId, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_PLAN = 1 << 24  # bytes of a plan that is read
_MAX_OBJECTS = 1 << 20  # in it
_MARK_SIZE = 16  # bytes
_KINDS: dict[str, type[Digest]] = {
    names.PACKS: PackId,
    names.SNAPSHOTS: SnapshotId,
    names.ARCHIVES: ArchiveId,
}
FOLDERS = tuple(_KINDS)  # of the objects that a collection may set aside
REPLACED = "replaced-"  # begins the names of collections of objects that others replace
_COLLECTION = f"(?:{REPLACED})?[0-9a-f]{{16}}"
_PART = re.compile(rf"{names.COLLECTIONS}(?P<collection>{_COLLECTION})/(?P<part>look|plan|end)")
_SETTLED = re.compile(
    rf"{names.COLLECTIONS}settled-(?P<digest>[0-9a-f]{{64}})-(?P<until>[0-9]{{1,19}})"
)
_ASIDE = re.compile(rf"{names.ASIDE}(?P<collection>{_COLLECTION})/(?P<name>.+)")


class Part(StrEnum):
    """The objects that describe a collection."""

    LOOK = "look"  # gives the time of the store; removed at the end
    PLAN = "plan"  # what goes; written before anything moves
    END = "end"  # written when all has moved: its time begins the grace time


class PartName(NamedTuple):
    """What the name of an object of a collection says."""

    collection: str
    part: Part


class AsideName(NamedTuple):
    """What the name of an object that was set aside says.

    Attributes:
        collection: The collection that set it aside.
        name: The name that it had.
    """

    collection: str
    name: str

    @property
    def is_of_replaced(self) -> bool:
        """Whether others replace the object."""
        return self.collection.startswith(REPLACED)


class Settled(NamedTuple):
    """A note that a store has nothing to collect.

    Attributes:
        digest: Digest of what was listed.
        until: Time at which an object grows old enough to be collected, in microseconds.
    """

    digest: str
    until: int


def part_name(collection: str, part: Part) -> str:
    """Return the name of an object that describes a collection."""
    return f"{names.COLLECTIONS}{collection}/{part}"


def parse_part_name(name: str) -> PartName:
    """Return the collection that an object describes.

    Raises:
        IntegrityError: No such object has this name.
    """
    match = _PART.fullmatch(name)
    if match is None:
        raise corrupt(name, "its name is not that of a part of a collection")
    return PartName(match["collection"], Part(match["part"]))


def settled_name(settled: Settled) -> str:
    """Return the name of a note."""
    return f"{names.COLLECTIONS}settled-{settled.digest}-{settled.until}"


def parse_settled_name(name: str) -> Settled | None:
    """Return what a note says; None if the object is no note."""
    match = _SETTLED.fullmatch(name)
    return None if match is None else Settled(match["digest"], int(match["until"]))


def aside_name(collection: str, name: str) -> str:
    """Return the name under which a collection sets an object aside."""
    return f"{names.ASIDE}{collection}/{name}"


def parse_aside_name(name: str) -> AsideName:
    """Return which object was set aside, and by which collection.

    Raises:
        IntegrityError: It is not the name of a pack, a snapshot or an archive that was set aside.
    """
    match = _ASIDE.fullmatch(name)
    if match is None or not can_go(match["name"]):
        raise corrupt(name, "no collection sets an object of such a name aside")
    return AsideName(match["collection"], match["name"])


def is_of_collection(name: str) -> bool:
    """Whether an object of this name describes a collection, or was set aside by one."""
    parse = parse_aside_name if name.startswith(names.ASIDE) else parse_part_name
    with suppress(IntegrityError):
        return bool(parse(name))
    return parse_settled_name(name) is not None


def can_go(name: str) -> bool:
    """Whether an object of this name may be collected: a pack, a snapshot or an archive."""
    for folder, kind in _KINDS.items():
        if name.startswith(folder):
            try:
                names.parse_id(kind, folder, name)
            except IntegrityError:
                return False
            return True
    return False


class PlannedObject(NamedTuple):
    """An object that a collection sets aside: its name, its bytes, and its time in the store."""

    name: str
    size: int
    created: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a collection sets aside.

    Attributes:
        now: Time of the store at which the collection began, in microseconds since 1970.
        grace: The grace time, in seconds.
        objects: The objects.
        by: Names of the objects that replace them; none if nothing needs them.
    """

    now: int
    grace: int
    objects: Sequence[PlannedObject]
    by: Sequence[str] = ()


def encode_plan(plan: Plan) -> bytes:
    """Return the object that contains a plan."""
    fields = {
        "now": plan.now,
        "grace": plan.grace,
        "objects": [list(row) for row in plan.objects],
        **({"by": list(plan.by)} if plan.by else {}),
    }
    encoded: bytes = msgpack.packb(fields)
    return seal(ObjectKind.COLLECTION, encoded)


def decode_plan(data: bytes, name: str) -> Plan:
    """Parse the object of a plan.

    Args:
        data: The object.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: The object is damaged.
        UnsupportedError: A newer casweights wrote it.
    """
    payload = unseal(ObjectKind.COLLECTION, data, name)
    try:
        return _parse_plan(payload)
    except MALFORMED as error:
        raise corrupt(name, f"it is not a plan: {error}") from error


def _parse_plan(payload: bytes) -> Plan:
    data = Unpacker(payload)
    readers: dict[str, Callable[[], Any]] = {
        "now": lambda: data.scalar(int),
        "grace": lambda: data.scalar(int),
        "objects": lambda: [_planned(data) for _ in data.items(_MAX_OBJECTS)],
        "by": lambda: [_former(data) for _ in data.items(_MAX_OBJECTS)],
    }
    plan = Plan(**data.fields(readers, optional={"by"}))
    data.finish()
    return plan


def _planned(data: Unpacker) -> PlannedObject:
    data.row(3)
    return PlannedObject(_former(data), data.scalar(int), data.scalar(int))


def _former(data: Unpacker) -> str:
    name = data.scalar(str)
    if not can_go(name):
        raise ValueError("no collection sets an object of such a name aside")
    return name


def mark() -> bytes:
    """Return the content of an object of which only the time counts.

    It is random: a client that has uploaded the same bytes before may think that they are there.
    """
    return seal(ObjectKind.COLLECTION, secrets.token_bytes(_MARK_SIZE))
