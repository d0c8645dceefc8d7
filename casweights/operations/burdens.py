"""Burdens: what the chains of other chunks add to the chain of a chunk that is encoded again."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from casweights.database.chunk_numbers import ChunkNumbers
    from casweights.ids import ChunkId
    from casweights.operations.live_frames import LiveFrames

_UNKNOWN, _NONE = -2, -1  # in place of the number of a leaf


def burdens(
    live: LiveFrames, leaves: Collection[ChunkId], numbers: ChunkNumbers
) -> dict[ChunkId, int]:
    """Return the most stored bytes that live chains have above each of some chunks.

    A chain counts for the first leaf on its way back. Chains with derived frames are left out.

    Args:
        live: The frames that a store needs.
        leaves: The chunks.
        numbers: The numbers of the chunks of the store.
    """
    found: dict[ChunkId, int] = {}
    if not leaves:
        return found
    leaf_below = array("q", [_UNKNOWN]) * len(numbers)  # by the number of a chunk
    above = array("q", [0]) * len(numbers)
    for at in live:
        path: list[tuple[int, int]] = []  # numbers and sizes of chunks without an entry
        chunk: ChunkId | None = at.frame.chunk
        leaf, nbytes = _NONE, 0
        while chunk is not None:
            number = numbers.number(chunk)
            if chunk in leaves:
                leaf = number
                break
            if number >= len(leaf_below):  # of a frame without a row, which are few
                break
            if leaf_below[number] != _UNKNOWN:
                leaf, nbytes = leaf_below[number], above[number]
                break
            frame = live.own(chunk).frame
            path.append((number, frame.size))
            chunk = frame.base
        for number, size in reversed(path):
            nbytes += size
            leaf_below[number], above[number] = leaf, nbytes
        if leaf != _NONE:
            below = numbers.chunk(leaf)
            found[below] = max(found.get(below, 0), nbytes)
    return found
