"""Tests that announced ranges are fetched in large pieces, with unchanged results."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st

from casweights.config import KiB, MiB
from casweights.errors import ErrorCode, IntegrityError, NotFoundError, StoreError
from casweights.stores.memory import MemoryStore
from casweights.stores.readahead import ReadaheadStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing import CountingStore, StoreTests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.stores.optional import Range


@cache
def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


class TestReadaheadStore(StoreTests):
    @pytest.fixture
    def store(self) -> ReadaheadStore:
        return ReadaheadStore(MemoryStore(), window=128 * MiB)


@pytest.fixture
def counting() -> CountingStore:
    store = CountingStore(MemoryStore())
    store.put("a", [noise(20 * MiB, 1)])
    store.put("b", [noise(1 * MiB, 2)])
    return store


def frames(name: str, size: int, step: int) -> list[Sequence[Range]]:
    return [[(name, start, min(start + step, size))] for start in range(0, size, step)]


def test_adjacent_ranges_are_fetched_together(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    with store.ahead() as announce:
        announce(frames("a", 20 * MiB, 100 * KiB))
        for [(name, start, stop)] in frames("a", 20 * MiB, 100 * KiB):
            assert store.get(name, start, stop - start) == noise(20 * MiB, 1)[start:stop]
    assert len(counting.reads) <= 6  # a range belongs to the cell that it begins in
    assert counting.read_bytes("a") == 20 * MiB


def test_distant_ranges_are_fetched_separately(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    ranges = [("a", 0, 1000), ("a", 2000, 3000), ("a", 2 * MiB, 2 * MiB + 5)]
    with store.ahead() as announce:
        announce([ranges])
        for name, start, stop in ranges:
            store.get(name, start, stop - start)
    assert sorted(counting.reads) == [("a", 5), ("a", 3000)]


def test_a_range_that_was_not_announced_is_read_directly(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    with store.ahead() as announce:
        announce([[("a", 0, 1000)]])
        assert store.get("a", 500, 1000) == noise(20 * MiB, 1)[500:1500]
        assert store.get("b", 0, 10) == noise(1 * MiB, 2)[:10]
    assert ("a", 1000) in counting.reads
    assert ("b", 10) in counting.reads


def test_a_range_that_is_announced_twice_is_fetched_once(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    with store.ahead() as announce:
        announce([[("a", 0, 1000)], [("b", 0, 1000)], [("a", 0, 1000)]])
        for name in ("a", "b", "a"):
            store.get(name, 0, 1000)
        assert len(counting.reads) == 2
        store.get("a", 0, 1000)  # one read more than announced
    assert len(counting.reads) == 3


def test_the_end_of_the_block_drops_all_fetched_bytes(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    with store.ahead() as announce:
        announce([[("a", 0, 1000)]])
        store.get("a", 0, 500)
    counting.reset()
    store.get("a", 0, 500)
    assert counting.reads == [("a", 500)]
    assert store._held == 0
    assert not store._spans
    assert not store._started


class Held(WrapperStore):
    """Counts the bytes that were read from the store."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.nbytes = 0
        self.lock = threading.Lock()

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        super().readinto(name, start, out)
        with self.lock:
            self.nbytes += len(out)


def test_fetched_bytes_stay_within_the_window() -> None:
    plain = MemoryStore()
    plain.put("a", [bytes(64 * MiB)])
    inner = Held(plain)
    store = ReadaheadStore(inner, window=16 * MiB)
    used = 0
    with store.ahead() as announce:
        announce(frames("a", 64 * MiB, MiB))
        for [(name, start, stop)] in frames("a", 64 * MiB, MiB):
            store.get(name, start, stop - start)
            used += stop - start
            assert inner.nbytes - used <= 17 * MiB
    assert inner.nbytes == 64 * MiB


def test_large_groups_are_fetched_in_small_pieces(counting: CountingStore) -> None:
    plain = MemoryStore()
    for n in range(64):
        plain.put(f"pack{n}", [bytes([n]) * (4 * MiB)])
    counting = CountingStore(plain)
    store = ReadaheadStore(counting, window=32 * MiB)
    groups = [
        [(f"pack{n}", chunk * 64 * KiB, (chunk + 1) * 64 * KiB) for n in range(64)]
        for chunk in range(64)
    ]
    with store.ahead() as announce:
        announce(groups)
        for group in groups:
            for name, start, stop in group:
                assert store.get(name, start, stop - start)[0] == int(name.removeprefix("pack"))
    assert counting.read_bytes("pack") <= 1.1 * 256 * MiB  # hardly anything was dropped unread


