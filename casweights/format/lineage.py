"""Lineage: the versions that the frames of a version were made from; a hint for display alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.format.manifest import Snapshot
    from casweights.format.unpack import Unpacker

MAX_ORIGINS = 8  # entries of a lineage


class Origin(NamedTuple):
    """A version that frames of another one were made from.

    Attributes:
        snapshot: The version.
        nbytes: Raw bytes of the other one whose chunks are also in it, or differences from it.
    """

    snapshot: SnapshotId
    nbytes: int


def in_order(origins: Sequence[Origin]) -> tuple[Origin, ...]:
    """Return the largest origins, in the order that the format prescribes."""
    return tuple(sorted(origins, key=_place)[:MAX_ORIGINS])


def read_lineage(data: Unpacker) -> tuple[Origin, ...]:
    """Read the lineage of a version, as the format lists it.

    Raises:
        ValueError: It is empty or too long, not in order, or has a version without bytes.
        TypeError: A value has another type.
    """
    origins = []
    for _ in data.items(MAX_ORIGINS):
        data.row(2)
        origins.append(Origin(SnapshotId(data.scalar(bytes)), data.scalar(int)))
    if not origins or min(one.nbytes for one in origins) < 1:
        raise ValueError("its lineage has no versions, or one without bytes")
    if any(_place(one) >= _place(other) for one, other in pairwise(origins)):
        raise ValueError("its lineage is not in order")
    return tuple(origins)


def check_lineage(origins: Sequence[Origin], version: Snapshot) -> None:
    """Check that a lineage can be that of a version.

    Raises:
        ValueError: It names a version twice, or the version itself, or has more bytes than it.
    """
    named = {one.snapshot for one in origins}
    if len(named) < len(origins) or version.id in named:
        raise ValueError("its lineage names a version twice, or the version itself")
    if sum(one.nbytes for one in origins) > version.size:
        raise ValueError(f"its lineage has more bytes than the version, which has {version.size}")


def encode_lineage(origins: Sequence[Origin]) -> list[list[bytes | int]]:
    """Return the value of a lineage in the index of a snapshot object."""
    return [[bytes(one.snapshot), one.nbytes] for one in origins]


def _place(origin: Origin) -> tuple[int, bytes]:
    return -origin.nbytes, origin.snapshot
