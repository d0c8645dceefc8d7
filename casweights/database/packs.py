"""The packs of a store: listed, and read for the indexes that say what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.config import KiB
from casweights.errors import IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, corrupt, prefix
from casweights.format.fields import parse_id
from casweights.format.pack import (
    TRAILER_SIZE,
    Location,
    index_span,
    pack_id,
    parse_generation,
    parse_index,
)
from casweights.ids import PackId
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.errors import CasweightsError
    from casweights.stores.base import ObjectStore

_TAIL_BYTES = 8 * KiB  # read from the end of a pack at first; most indexes are smaller


class PackContents(NamedTuple):
    """What a pack holds, as its index says.

    Attributes:
        info: The pack's name and size.
        generation: Its generation, see `build_index`.
        locations: Its frames.
    """

    info: ObjectInfo
    generation: int
    locations: list[Location]


def list_packs(store: ObjectStore) -> Iterator[ObjectInfo]:
    """The packs of a store, without objects in their folder that have other names."""
    return (info for info in store.list(names.PACKS) if _is_pack(info.name))


def _is_pack(name: str) -> bool:
    try:
        parse_id(PackId, names.PACKS, name)
    except IntegrityError:
        return False
    return True


def read_pack_index(store: ObjectStore, info: ObjectInfo) -> list[Location]:
    """The frames of a pack, from its own index; errors as for `read_pack`."""
    return read_pack(store, info).locations


def read_pack(store: ObjectStore, info: ObjectInfo, *, trusting: bool = False) -> PackContents:
    """What a pack holds, from its own index.

    Args:
        store: Where it is.
        info: Which it is.
        trusting: Whether to take it for granted that the pack begins as packs do, which frames do
            not depend on, and save a read.

    Raises:
        NotFoundError: The pack is gone.
        IntegrityError: The pack is damaged or is not the one its name says.
        UnsupportedError: A newer casweights wrote it.
    """
    pack = parse_id(PackId, names.PACKS, info.name)
    start, index, begin = _read_index(store, info)
    first_bytes = prefix(ObjectKind.PACK)
    if not trusting or pack_id(first_bytes, index) != pack:
        first_bytes = begin or store.get(info.name, 0, PREFIX_SIZE)
    frames = parse_index(first_bytes, index, start, pack, info.name)
    generation = parse_generation(index, info.name)
    return PackContents(info, generation, [Location(pack, frame) for frame in frames])


def try_read_pack(store: ObjectStore, info: ObjectInfo) -> PackContents | CasweightsError:
    """The same, or the error, once more if the store may have remembered a damaged copy."""
    trusting = not store.capabilities.cheap_reads
    try:
        return read_pack(store, info, trusting=trusting)
    except (IntegrityError, NotFoundError) as error:
        if not store.forget(info.name):
            return error
    try:
        size = store.sizes([info.name]).get(info.name, info.size)
        return read_pack(store, ObjectInfo(info.name, size), trusting=trusting)
    except (IntegrityError, NotFoundError) as error:
        return error


def _read_index(store: ObjectStore, info: ObjectInfo) -> tuple[int, bytes, bytes]:
    """Where a pack's index begins, the index, and the pack's first bytes if they came with it."""
    if info.size < PREFIX_SIZE + TRAILER_SIZE:
        raise corrupt(info.name, "it is too short for a pack")
    tail_start = max(0, info.size - _TAIL_BYTES)
    tail = store.get(info.name, tail_start, info.size - tail_start)
    start, stop = index_span(tail[-TRAILER_SIZE:], info.size, info.name)
    if start >= tail_start:
        index = tail[start - tail_start : stop - tail_start]
    else:
        index = store.get(info.name, start, stop - start)
    return start, index, b"" if tail_start else tail[:PREFIX_SIZE]
