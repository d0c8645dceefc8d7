"""Tests of reads of small frames together with their neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.database.nearby import NearbyStore
from casweights.errors import IntegrityError, NotFoundError
from casweights.format.names import pack_name
from casweights.ids import PackId
from casweights.stores.local import LocalStore
from casweights.testing.counting import CountingStore

if TYPE_CHECKING:
    from pathlib import Path

NAME = pack_name(PackId(bytes(32)))
DATA = np.random.default_rng(1).bytes(100_000)
RANGES = [(start, 700) for start in range(0, 99_000, 650)]


@pytest.fixture
def inner(tmp_path: Path) -> CountingStore:
    store = LocalStore(tmp_path / "store")
    store.create()
    store.put(NAME, [DATA])
    return CountingStore(store)


def test_neighbours_are_read_together(inner: CountingStore) -> None:
    store = NearbyStore(inner, lambda _: len(DATA))
    with store.keeping():
        for start, size in RANGES:
            assert store.get(NAME, start, size) == DATA[start : start + size]
        assert len(inner.reads) < 10  # four blocks, and the frames across their ends
        assert store.get(NAME, 5, 50_000) == DATA[5:50_005]
        assert store.get(NAME) == DATA
    calls = len(inner.reads)
    assert store.get(NAME, 0, 10) == DATA[:10]
    assert len(inner.reads) == calls + 1


def test_what_is_kept_ends_with_the_last_reader(inner: CountingStore) -> None:
    store = NearbyStore(inner, lambda _: len(DATA))
    with store.keeping():
        with store.keeping():
            store.get(NAME, 0, 10)
        inner.delete(NAME)
        assert store.get(NAME, 10, 10) == DATA[10:20]
    with store.keeping(), pytest.raises(NotFoundError):
        store.get(NAME, 10, 10)


def test_bytes_that_are_found_damaged_are_read_again(inner: CountingStore, tmp_path: Path) -> None:
    store, path = NearbyStore(inner, lambda _: len(DATA)), tmp_path / "store" / NAME
    with store.keeping():
        path.write_bytes(bytes(len(DATA)))
        assert store.get(NAME, 0, 10) == bytes(10)
        path.write_bytes(DATA)
        assert store.forget(NAME)
        assert store.get(NAME, 0, 10) == DATA[:10]
        assert not inner.forget(NAME)


@pytest.mark.parametrize("size", [0, 50_000, 150_000])
def test_a_pack_of_another_size_is_read_as_far_as_it_goes(inner: CountingStore, size: int) -> None:
    store = NearbyStore(inner, lambda _: size)
    with store.keeping():
        for start, length in RANGES:
            assert store.get(NAME, start, length) == DATA[start : start + length]
        with pytest.raises(IntegrityError):
            store.get(NAME, len(DATA) - 10, 11)


def test_a_checkout_reads_from_few_places(tmp_path: Path) -> None:
    """Each chunk has a chain of its own, through the same versions."""
    inner = CountingStore(LocalStore(tmp_path / "store"))
    random = torch.Generator().manual_seed(2)
    state = {f"w{n}": torch.rand(32 * KiB, generator=random).half() for n in range(8)}
    with casweights.open(inner, create=True, config=StoreConfig(chunk_size=64 * KiB)) as store:
        for _ in range(20):
            for tensor in state.values():
                tensor[torch.randint(32 * KiB, (40,), generator=random)] = 0.5
            store.commit(state)
    with casweights.open(inner) as store:
        inner.reset()
        found = store.load("main")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert len(inner.reads) < 24  # 32 if each frame is read alone
