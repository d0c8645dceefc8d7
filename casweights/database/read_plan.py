"""Plans which bytes to fetch together from a store over a network.

There each read costs a round trip, so fetching some bytes that are not needed is often faster than
reading exactly what is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.config import KiB, MiB
from casweights.stores.optional import SupportsReadahead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casweights.database.index import ChunkIndex
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId
    from casweights.stores.base import ObjectStore
    from casweights.stores.optional import Range

_SMALL_PACK_BYTES = 8 * MiB  # the pack of one training step is smaller: readers need most of it
_MAX_SMALL_PACKS = 8  # fetched whole for one call; more of them hold much that is not needed
_FEW_PACK_BYTES = 512 * KiB  # fetched whole if few: a round trip takes longer than the bytes
_TINY_PACK_BYTES = 128 * KiB  # up to here, reading the index alone is no faster
_MAX_TINY_PACKS = 256  # fetched whole for one call: 32 MiB at most
END_BYTES = 256 * KiB  # of a pack: its index, after the headers and lists of chunks of a version
_STEP_BYTES = 2 * MiB  # of a version's object: more take longer than another round trip
_MAX_ENDS = 64  # fetched for one call, 16 MiB at most; a chain of structure chunks has fewer packs
_BLOCK_BYTES = 512 * KiB  # a small pack is fetched in blocks of this size, aligned to its start


def end_bytes(store: ObjectStore) -> int:
    """Return how many bytes to read from the end of a version whose frames are needed, too.

    A store that reads ahead answers later reads from the end. There it is large enough for all of
    the object of most steps.
    """
    return END_BYTES if store.ability(SupportsReadahead) is None else _STEP_BYTES


def small_packs(
    store: ObjectStore, index: ChunkIndex, chunks: Iterable[ChunkId]
) -> list[list[Range]]:
    """Return the packs that are worth fetching whole, of those that are hinted and unread.

    A pack is hinted if the pack table of a snapshot names it, and unread until its index was read.
    Up to 8 packs of the given chunks count if they have at most 8 MiB each, and up to 256 packs of
    any chunks if they have at most 128 KiB each; if no more than 8 have more, up to 512 KiB, those
    count, too.

    Args:
        store: Knows the sizes of the packs.
        index: Knows which packs are hinted and unread.
        chunks: The chunks that will be read.

    Returns:
        A group of ranges for each pack, to announce to `SupportsReadahead.ahead`; none for a store
        without that ability. A group contains the pack's range twice, because a range is dropped
        once it was read: the first read is for the index, the second one for frames.
    """
    if store.ability(SupportsReadahead) is None:
        return []
    own, others = index.unread_packs(chunks)
    sizes = index.sizes([*own, *others])
    tiny = [name for name, size in sizes.items() if size <= _TINY_PACK_BYTES]
    small = [name for name in own if 0 < sizes.get(name, 0) <= _SMALL_PACK_BYTES]
    few = [name for name in others if _TINY_PACK_BYTES < sizes.get(name, 0) <= _FEW_PACK_BYTES]
    few = few if len(few) <= _MAX_SMALL_PACKS else []
    chosen = dict.fromkeys([*small[:_MAX_SMALL_PACKS], *tiny[:_MAX_TINY_PACKS], *few])
    return [[(name, 0, sizes[name])] * 2 for name in chosen]


def tiny_packs(store: ObjectStore, index: ChunkIndex) -> list[list[Range]]:
    """Return up to 256 hinted and unread packs of at most 128 KiB.

    For callers that read the indexes of all hinted packs, and then perhaps their frames.

    Returns:
        Groups of ranges as those of `small_packs`.
    """
    unread = index.unread_hinted() if store.ability(SupportsReadahead) else []
    sizes = index.sizes(unread)
    tiny = [(name, 0, size) for name, size in sizes.items() if size <= _TINY_PACK_BYTES]
    return [[whole] * 2 for whole in tiny[:_MAX_TINY_PACKS]]


def pack_ends(store: ObjectStore, index: ChunkIndex, packs: Iterable[PackId]) -> list[list[Range]]:
    """Return the ends of the unread ones among these packs.

    A commit puts headers and lists of chunks there, before the index, so that one read gets both.

    Returns:
        Groups of ranges as those of `small_packs`; none if there are many.
    """
    unread = index.unread(packs) if store.ability(SupportsReadahead) else []
    if not 0 < len(unread) <= _MAX_ENDS:
        return []
    sizes = index.sizes(unread)
    return [[(name, max(0, size - END_BYTES), size)] * 2 for name, size in sizes.items()]


def around(index: ChunkIndex, location: Location) -> Range:
    """Return the range of bytes to fetch for a frame.

    In a pack of up to 8 MiB, it covers the blocks that contain the frame, because their other
    frames are those of the chunks that are read next. In a larger pack, or one whose index was not
    read, it is the frame itself.
    """
    name, start, stop = location.range
    size = index.pack_size(location.pack)
    if not stop <= size <= _SMALL_PACK_BYTES:
        return name, start, stop
    first, last = start // _BLOCK_BYTES, -(-stop // _BLOCK_BYTES)
    return name, first * _BLOCK_BYTES, min(last * _BLOCK_BYTES, size)
