"""Memory for bytes on their way, without the cost of clearing it first."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_ALIGNMENT = 64
_local = threading.local()


def uninitialized(size: int) -> memoryview:
    """A writable buffer of `size` bytes with undefined content, aligned as torch aligns tensors.

    Raises:
        MemoryError: There is not enough memory.
    """
    memory = _allocate(size + _ALIGNMENT)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].data


class Pool:
    """Buffers that are used again as soon as nobody has a view of them any more.

    Fresh memory costs a page fault and its clearing on first use, about as much as reading into it.

    Args:
        size: Bytes of the pool's buffers.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> memoryview:
        """A buffer of `size` bytes; of the pool, unless it would waste half of one or more."""
        if not self._size // 2 < size <= self._size:
            return uninitialized(size)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _allocate(self._size)
        lease = memory[:size]  # an object of its own: it dies with the last view of its data
        weakref.finalize(lease, self._free.append, memory)
        return lease.data


def scratch(size: int) -> memoryview:
    """The calling thread's own buffer of `size` bytes, valid until it asks again.

    Reusing one saves the page faults of fresh memory, which cost as much as hashing it.
    """
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _local.buffer = uninitialized(size)
    return buffer[:size]


def _allocate(size: int) -> np.ndarray:
    import numpy as np  # verbs that move no data should not wait for this import

    return np.empty(size, np.uint8)  # numpy asks for huge pages: fewer page faults
