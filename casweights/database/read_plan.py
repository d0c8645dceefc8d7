"""What to fetch in one piece from a store behind a network, where each read takes a round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.config import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casweights.database.index import ChunkIndex
    from casweights.format.pack import Location
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore
    from casweights.stores.optional import Range

_SMALL_PACK_BYTES = 8 * MiB  # of the pack of one step of a training run, which is fetched whole
_MAX_SMALL_PACKS = 8  # fetched whole; many of them hold more than a reader needs
_TINY_PACK_BYTES = 128 * KiB  # below which a read of the index alone is no faster
_MAX_TINY_PACKS = 256  # fetched whole: 32 MiB at most
_BLOCK_BYTES = 512 * KiB  # of a small pack, which are fetched with any frame in them


def small_packs(
    store: ObjectStore, index: ChunkIndex, chunks: Iterable[ChunkId]
) -> list[list[Range]]:
    """Hinted packs that are worth fetching whole, because their indexes were not read.

    Those are the packs of these chunks, if they are as small as that of a training step, and all
    others that are so tiny that an index is not worth a read of its own.

    Returns:
        The range of each pack, twice: they are read for their index, and stay for their frames.
    """
    own, others = index.unread_packs(chunks)
    sizes = store.sizes([*own, *others]) if own or others else {}
    tiny = [name for name, size in sizes.items() if size <= _TINY_PACK_BYTES]
    small = [name for name in own if 0 < sizes.get(name, 0) <= _SMALL_PACK_BYTES]
    chosen = dict.fromkeys([*small[:_MAX_SMALL_PACKS], *tiny[:_MAX_TINY_PACKS]])
    return [[(name, 0, sizes[name])] * 2 for name in chosen]


def around(index: ChunkIndex, location: Location) -> Range:
    """A frame's range; in a small pack with its neighbours, which are frames of next chunks."""
    name, start, stop = location.range
    size = index.pack_size(location.pack)
    if not stop <= size <= _SMALL_PACK_BYTES:
        return name, start, stop
    first, last = start // _BLOCK_BYTES, -(-stop // _BLOCK_BYTES)
    return name, first * _BLOCK_BYTES, min(last * _BLOCK_BYTES, size)
