"""The cache on disk in front of a store."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from casweights.config import KiB, MiB
from casweights.errors import IntegrityError, NotFoundError, UnsupportedError
from casweights.stores import cached, diskcache
from casweights.stores.base import ObjectStore
from casweights.stores.cached import CachedStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.system.staging import PREFIX
from casweights.testing import CountingStore, StoreTests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import NoReturn

    from casweights.stores.base import Content, Parts
    from casweights.system.buffers import Buffer

PACK = "packs/" + "0f" * 32
DATA = bytes(range(256)) * 64


class TestCachedStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return CachedStore(MemoryStore(), tmp_path / "cache", MiB, "key")


class TestAllIsCached(StoreTests):
    """The same with whatever names the tests choose, at capacities of much and little."""

    @pytest.fixture(params=[0, 40, 256 * KiB, 64 * MiB])
    def capacity(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    @pytest.fixture
    def inner(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def again(
        self, inner: MemoryStore, tmp_path: Path, capacity: int, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[], ObjectStore]:
        monkeypatch.setattr(cached, "CACHED_PREFIXES", ("",))
        return lambda: CachedStore(inner, tmp_path / "cache", capacity, "key")

    @pytest.fixture
    def store(self, again: Callable[[], ObjectStore]) -> ObjectStore:
        return again()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "cache"


@pytest.fixture
def store(objects: CountingStore, folder: Path) -> CachedStore:
    """A cache of a megabyte over `objects`, which has a pack of `DATA`."""
    objects.put(PACK, [DATA])
    return CachedStore(objects, folder, MiB, "key")


def extents(folder: Path) -> dict[str, Path]:
    """The cached extents by their range."""
    return {path.name: path for path in folder.rglob("*-*") if path.is_file()}


def nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def unused_since(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def fail(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_read_is_not_read_again(store: CachedStore, objects: CountingStore) -> None:
    for _ in range(3):
        assert store.get(PACK, 100, 50) == DATA[100:150]
        assert store.get(PACK, 120, 30) == DATA[120:150]
    assert objects.reads == [(PACK, 50)]
    assert store.get(PACK, 99, 2) == DATA[99:101]
    assert objects.reads == [(PACK, 50), (PACK, 2)]


def test_whole_objects(store: CachedStore, objects: CountingStore) -> None:
    for _ in range(2):
        assert store.read(PACK, MiB) == DATA
        assert store.get(PACK) == DATA
        assert store.get(PACK, 1000) == DATA[1000:]
        assert store.get(PACK, 5, 7) == DATA[5:12]
    assert objects.reads == [(PACK, len(DATA))]
    with pytest.raises(IntegrityError):
        store.read(PACK, len(DATA) - 1)


def test_other_processes_share_it(store: CachedStore, objects: CountingStore, folder: Path) -> None:
    store.get(PACK, 0, 100)
    objects.reset()
    assert CachedStore(objects, folder, MiB, "key").get(PACK, 0, 100) == DATA[:100]
    assert objects.reads == []


def test_other_stores_do_not(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 4)
    other = MemoryStore()
    other.put(PACK, [b"other"])
    assert CachedStore(other, folder, MiB, "another key").get(PACK, 0, 4) == b"othe"


@pytest.mark.parametrize(
    "name", ["refs/heads/main/000000000001.ref", "casweights.json", "packs", "other/packs/a"]
)
def test_what_may_change_is_not_cached(
    store: CachedStore, objects: CountingStore, folder: Path, name: str
) -> None:
    store.put(name, [b"first"])
    store.put_all([(name, [b"first"])])
    assert store.get(name, 0, 5) == store.get(name) == store.read(name, 10) == b"first"
    assert len(objects.reads) == 3
    objects.delete(name)
    objects.put(name, [b"later"])
    assert store.get(name, 0, 5) == store.get(name) == store.read(name, 10) == b"later"
    assert not folder.exists()


def test_only_reads_are_answered_from_the_cache(store: CachedStore, objects: CountingStore) -> None:
    store.read(PACK, MiB)
    objects.delete(PACK)
    assert store.get(PACK) == store.read(PACK, MiB) == DATA
    assert not store.exists(PACK)
    assert list(store.list()) == []
    with pytest.raises(NotFoundError):
        store.size(PACK)


def test_a_missing_object_leaves_nothing(store: CachedStore, folder: Path) -> None:
    with pytest.raises(NotFoundError):
        store.get("packs/missing", 0, 10)
    with pytest.raises(IntegrityError):
        store.get(PACK, len(DATA) - 1, 2)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["packs/a", "snapshots/a"])
@pytest.mark.parametrize("batch", [False, True])
def test_what_was_written_is_not_read(
    store: CachedStore, objects: CountingStore, name: str, batch: bool
) -> None:
    parts: list[Buffer] = [b"some ", memoryview(b"bytes")]
    assert store.put_all([(name, parts)]) == [True] if batch else store.put(name, parts)
    assert store.get(name) == store.read(name, 100) == b"some bytes"
    assert objects.reads == []


@pytest.mark.parametrize("batch", [False, True])
def test_what_others_wrote_is_not_taken_from_us(
    store: CachedStore, folder: Path, batch: bool
) -> None:
    parts = [b"not what is there"]
    assert not (store.put_all([(PACK, parts)])[0] if batch else store.put(PACK, parts))
    assert store.get(PACK) == DATA
    assert b"not what is there" not in [path.read_bytes() for path in extents(folder).values()]


def test_large_writes_are_not_kept(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "MAX_WRITTEN", 1000)
    store.put("packs/large", [bytes(500), bytes(501)])
    assert extents(folder) == {}
    store.put("packs/small", [bytes(500), bytes(500)])
    assert list(extents(folder)) == ["0-1000.whole"]


def test_parts_that_come_late(
    store: CachedStore, objects: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function for the parts is called when those ahead are there."""
    monkeypatch.setattr(cached, "MAX_WRITTEN", 100)
    seen: list[bool] = []

    def make() -> list[Buffer]:
        seen.append(objects.exists("packs/a"))
        return [b"second"]

    batch: list[tuple[str, Content]] = [
        ("packs/a", [b"first"]),
        ("packs/b", make),
        ("packs/c", lambda: [bytes(101)]),
    ]
    assert store.put_all(batch) == [True] * 3
    assert seen == [True]
    assert [store.get(f"packs/{name}")[:6] for name in "abc"] == [b"first", b"second", bytes(6)]
    assert objects.reads == [("packs/c", 101)]


