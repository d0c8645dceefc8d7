"""The cache of chunks in memory: eviction, and what trainers and replicas save with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.database.cache import ChunkCache
from casweights.errors import ErrorCode, InvalidInputError
from casweights.ids import ChunkId
from casweights.operations.shortcuts import Schedule
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, history

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore

CONFIG = StoreConfig(chunk_size=CHUNK)


def chunk_id(n: int) -> ChunkId:
    return ChunkId(bytes([n]) * 32)


def data(n: int, size: int = 10) -> memoryview:
    return memoryview(bytes([n]) * size)


def held(cache: ChunkCache) -> list[int]:
    return [n for n in range(10) if chunk_id(n) in cache]


def test_the_chunk_that_was_put_first_is_evicted_first() -> None:
    cache = ChunkCache(30, 10)
    for n in range(5):
        cache.put(chunk_id(n), data(n))
    assert held(cache) == [2, 3, 4]
    assert cache.get(chunk_id(3)) == data(3)
    assert cache.get(chunk_id(0)) is None


def test_a_used_chunk_is_evicted_first_unless_it_is_put_again() -> None:
    cache = ChunkCache(30, 10)
    for n in range(3):
        cache.put(chunk_id(n), data(n))
    cache.get(chunk_id(2))
    cache.put(chunk_id(3), data(3))
    assert held(cache) == [0, 1, 3]
    cache.get(chunk_id(3))
    cache.put(chunk_id(3), data(3))
    cache.put(chunk_id(4), data(4))
    assert held(cache) == [1, 3, 4]


def test_the_cache_keeps_a_copy_of_the_bytes() -> None:
    cache, original = ChunkCache(30, 10), bytearray(10)
    cache.put(chunk_id(0), memoryview(original))
    original[:] = b"overwritte"
    out = bytearray(10)
    assert cache.readinto(chunk_id(0), memoryview(out))
    assert out == bytes(10)


def test_chunks_beyond_the_capacity_are_not_kept_and_other_sizes_not_read() -> None:
    cache = ChunkCache(30, 10)
    cache.put(chunk_id(0), data(0, 31))
    assert held(cache) == []
    cache.put(chunk_id(0), data(0, 30))
    assert not cache.readinto(chunk_id(0), memoryview(bytearray(29)))
    nothing = ChunkCache(0, 10)
    nothing.put(chunk_id(0), data(0))
    assert held(nothing) == []


def test_a_negative_cache_size_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        casweights.open("memory://", create=True, cache_size=-1)
    assert caught.value.code == ErrorCode.BAD_ARGUMENT


def filled(objects: ObjectStore, versions: int) -> None:
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        for state in history(versions, 0.01):
            repo.commit(state)


@pytest.fixture
def no_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only bytes call for shortcuts, whose bases a cache of one version does not hold."""
    monkeypatch.setattr(Schedule, "passed", lambda *_: None)


@pytest.mark.usefixtures("no_schedule")
def test_a_trainer_with_a_cache_reads_no_pack() -> None:
    objects = CountingStore(MemoryStore())
    with casweights.open(objects, create=True, config=CONFIG, cache_size=2 * CHUNK) as repo:
        for state in history(10, 0.01):
            repo.commit(state)
        assert objects.read_bytes("packs/", "snapshots/") == 0
        assert repo.stats().encodings == {"planes": 2, "sparse": 18}


@pytest.mark.usefixtures("packs_apart", "no_schedule")
def test_a_replica_with_a_cache_reads_only_the_new_differences() -> None:
    objects = CountingStore(MemoryStore())
    filled(objects, 10)
    # Where reads are cheap, small frames are read together with their neighbours.
    objects.capabilities = replace(objects.capabilities, cheap_reads=False)
    states = list(history(10, 0.01))
    with casweights.open(objects, cache_size=2 * CHUNK) as repo:
        stats = repo.stats()
        for n in range(10):
            objects.reset()
            assert_same_state(repo.load(f"main~{9 - n}"), states[n])
            assert objects.read_bytes("packs/") == stats.versions[n].stored_bytes


def test_a_cache_smaller_than_a_version_still_loads_every_version() -> None:
    objects = CountingStore(MemoryStore())
    filled(objects, 10)
    states = list(history(10, 0.01))
    with casweights.open(objects, cache_size=CHUNK) as repo:
        for n in range(10):
            assert_same_state(repo.load(f"main~{9 - n}"), states[n])
