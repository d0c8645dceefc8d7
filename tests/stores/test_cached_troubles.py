"""Tests of a disk cache whose folder or system calls fail, and of threads and forks that use it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from casweights.config import MiB
from casweights.stores import disk_cache
from casweights.stores.base import ObjectStore
from casweights.stores.cached import CachedStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.system.staging import PREFIX
from tests.stores.cached_folders import (
    DATA,
    PACK,
    extents,
    fail,
    fill,
    nbytes,
    reads_as_always,
    unused_since,
)

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.testing import CountingStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "cache"


@pytest.fixture
def store(objects: CountingStore, folder: Path) -> CachedStore:
    """A cache of 1 MiB for `objects`, which contains a pack of `DATA`."""
    objects.put(PACK, [DATA])
    return CachedStore(objects, folder, MiB, "key")


def test_the_folder_is_private(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 10)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_reads_work_if_a_file_is_in_the_way_of_the_cache(store: CachedStore, folder: Path) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_bytes(b"in the way")
    reads_as_always(store)
    assert folder.parent.read_bytes() == b"in the way"


@pytest.mark.parametrize("function", ["mkdir", "open", "rename", "utime", "writev", "listdir"])
@pytest.mark.parametrize("later", [False, True])
def test_reads_work_if_a_system_call_fails(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, later: bool
) -> None:
    if later:
        store.get(PACK, 0, 60)
        unused_since(extents(folder)["0-60"], 1000)
    before = nbytes(folder)
    monkeypatch.setattr(os, function, fail)
    reads_as_always(store)
    monkeypatch.undo()
    if function in ("open", "writev", "rename"):
        assert nbytes(folder) == before, "no half extents"
    assert all(path.stat().st_size for path in extents(folder).values())


def test_reads_work_without_locks(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail)
    reads_as_always(store)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_nothing_is_written_for_a_while_after_an_error(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail)
        store.get(PACK, 0, 10)
    store.get(PACK, 0, 10)
    assert extents(folder) == {}
    assert list(folder.glob(f"{PREFIX}*")) == []
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + disk_cache.PAUSE + 1)
    store.get(PACK, 0, 10)
    assert list(extents(folder)) == ["0-10"]


def test_a_hit_counts_even_if_its_time_cannot_be_updated(
    store: CachedStore, objects: CountingStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.get(PACK, 0, 10)
    unused_since(extents(folder)["0-10"], 1000)
    monkeypatch.setattr(os, "utime", fail)
    assert store.get(PACK, 0, 10) == DATA[:10]
    assert len(objects.reads) == 1


def test_a_deleted_cache_folder_is_created_again(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "PAUSE", 0)
    store.get(PACK, 0, 10)
    shutil.rmtree(folder)
    store.get(PACK, 0, 10)  # this write fails, because the folder is gone
    store.get(PACK, 0, 10)
    assert list(extents(folder)) == ["0-10"]


def test_reads_work_if_nothing_can_be_evicted(
    objects: CountingStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CachedStore(objects, folder, 10_000, "key")
    fill(store, 10, 1000)
    objects.put(PACK, [DATA])
    monkeypatch.setattr(os, "unlink", fail)
    assert store.get(PACK, 0, 1000) == DATA[:1000]
    assert nbytes(folder) == 10_000


def test_errors_of_the_store_are_not_swallowed(folder: Path) -> None:
    class Broken(WrapperStore):
        def readinto(self, name: str, start: int, out: memoryview) -> None:
            fail()

    store = CachedStore(Broken(MemoryStore()), folder, MiB, "key")
    for _ in range(2):  # the failed first read must not block the second one
        with pytest.raises(OSError, match="No space"):
            store.get(PACK, 0, 10)


class SlowStore(WrapperStore):
    """A store whose reads wait for `go` and are counted."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.count = 0

    read = ObjectStore.read

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        self.count += 1
        self.begun.release()
        assert self.go.wait(60)
        super().readinto(name, start, out)


@pytest.mark.parametrize("capacity", [0, MiB])
@pytest.mark.parametrize("whole", [False, True])
def test_threads_that_want_the_same_range_fetch_it_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capacity: int, whole: bool
) -> None:
    inner = SlowStore(MemoryStore())
    inner.put(PACK, [DATA])
    store = CachedStore(inner, folder, capacity, "key")
    waiting = threading.Semaphore(0)

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread() is not threading.main_thread():
                waiting.release()
            return super().wait(timeout)

    monkeypatch.setattr(threading, "Event", Event)
    with ThreadPoolExecutor(8) as pool:
        reads = [
            pool.submit(store.read, PACK, MiB) if whole else pool.submit(store.get, PACK, 5, 50)
            for _ in range(8)
        ]
        for _ in range(7):
            assert waiting.acquire(timeout=60)
        inner.go.set()
        for read in reads:
            assert read.result() == (DATA if whole else DATA[5:55])
    assert inner.count == (1 if capacity else 8)
    assert store._fetches == {}


def test_threads_that_want_different_ranges_do_not_wait(folder: Path) -> None:
    inner = SlowStore(MemoryStore())
    inner.put(PACK, [DATA])
    store = CachedStore(inner, folder, MiB, "key")
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(store.get, PACK, n, 50) for n in range(4)]
        for _ in range(4):
            assert inner.begun.acquire(timeout=60)
        inner.go.set()
        assert [read.result() for read in reads] == [DATA[n : n + 50] for n in range(4)]


def test_many_threads_read_the_right_bytes_through_a_small_cache(
    objects: CountingStore, folder: Path
) -> None:
    objects.put(PACK, [DATA])
    store = CachedStore(objects, folder, 8000, "key")

    def read(n: int) -> None:
        start = n * 37 % 10_000
        size = 1 + n * 101 % 1900
        assert store.get(PACK, start, size) == DATA[start : start + size]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(2000)))
    assert objects.read_bytes(PACK) < sum(1 + n * 101 % 1900 for n in range(2000))
    store.get(PACK, 12_000, 500)
    store = CachedStore(objects, folder, 8000, "key")
    store.get(PACK, 14_000, 500)
    assert 0 < nbytes(folder) <= 8000


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_its_own_drafts(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 10)
    with store._turn(PACK, 20, 10):  # stands for another thread, which the child will not have
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(60)
                assert store.get(PACK, 20, 10) == DATA[20:30]
                status = len(list(folder.glob(f"{PREFIX}*"))) != 2
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert set(extents(folder)) == {"0-10", "20-30"}
    store.get(PACK, 40, 10)
    assert set(extents(folder)) == {"0-10", "20-30", "40-50"}