class BatchStore(WrapperStore):
    """Takes note of batches."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.batches: list[str] = []

    def put_all(
        self,
        objects: Sequence[tuple[str, Content]],
        soon: Sequence[Parts] = (),
        *,
        new: bool = False,
    ) -> list[bool]:
        self.batches.append("put_all")
        assert not any(callable(content) for _, content in objects), "would be a batch for each"
        return self.inner.put_all(objects, soon, new=new)

    def delete_all(self, names: Sequence[str]) -> None:
        self.batches.append("delete_all")
        self.inner.delete_all(names)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        self.batches.append("sizes")
        return self.inner.sizes(names)

    def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
        self.batches.append("copy_from")
        self.inner.copy_from(source, names)


def test_batches_stay_batches(folder: Path, objects: CountingStore) -> None:
    inner = BatchStore()
    store = CachedStore(inner, folder, MiB, "key")
    objects.put("packs/b", [b"2"])
    assert store.put_all([("packs/a", [b"1"])]) == [True]
    store.copy_from(objects, ["packs/b"])
    assert store.get("packs/b", 0, 1) == b"2"
    assert store.sizes(["packs/b", "packs/c", "packs/a"]) == {"packs/a": 1, "packs/b": 1}
    store.delete_all(["packs/a", "packs/b"])
    assert inner.batches == ["put_all", "copy_from", "sizes", "delete_all"]
    assert extents(folder) == {}
    assert list(inner.list()) == []


def test_delete_drops(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 10)
    store.get(PACK, 20, 10)
    store.delete(PACK)
    assert extents(folder) == {}
    with pytest.raises(NotFoundError):
        store.get(PACK, 0, 10)


def test_damaged_bytes_are_gone_once_forgotten(
    store: CachedStore, objects: CountingStore, folder: Path
) -> None:
    store.get(PACK, 0, 10)
    extents(folder)["0-10"].write_bytes(b"0123456789")
    assert store.get(PACK, 0, 10) == b"0123456789"
    assert store.forget(PACK)
    assert store.get(PACK, 0, 10) == DATA[:10]
    assert len(objects.reads) == 2


def test_every_reader_of_damaged_bytes_may_try_again(
    store: CachedStore, objects: CountingStore, folder: Path
) -> None:
    """Also the one that comes second to `forget` them."""
    store.get(PACK, 0, 10)
    others = [CachedStore(objects, folder, MiB, "key") for _ in range(2)]
    for other in others:
        other.get(PACK, 0, 10)
    assert [other.forget(PACK) for other in others] == [True, True]
    assert extents(folder) == {}
    assert not CachedStore(objects, folder, MiB, "key").forget(PACK)


def test_the_store_behind_forgets_too(folder: Path) -> None:
    forgotten = []

    class Forgetful(WrapperStore):
        def forget(self, name: str) -> bool:
            forgotten.append(name)
            return name == "packs/a"

    store = CachedStore(Forgetful(MemoryStore()), folder, MiB, "key")
    store.put("packs/b", [b"x"])
    assert [store.forget(name) for name in ("packs/a", "packs/b", "refs/c")] == [True, True, False]
    assert forgotten == ["packs/a", "packs/b", "refs/c"]


def test_damage_that_cannot_be_removed_is_not_read_again(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.read(PACK, MiB)
    (extent,) = extents(folder).values()
    extent.write_bytes(b"?" * len(DATA))
    monkeypatch.setattr(os, "unlink", fail)
    assert store.forget(PACK)
    assert store.get(PACK) == store.get(PACK, 0, len(DATA)) == DATA


@pytest.mark.parametrize("size", [0, 9, 11])
def test_an_extent_of_another_size_is_none(
    store: CachedStore, objects: CountingStore, folder: Path, size: int
) -> None:
    store.get(PACK, 0, 10)
    extents(folder)["0-10"].write_bytes(b"?" * size)
    assert store.get(PACK, 0, 5) == DATA[:5]
    assert list(extents(folder)) == ["0-5"]
    assert store.get(PACK, 0, 10) == DATA[:10]
    assert len(objects.reads) == 3


def test_foreign_files_are_left_alone(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 10)
    foreign = extents(folder)["0-10"].parent / "README"
    foreign.write_bytes(b"not ours")
    assert store.get(PACK, 3, 4) == DATA[3:7]
    store.delete(PACK)
    assert foreign.exists()


def test_larger_extents_replace_smaller_ones(store: CachedStore, folder: Path) -> None:
    for start, size in ((0, 10), (5, 10), (20, 10), (8, 5000)):
        store.get(PACK, start, size)
    assert set(extents(folder)) == {"0-10", "5-15", "8-5008"}
    store.read(PACK, MiB)
    assert list(extents(folder)) == [f"0-{len(DATA)}.whole"]


def fill(store: CachedStore, count: int, size: int) -> list[str]:
    """Read the one range of each of so many objects, and so that it is known in which order."""
    names = [f"packs/{n:02}" for n in range(count)]
    for name in names:
        store.inner.put(name, [name.encode() * size])
    for age, name in enumerate(names):
        store.get(name, 0, size)
        (extent,) = _object_extents(store, name)
        unused_since(extent, 1000 * (count - age))
    return names


def _object_extents(store: CachedStore, name: str) -> list[Path]:
    folder = store._cache._object_folder(name)
    return list(folder.iterdir()) if folder.is_dir() else []


def test_what_was_not_used_for_longest_goes_first(objects: CountingStore, folder: Path) -> None:
    store = CachedStore(objects, folder, 10_000, "key")
    names = fill(store, 10, 1000)
    assert nbytes(folder) == 10_000
    store.get(names[0], 10, 10)  # used again
    objects.put("packs/new", [bytes(1000)])
    store.get("packs/new", 0, 1000)
    here = [name for name in names if _object_extents(store, name)]
    assert here == [names[0], *names[3:]]
    assert nbytes(folder) == 9000


def test_a_hit_is_noted_once_a_minute(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 10)
    extent = extents(folder)["0-10"]
    for seconds, noted in ((10, False), (1000, True), (-1000, True)):
        unused_since(extent, seconds)
        before = extent.stat().st_mtime_ns
        store.get(PACK, 0, 10)
        assert (extent.stat().st_mtime_ns != before) == noted


def test_the_bound_is_for_all_stores_and_processes(objects: CountingStore, folder: Path) -> None:
    stores = [CachedStore(objects, folder, 20_000, f"key {n % 3}") for n in range(5)]
    for n in range(200):
        objects.put(f"packs/{n}", [bytes(1000)])
        stores[n % 5].get(f"packs/{n}", 0, 100 + n * 4)
        assert nbytes(folder) <= 20_000 * (1 + 0.05 * 5)
    late = CachedStore(objects, folder, 20_000, "late")
    late.get("packs/0", 0, 1000)
    assert nbytes(folder) <= 20_000
    assert _object_extents(late, "packs/0")
    del stores, late
    assert list(folder.glob(f"{PREFIX}*")) == []


def test_evicted_objects_leave_no_folders(objects: CountingStore, folder: Path) -> None:
    store = CachedStore(objects, folder, 1000, "key")
    for n in range(50):
        objects.put(f"packs/{n}", [bytes(200)])
        store.get(f"packs/{n}", 0, 200)
    assert len(list(folder.glob("*/*/*/"))) == nbytes(folder) // 200
    assert 0 < nbytes(folder) <= 1000


def test_one_extent_does_not_take_all_the_room(objects: CountingStore, folder: Path) -> None:
    store = CachedStore(objects, folder, 4000, "key")
    objects.put(PACK, [bytes(2000)])
    assert store.get(PACK, 0, 1001) == bytes(1001)
    assert extents(folder) == {}
    assert store.get(PACK, 0, 1000) == bytes(1000)
    assert list(extents(folder)) == ["0-1000"]


def test_one_at_a_time_evicts(objects: CountingStore, folder: Path) -> None:
    """Who comes second neither waits nor adds to what is too much already."""
    store = CachedStore(objects, folder, 10_000, "key")
    fill(store, 10, 1000)
    objects.put("packs/new", [bytes(1000)])
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # the weakest that keeps others from evicting
        assert store.get("packs/new", 0, 1000) == bytes(1000)
        assert nbytes(folder) == 10_000
    store.get("packs/new", 0, 1000)
    assert _object_extents(store, "packs/new")
    assert nbytes(folder) <= 10_000


def test_the_folder_is_private(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 10)
    assert folder.stat().st_mode & 0o777 == 0o700


def reads_as_always(store: CachedStore) -> None:
    for _ in range(2):
        assert store.get(PACK, 5, 50) == DATA[5:55]
        assert store.get(PACK) == store.read(PACK, MiB) == DATA
    store.put("packs/new", [b"new"])
    assert store.get("packs/new") == b"new"
    store.forget("packs/new")
    store.delete("packs/new")
    store.delete("packs/never")
    assert not store.exists("packs/new")


def test_a_file_in_the_way(store: CachedStore, folder: Path) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_bytes(b"in the way")
    reads_as_always(store)
    assert folder.parent.read_bytes() == b"in the way"


@pytest.mark.parametrize("function", ["mkdir", "open", "rename", "utime", "writev", "listdir"])
@pytest.mark.parametrize("later", [False, True])
def test_a_system_that_refuses(
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


def test_no_locks(store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fail)
    reads_as_always(store)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_no_writes_for_a_while_after_an_error(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail)
        store.get(PACK, 0, 10)
    store.get(PACK, 0, 10)
    assert extents(folder) == {}
    assert list(folder.glob(f"{PREFIX}*")) == []
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + diskcache.PAUSE + 1)
    store.get(PACK, 0, 10)
    assert list(extents(folder)) == ["0-10"]


def test_a_hit_that_cannot_be_noted(
    store: CachedStore, objects: CountingStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.get(PACK, 0, 10)
    unused_since(extents(folder)["0-10"], 1000)
    monkeypatch.setattr(os, "utime", fail)
    assert store.get(PACK, 0, 10) == DATA[:10]
    assert len(objects.reads) == 1


def test_a_folder_that_vanishes(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskcache, "PAUSE", 0)
    store.get(PACK, 0, 10)
    shutil.rmtree(folder)
    store.get(PACK, 0, 10)  # notices
    store.get(PACK, 0, 10)
    assert list(extents(folder)) == ["0-10"]


def test_what_cannot_be_evicted(
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
    for _ in range(2):  # and whoever waits for the first one to be done is not left waiting
        with pytest.raises(OSError, match="No space"):
            store.get(PACK, 0, 10)


class SlowStore(WrapperStore):
    """Its reads wait for `go`, and count."""

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
def test_threads_that_want_the_same_fetch_it_once(
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


def test_threads_that_want_different_things_do_not_wait(folder: Path) -> None:
    inner = SlowStore(MemoryStore())
    inner.put(PACK, [DATA])
    store = CachedStore(inner, folder, MiB, "key")
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(store.get, PACK, n, 50) for n in range(4)]
        for _ in range(4):
            assert inner.begun.acquire(timeout=60)
        inner.go.set()
        assert [read.result() for read in reads] == [DATA[n : n + 50] for n in range(4)]


def test_many_threads_in_a_small_cache(objects: CountingStore, folder: Path) -> None:
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
    with store._turn(PACK, 20, 10):  # as another thread might, which the child will not have
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


def test_it_is_the_store_behind(store: CachedStore, objects: CountingStore) -> None:
    assert store.url == objects.url
    assert store.capabilities is objects.capabilities
    with pytest.raises(UnsupportedError, match="elsewhere"):
        store.ref_store("elsewhere", "ab" * 16)
