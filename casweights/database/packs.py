"""Lists the packs of a store and reads their indexes."""

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

_TAIL_BYTES = 8 * KiB  # first read, from the end of a pack: covers most indexes in one request


class PackContents(NamedTuple):
    """The content of a pack according to its index.

    Attributes:
        info: The pack's name and size.
        generation: The pack's generation: 0 for packs of a commit, more for packs of a repack.
        locations: The pack's frames.
    """

    info: ObjectInfo
    generation: int
    locations: list[Location]


def list_packs(store: ObjectStore) -> Iterator[ObjectInfo]:
    """Return the packs of a store; objects in their folder with other names are left out."""
    return (info for info in store.list(names.PACKS) if _is_pack(info.name))


def _is_pack(name: str) -> bool:
    """Whether an object has the name of a pack."""
    try:
        parse_id(PackId, names.PACKS, name)
    except IntegrityError:
        return False
    return True


def read_pack_index(store: ObjectStore, info: ObjectInfo) -> list[Location]:
    """Return the frames of a pack, read from its index; raise the errors of `read_pack`."""
    return read_pack(store, info).locations


def read_pack(store: ObjectStore, info: ObjectInfo, *, trusting: bool = False) -> PackContents:
    """Read the index of a pack and check it against the pack's name.

    Args:
        store: The store that contains the pack.
        info: The pack's name and size.
        trusting: Whether to save a read by not checking the pack's first bytes, on which no frame
            depends.

    Raises:
        NotFoundError: The pack is gone.
        IntegrityError: The pack is damaged, or its content does not match its name.
        UnsupportedError: A newer casweights wrote the pack.
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
    """Read the index of a pack, and return an error for a damaged or missing pack.

    If a cache of the store may hold a damaged copy, it is discarded and the pack read again.

    Raises:
        UnsupportedError: A newer casweights wrote the pack.
        StoreError: The store could not be read.
    """
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
    """Read the index of a pack.

    Returns:
        The offset of the index, the index, and the pack's first bytes if the same read returned
        them, otherwise no bytes.
    """
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
