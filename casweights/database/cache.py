"""Chunks that stay in memory, so that the next version need not rebuild its bases."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from casweights.ids import ChunkId


class ChunkCache:
    """A limited number of bytes of chunks. May be used from several threads at once.

    Versions come one after the other: what was used has mostly been superseded, by what is put
    next. So a chunk that is used is the first to go, unless it is put once more; a cache that
    holds a whole model is then enough, and need not hold two.

    Args:
        capacity: Bytes to hold; 0 for none.
        chunk_size: Bytes of most chunks.
    """

    def __init__(self, capacity: int, chunk_size: int) -> None:
        self._capacity = capacity
        self._buffers = Pool(chunk_size)
        self._lock = threading.Lock()
        self._chunks: OrderedDict[ChunkId, memoryview] = OrderedDict()  # the first goes first
        self._size = 0

    @property
    def is_used(self) -> bool:
        """See `LocalChunks.is_used`."""
        return self._capacity > 0

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._chunks

    def get(self, chunk: ChunkId) -> memoryview | None:
        """A chunk's bytes, not to be written to; None if it is not here."""
        with self._lock:
            found = self._chunks.get(chunk)
            if found is not None:
                self._chunks.move_to_end(chunk, last=False)
            return found

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """See `LocalChunks.readinto`."""
        found = self.get(chunk)
        if found is None or len(found) != len(out):
            return False
        out[:] = found
        return True

    def put(self, chunk: ChunkId, data: memoryview) -> None:
        """Keep a copy of a chunk, whose ID the caller has checked."""
        if len(data) > self._capacity:
            return
        with self._lock:
            if chunk in self._chunks:
                self._chunks.move_to_end(chunk)
                return
            while self._chunks and self._size + len(data) > self._capacity:
                _, oldest = self._chunks.popitem(last=False)
                self._size -= len(oldest)
            self._size += len(data)  # reserved before the lock is given up
        kept = self._buffers.take(len(data))
        kept[:] = data
        with self._lock:
            if self._chunks.setdefault(chunk, kept) is not kept:
                self._size -= len(data)