def test_the_error_of_a_fetch_is_raised_in_the_reader(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    with store.ahead() as announce:
        announce([[("nothing", 0, 10)], [("b", MiB - 5, MiB + 5)], [("b", 0, 10)]])
        with pytest.raises(NotFoundError):
            store.get("nothing", 0, 10)
        with pytest.raises(IntegrityError):
            store.get("b", MiB - 5, 10)
        assert store.get("b", 0, 10) == noise(1 * MiB, 2)[:10]


class Flaky(WrapperStore):
    """A store whose first read of each object fails."""

    def __init__(self, inner: CountingStore) -> None:
        super().__init__(inner)
        self.failed: set[str] = set()

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        if name not in self.failed:
            self.failed.add(name)
            raise StoreError(ErrorCode.UNREACHABLE, "not now")
        super().readinto(name, start, out)


def test_the_reader_repeats_a_failed_fetch(counting: CountingStore) -> None:
    store = ReadaheadStore(Flaky(counting), window=128 * MiB)
    with store.ahead() as announce:
        announce([[("a", 0, 10)]])
        assert store.get("a", 0, 10) == noise(20 * MiB, 1)[:10]


def test_an_end_answers_reads_inside_of_a_block(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    end, size = store.read_end("b", 1000)
    counting.reset()
    with store.ahead() as announce:
        announce([[("b", size - 900, size - 800), ("b", size - 2000, size - 1900)]])
        assert store.get("b", size - 900, 100) == end[100:200]
        store.get("b", size - 2000, 100)
        assert counting.reads == [("b", 100)]
        assert store.forget("b")
        store.get("b", size - 900, 100)
    assert len(counting.reads) == 2


def test_no_byte_of_an_object_is_read_twice_if_its_end_was_read(counting: CountingStore) -> None:
    """Also of a range that begins before the end and reaches into it."""
    store = ReadaheadStore(counting, window=128 * MiB)
    _, size = store.read_end("b", 200 * KiB + 7)
    ranges = frames("b", size, 3 * KiB)
    with store.ahead() as announce:
        announce(ranges)
        for [(name, start, stop)] in ranges:
            assert store.get(name, start, stop - start) == noise(1 * MiB, 2)[start:stop]
    assert counting.reads == [("b", 200 * KiB + 7), ("b", size - 200 * KiB - 7)]


def test_an_end_is_not_used_outside_of_a_block(counting: CountingStore) -> None:
    """So a verification does not check a copy."""
    store = ReadaheadStore(counting, window=128 * MiB)
    _, size = store.read_end("b", 1000)
    counting.reset()
    store.get("b", size - 900, 100)
    assert counting.reads == [("b", 100)]


def test_few_ends_are_kept(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    store.read_end("b", 1 * MiB)
    store.read_end("a", 3 * MiB)
    assert list(store._ends) == ["b", "a"]
    counting.put("c", [b"content"])
    store.read_end("c", 5)
    assert list(store._ends) == ["a", "c"]
    store.read_end("a", 5 * MiB)
    assert not store._ends
    for n in range(20):
        counting.put(f"o{n}", [b"content"])
        store.read_end(f"o{n}", 5)
    assert list(store._ends) == [f"o{n}" for n in range(4, 20)]


def test_forget_drops_what_was_fetched(counting: CountingStore) -> None:
    store = ReadaheadStore(counting, window=128 * MiB)
    with store.ahead() as announce:
        announce([[("b", 0, 10), ("b", 10, 20)]])
        store.get("b", 0, 10)
        assert store.forget("b")
        assert not store.forget("b")
        counting.reset()
        store.get("b", 10, 10)
    assert counting.reads == [("b", 10)]


@hypothesis.given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 900), st.integers(0, 200)), max_size=4
        ),
        max_size=10,
    ),
    st.integers(0, 2000),
    st.lists(st.integers(1, 1200), max_size=4),
    st.randoms(use_true_random=False),
)
def test_reads_in_any_order_on_several_threads_return_the_right_bytes(
    groups: list[list[tuple[int, int, int]]], window: int, ends: list[int], shuffler: random.Random
) -> None:
    plain = MemoryStore()
    contents = [noise(1100, n) for n in range(4)]
    for n, data in enumerate(contents):
        plain.put(f"{n}", [data])
    store = ReadaheadStore(plain, window=window)
    wanted = [[(f"{n}", start, start + size) for n, start, size in group] for group in groups]
    reads = [place for group in wanted for place in group]
    shuffler.shuffle(reads)
    for n, most in enumerate(ends):
        store.read_end(f"{n}", most)

    def read(place: Range) -> None:
        name, start, stop = place
        assert store.get(name, start, stop - start) == contents[int(name)][start:stop]

    with store.ahead() as announce, ThreadPoolExecutor(3) as pool:
        for n in range(0, len(wanted), 3):
            announce(wanted[n : n + 3])
        list(pool.map(read, reads))
    assert store._held == 0
    assert not store._spans
