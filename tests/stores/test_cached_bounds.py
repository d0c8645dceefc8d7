"""Tests of the extents that a disk cache keeps and evicts."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

import pytest

from casweights.config import MiB
from casweights.stores.cached import CachedStore
from casweights.system.staging import PREFIX
from tests.stores.cached_folders import (
    DATA,
    PACK,
    extents,
    fill,
    nbytes,
    object_extents,
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


def test_larger_extents_replace_smaller_ones(store: CachedStore, folder: Path) -> None:
    for start, size in ((0, 10), (5, 10), (20, 10), (8, 5000)):
        store.get(PACK, start, size)
    assert set(extents(folder)) == {"0-10", "5-15", "8-5008"}
    store.read(PACK, MiB)
    assert list(extents(folder)) == [f"0-{len(DATA)}.end"]


def test_the_least_recently_used_extents_are_evicted_first(
    objects: CountingStore, folder: Path
) -> None:
    store = CachedStore(objects, folder, 10_000, "key")
    names = fill(store, 10, 1000)
    assert nbytes(folder) == 10_000
    store.get(names[0], 10, 10)  # used again
    objects.put("packs/new", [bytes(1000)])
    store.get("packs/new", 0, 1000)
    here = [name for name in names if object_extents(store, name)]
    assert here == [names[0], *names[3:]]
    assert nbytes(folder) == 9000


def test_the_time_of_use_is_updated_at_most_once_a_minute(store: CachedStore, folder: Path) -> None:
    store.get(PACK, 0, 10)
    extent = extents(folder)["0-10"]
    for seconds, noted in ((10, False), (1000, True), (-1000, True)):
        unused_since(extent, seconds)
        before = extent.stat().st_mtime_ns
        store.get(PACK, 0, 10)
        assert (extent.stat().st_mtime_ns != before) == noted


def test_all_stores_and_processes_share_one_capacity(objects: CountingStore, folder: Path) -> None:
    stores = [CachedStore(objects, folder, 20_000, f"key {n % 3}") for n in range(5)]
    for n in range(200):
        objects.put(f"packs/{n}", [bytes(1000)])
        stores[n % 5].get(f"packs/{n}", 0, 100 + n * 4)
        assert nbytes(folder) <= 20_000 * (1 + 0.05 * 5)
    late = CachedStore(objects, folder, 20_000, "late")
    late.get("packs/0", 0, 1000)
    assert nbytes(folder) <= 20_000
    assert object_extents(late, "packs/0")
    del stores, late
    assert list(folder.glob(f"{PREFIX}*")) == []


def test_evicted_objects_leave_no_folders(objects: CountingStore, folder: Path) -> None:
    store = CachedStore(objects, folder, 1000, "key")
    for n in range(50):
        objects.put(f"packs/{n}", [bytes(200)])
        store.get(f"packs/{n}", 0, 200)
    assert len(list(folder.glob("*/*/*/"))) == nbytes(folder) // 200
    assert 0 < nbytes(folder) <= 1000


def test_an_extent_above_a_quarter_of_the_capacity_is_not_cached(
    objects: CountingStore, folder: Path
) -> None:
    store = CachedStore(objects, folder, 4000, "key")
    objects.put(PACK, [bytes(2000)])
    assert store.get(PACK, 0, 1001) == bytes(1001)
    assert extents(folder) == {}
    assert store.get(PACK, 0, 1000) == bytes(1000)
    assert list(extents(folder)) == ["0-1000"]


def test_a_second_process_neither_waits_for_an_eviction_nor_fills_the_cache(
    objects: CountingStore, folder: Path
) -> None:
    store = CachedStore(objects, folder, 10_000, "key")
    fill(store, 10, 1000)
    objects.put("packs/new", [bytes(1000)])
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # the weakest lock that keeps others from evicting
        assert store.get("packs/new", 0, 1000) == bytes(1000)
        assert nbytes(folder) == 10_000
    store.get("packs/new", 0, 1000)
    assert object_extents(store, "packs/new")
    assert nbytes(folder) <= 10_000
