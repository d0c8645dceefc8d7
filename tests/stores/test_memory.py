"""Tests of the store in memory."""

from __future__ import annotations

import pytest

from casweights.stores.memory import MemoryStore
from casweights.testing import StoreTests


class TestMemoryStore(StoreTests):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


def test_two_stores_share_nothing() -> None:
    one, two = MemoryStore(), MemoryStore()
    one.put("name", [b"x"])
    assert not two.exists("name")
