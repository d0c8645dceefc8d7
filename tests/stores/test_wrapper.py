"""Stores around other stores: still stores."""

from __future__ import annotations

import pytest

from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore, StoreTests


class TestCountingStore(StoreTests):
    @pytest.fixture
    def store(self) -> CountingStore:
        return CountingStore(MemoryStore())


def test_what_is_counted() -> None:
    store = CountingStore(MemoryStore())
    store.put("packs/a", [b"some", b"thing"])
    store.put("packs/a", [b"again"])
    store.put("snapshots/b", [b""])
    store.get("packs/a", 2, 3)
    store.get("packs/a")
    assert store.writes == [("packs/a", 9), ("snapshots/b", 0)]
    assert store.reads == [("packs/a", 3), ("packs/a", 9)]
    assert (store.read_bytes("packs/"), store.read_bytes("snapshots/")) == (12, 0)
    store.reset()
    assert store.reads == store.writes == []
