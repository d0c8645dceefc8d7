"""Chunks that were rebuilt a moment ago, of which others are made."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from casweights.config import MiB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database.chain import Chain
    from casweights.format.pack import Location
    from casweights.ids import ChunkId

STRIDE = 64  # frames between two waypoints of a long chain; honest chains are hardly longer
_STRIPES = 64  # locks
_WAYPOINT_BYTES = 16 * MiB  # of chunks kept as waypoints, shared by all chains and threads


class RecentChunks:
    """The chunks that were used last, up to a number of bytes. Safe for use from several threads.

    Args:
        capacity: Bytes of the chunks that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._chunks: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._size = 0
        self._rebuilding = [threading.Lock() for _ in range(_STRIPES)]

    def rebuilding(self, chunk: ChunkId) -> threading.Lock:
        """Return a lock to hold while a chunk is rebuilt, so that other threads wait for it."""
        return self._rebuilding[chunk[0] % _STRIPES]

    def put(self, chunk: ChunkId, data: memoryview) -> None:
        """Keep a copy of a chunk that the caller has checked; drop others to make room."""
        with self._lock:
            if len(data) > self._capacity or chunk in self._chunks:
                return
            self._chunks[chunk] = bytes(data)
            self._size += len(data)
            while self._size > self._capacity:
                self._size -= len(self._chunks.popitem(last=False)[1])

    def get(self, chunk: ChunkId) -> bytes | None:
        """Return a chunk; None if it is not kept."""
        with self._lock:
            if chunk in self._chunks:
                self._chunks.move_to_end(chunk)
            return self._chunks.get(chunk)


class Waypoints(RecentChunks):
    """A cache of chunks from the middle of long chains, at which other chains can begin.

    Without it, reading every chunk of one chain takes time in the square of the chain's length.
    """

    def __init__(self) -> None:
        super().__init__(_WAYPOINT_BYTES)

    def resume(self, chain: Chain, out: memoryview) -> Sequence[Location]:
        """Copy the last waypoint of a chain to `out`; return the frames that follow it.

        Without a waypoint, `out` stays as it is, and all frames are returned.
        """
        if chain.links <= STRIDE:
            return chain.frames
        frames: list[Location] = []
        for location in chain.line():
            found = self.get(location.frame.chunk) if frames else None
            if found is not None and len(found) == len(out):
                out[:] = found
                break
            frames.append(location)
        return frames[::-1]
