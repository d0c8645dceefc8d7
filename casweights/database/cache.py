"""A cache of chunks in memory, so that the next version does not have to rebuild its bases."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from casweights.ids import ChunkId


class ChunkCache:
    """Chunks in memory, up to a number of bytes. Safe for use from several threads.

    The order of eviction is the opposite of LRU. Versions come one after the other, so a chunk
    that was used as a base has been superseded by the chunk that is put next. `get` and `readinto`
    therefore make a chunk the first to be evicted, and `put` makes it the last. In this way a
    cache of the size of one model is enough; it does not have to hold two.

    The lock guards the table and the size, and is not held while bytes are copied: `put` reserves
    room, copies without the lock, and then enters the chunk in the table.

    Args:
        capacity: Maximum number of bytes; 0 keeps nothing.
        chunk_size: Bytes of most chunks, for the pool of buffers.
    """

    def __init__(self, capacity: int, chunk_size: int) -> None:
        self._capacity = capacity
        self._buffers = Pool(chunk_size)
        self._lock = threading.Lock()
        self._chunks: OrderedDict[ChunkId, memoryview] = OrderedDict()  # first to evict first
        self._size = 0

    @property
    def is_used(self) -> bool:
        """Whether the cache can hold anything."""
        return self._capacity > 0

    def grow(self, capacity: int) -> None:
        """Let the cache hold this many bytes, if it holds less."""
        with self._lock:
            self._capacity = max(self._capacity, capacity)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._chunks

    def get(self, chunk: ChunkId) -> memoryview | None:
        """Return a chunk's bytes, which the caller must not change; None if it is not cached."""
        with self._lock:
            found = self._chunks.get(chunk)
            if found is not None:
                self._chunks.move_to_end(chunk, last=False)
            return found

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk; return False if it is not cached or has another size."""
        found = self.get(chunk)
        if found is None or len(found) != len(out):
            return False
        out[:] = found
        return True

    def put(self, chunk: ChunkId, data: memoryview) -> None:
        """Keep a copy of a chunk. The caller has checked that the bytes match the ID."""
        if len(data) > self._capacity:
            return
        with self._lock:
            if chunk in self._chunks:
                self._chunks.move_to_end(chunk)
                return
            while self._chunks and self._size + len(data) > self._capacity:
                _, oldest = self._chunks.popitem(last=False)
                self._size -= len(oldest)
            self._size += len(data)  # reserved, so that concurrent calls cannot exceed the limit
        kept = self._buffers.take(len(data))
        kept[:] = data
        with self._lock:
            if self._chunks.setdefault(chunk, kept) is not kept:  # another thread put it first
                self._size -= len(data)
