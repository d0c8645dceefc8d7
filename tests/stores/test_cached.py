"""The cache on disk in front of a store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from casweights.config import KiB, MiB
from casweights.errors import IntegrityError, NotFoundError
from casweights.stores import cached
from casweights.stores.base import NO_NAMES
from casweights.stores.cached import CachedStore
from casweights.stores.memory import MemoryStore
from casweights.stores.optional import SupportsRefStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing import CountingStore, StoreTests
from tests.stores.cached_folders import DATA, PACK, extents, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from casweights.stores.base import Batch, ObjectStore
    from casweights.system.buffers import Buffer


class TestCachedStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return CachedStore(MemoryStore(), tmp_path / "cache", MiB, "key")


class TestAllIsCached(StoreTests):
    """The same tests with a cache of all objects, at several capacities."""

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
    """A cache of 1 MiB for `objects`, which contains a pack of `DATA`."""
    objects.put(PACK, [DATA])
    return CachedStore(objects, folder, MiB, "key")


def test_bytes_that_were_read_are_not_read_again(
    store: CachedStore, objects: CountingStore
) -> None:
    for _ in range(3):
        assert store.get(PACK, 100, 50) == DATA[100:150]
        assert store.get(PACK, 120, 30) == DATA[120:150]
    assert objects.reads == [(PACK, 50)]
    assert store.get(PACK, 99, 2) == DATA[99:101]
    assert objects.reads == [(PACK, 50), (PACK, 2)]


def test_a_whole_object_is_read_once_and_answers_all_later_reads(
    store: CachedStore, objects: CountingStore
) -> None:
    for _ in range(2):
        assert store.read(PACK, MiB) == DATA
        assert store.get(PACK) == DATA
        assert store.get(PACK, 1000) == DATA[1000:]
        assert store.get(PACK, 5, 7) == DATA[5:12]
    assert objects.reads == [(PACK, len(DATA))]
    with pytest.raises(IntegrityError):
        store.read(PACK, len(DATA) - 1)


def test_another_process_reads_from_the_same_cache(
    store: CachedStore, objects: CountingStore, folder: Path
) -> None:
    store.get(PACK, 0, 100)
    objects.reset()
    assert CachedStore(objects, folder, MiB, "key").get(PACK, 0, 100) == DATA[:100]
    assert objects.reads == []


def test_a_store_with_another_key_does_not_share_extents(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 4)
    other = MemoryStore()
    other.put(PACK, [b"other"])
    assert CachedStore(other, folder, MiB, "another key").get(PACK, 0, 4) == b"othe"


@pytest.mark.parametrize(
    "name", ["refs/heads/main/000000000001.ref", "casweights.json", "packs", "other/packs/a"]
)
def test_objects_that_may_change_are_not_cached(
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


def test_a_failed_read_leaves_nothing_in_the_cache(store: CachedStore, folder: Path) -> None:
    with pytest.raises(NotFoundError):
        store.get("packs/missing", 0, 10)
    with pytest.raises(IntegrityError):
        store.get(PACK, len(DATA) - 1, 2)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["packs/a", "snapshots/a"])
@pytest.mark.parametrize("batch", [False, True])
def test_a_written_object_is_not_read_from_the_inner_store(
    store: CachedStore, objects: CountingStore, name: str, batch: bool
) -> None:
    parts: list[Buffer] = [b"some ", memoryview(b"bytes")]
    assert store.put_all([(name, parts)]) == [True] if batch else store.put(name, parts)
    assert store.get(name) == store.read(name, 100) == b"some bytes"
    assert objects.reads == []


@pytest.mark.parametrize("batch", [False, True])
def test_a_put_of_an_existing_object_does_not_cache_its_own_bytes(
    store: CachedStore, folder: Path, batch: bool
) -> None:
    parts = [b"other bytes"]
    assert not (store.put_all([(PACK, parts)])[0] if batch else store.put(PACK, parts))
    assert store.get(PACK) == DATA
    assert b"other bytes" not in [path.read_bytes() for path in extents(folder).values()]


def test_an_end_is_read_once(store: CachedStore, objects: CountingStore) -> None:
    assert store.read_end(PACK, 100) == (DATA[-100:], len(DATA))
    objects.reset()
    assert store.read_end(PACK, 100) == (DATA[-100:], len(DATA))
    assert store.read_end(PACK, 60) == (DATA[-60:], len(DATA))
    assert objects.reads == []
    assert store.read_end(PACK, 200) == (DATA[-200:], len(DATA))
    assert store.read(PACK, MiB) == DATA


def test_large_writes_are_not_cached(
    store: CachedStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "MAX_WRITTEN", 1000)
    store.put("packs/large", [bytes(500), bytes(501)])
    assert extents(folder) == {}
    store.put("packs/small", [bytes(500), bytes(500)])
    assert list(extents(folder)) == ["0-1000.end"]


def test_objects_that_a_batch_creates_are_cached(
    store: CachedStore, objects: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "MAX_WRITTEN", 100)
    with store.batch(["packs/a", "packs/b", "packs/c"]) as batch:
        batch.put("packs/a", [b"first"])
        assert objects.exists("packs/a")
        batch.put("packs/b", [b"second"])
        batch.put("packs/c", [bytes(101)])
    assert batch.created == {"packs/a", "packs/b", "packs/c"}
    assert [store.get(f"packs/{name}")[:6] for name in "abc"] == [b"first", b"second", bytes(6)]
    assert objects.reads == [("packs/c", 101)]


class BatchStore(WrapperStore):
    """Records its calls for several objects."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.batches: list[str] = []

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        self.batches.append("batch")
        return self.inner.batch(names, assume_absent=assume_absent)

    def delete_all(self, names: Sequence[str]) -> None:
        self.batches.append("delete_all")
        self.inner.delete_all(names)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        self.batches.append("sizes")
        return self.inner.sizes(names)

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        self.batches.append("copy_from")
        self.inner.copy_from(source, names, called)


def test_a_call_for_many_objects_stays_one_call(folder: Path, objects: CountingStore) -> None:
    inner = BatchStore()
    store = CachedStore(inner, folder, MiB, "key")
    objects.put("packs/b", [b"2"])
    assert store.put_all([("packs/a", [b"1"])]) == [True]
    store.copy_from(objects, ["packs/b"])
    assert store.get("packs/b", 0, 1) == b"2"
    assert store.sizes(["packs/b", "packs/c", "packs/a"]) == {"packs/a": 1, "packs/b": 1}
    store.delete_all(["packs/a", "packs/b"])
    assert inner.batches == ["batch", "copy_from", "sizes", "delete_all"]
    assert extents(folder) == {}
    assert list(inner.list()) == []


def test_deleting_an_object_drops_its_extents(store: CachedStore, folder: Path) -> None:
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
    """This includes the second reader that calls `forget`."""
    store.get(PACK, 0, 10)
    others = [CachedStore(objects, folder, MiB, "key") for _ in range(2)]
    for other in others:
        other.get(PACK, 0, 10)
    assert [other.forget(PACK) for other in others] == [True, True]
    assert extents(folder) == {}
    assert not CachedStore(objects, folder, MiB, "key").forget(PACK)


def test_forget_reaches_the_inner_store(folder: Path) -> None:
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
def test_an_extent_of_a_wrong_size_is_not_used(
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


def test_url_capabilities_and_abilities_are_those_of_the_inner_store(
    store: CachedStore, objects: CountingStore
) -> None:
    assert store.url == objects.url
    assert store.capabilities is objects.capabilities
    assert store.ability(SupportsRefStore) is None
    assert store.ability(CountingStore) is objects
