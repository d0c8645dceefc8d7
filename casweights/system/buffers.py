"""Memory for bytes on their way, without the cost of clearing it first."""

from __future__ import annotations

import mmap
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Buffer: TypeAlias = bytes | bytearray | memoryview

_ALIGNMENT = 64  # bytes; torch's own
_HUGE = 2 << 20  # from here on, memory comes straight from the system, in huge pages
_local = threading.local()


def uninitialized(size: int) -> memoryview:
    """A writable buffer of `size` bytes with undefined content, aligned as torch aligns tensors.

    Raises:
        MemoryError: There is not enough memory.
    """
    if size >= _HUGE:
        return _map(size)
    import numpy as np  # verbs that move no data should not wait for this import

    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].data


def _map(size: int) -> memoryview:
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {size} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):  # a page fault for 2 MiB instead of 512
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def copy(out: memoryview, data: memoryview) -> None:
    """Copy bytes while other threads go on, which assigning views does not let them."""
    import numpy as np

    np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(data, np.uint8))


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
        import numpy as np

        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.frombuffer(uninitialized(self._size), np.uint8)
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
