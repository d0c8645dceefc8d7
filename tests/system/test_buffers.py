"""Tests of buffers."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from casweights.system.buffers import Pool, scratch, uninitialized


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1_000_003])
def test_buffers_are_aligned_and_writable(size: int) -> None:
    buffer = uninitialized(size)
    assert len(buffer) == size
    assert address(buffer) % 64 == 0
    buffer[:] = bytes(size)
    assert buffer == bytes(size)


def test_buffers_of_no_bytes_are_empty() -> None:
    assert len(uninitialized(0)) == len(scratch(0)) == len(Pool(100).take(0)) == 0


def test_each_thread_has_its_own_scratch_buffer() -> None:
    ours = scratch(1000)
    assert address(scratch(500)) == address(ours)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(scratch, 1000).result()
    assert address(theirs) != address(ours)


def test_a_pool_never_returns_a_buffer_that_is_in_use() -> None:
    pool = Pool(1000)
    first, second = pool.take(1000), pool.take(900)
    first[:] = b"a" * 1000
    second[:] = b"b" * 900
    assert first == b"a" * 1000
    assert pool.take(400) is not None  # too small for a buffer of the pool
    assert len(pool.take(5000)) == 5000


def test_a_pool_reuses_a_buffer_after_its_last_view() -> None:
    pool = Pool(1000)
    view = pool.take(1000)
    place = address(view)
    part = view[10:20]
    del view
    gc.collect()
    other = pool.take(1000)
    assert address(other) != place, "a view of a part still exists"
    del part
    gc.collect()
    assert address(pool.take(1000)) == place
