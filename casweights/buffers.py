"""Memory for bytes on their way, without the cost of clearing it first."""

from __future__ import annotations

import threading

import numpy as np

_local = threading.local()


def uninitialized(size: int) -> memoryview:
    """A writable buffer of `size` bytes with undefined content."""
    return np.empty(size, np.uint8).data


def scratch(size: int) -> memoryview:
    """The calling thread's own buffer of `size` bytes, valid until it asks again.

    Reusing one saves the page faults of fresh memory, which cost as much as hashing it.
    """
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _local.buffer = uninitialized(size)
    return buffer[:size]
