"""Buffers for bytes in transit, without the cost of clearing memory first."""

from __future__ import annotations

import mmap
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Buffer: TypeAlias = bytes | bytearray | memoryview

_ALIGNMENT = 64  # bytes; torch aligns its tensors alike
_HUGE = 2 << 20  # bytes; buffers of at least this size are mapped directly, in huge pages
_local = threading.local()


def uninitialized(size: int) -> memoryview:
    """Return a writable buffer of `size` bytes with undefined content, aligned to 64 bytes.

    Raises:
        MemoryError: There is not enough memory.
    """
    if size >= _HUGE:
        return _map(size)
    import numpy as np  # commands that move no data must not wait for this import

    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].data


def _map(size: int) -> memoryview:
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {size} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):  # one page fault per 2 MiB instead of 512
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def copy(out: memoryview, data: memoryview) -> None:
    """Copy `data` to `out` without holding the GIL, which an assignment of views would hold."""
    import numpy as np

    np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(data, np.uint8))


def is_equal(one: memoryview, other: memoryview) -> bool:
    """Whether two buffers hold the same bytes, much faster than a comparison of views."""
    import numpy as np

    return bool(np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)))


class Pool:
    """Buffers that are reused once no view of them exists.

    The first use of fresh memory costs page faults and clearing, about as much as reading into it.

    Args:
        size: Size of the pool's buffers in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> memoryview:
        """Return a writable buffer of `size` bytes with undefined content.

        It comes from the pool if it uses more than half of a pool buffer, and is fresh otherwise.
        """
        if not self._size // 2 < size <= self._size:
            return uninitialized(size)
        import numpy as np

        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.frombuffer(uninitialized(self._size), np.uint8)
        lease = memory[:size]  # a separate array: it is freed with the last view of its data
        weakref.finalize(lease, self._free.append, memory)
        return lease.data


def scratch(size: int) -> memoryview:
    """Return a buffer of `size` bytes that belongs to the calling thread.

    It is valid until the thread's next call, which returns the same memory. Reuse saves the page
    faults of fresh memory, which cost as much as hashing it.
    """
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _local.buffer = uninitialized(size)
    return buffer[:size]
