"""`FaultyStore` fails at the chosen calls, and is an ordinary store otherwise."""

from __future__ import annotations

import pytest

from casweights import ErrorCode, StoreError
from casweights.stores.memory import MemoryStore
from casweights.testing import StoreTests
from casweights.testing.faults import Fault, FaultyStore


class TestFaultyStoreWithoutFaults(StoreTests):
    @pytest.fixture
    def store(self) -> FaultyStore:
        return FaultyStore(MemoryStore())


def test_fault_happens_once_and_before_its_call() -> None:
    store = FaultyStore(MemoryStore(), [Fault(method="put", call=2)])
    assert store.put("a", [b"1"])
    with pytest.raises(StoreError) as caught:
        store.put("b", [b"2"])
    assert caught.value.code is ErrorCode.NO_SPACE
    assert not store.exists("b")
    assert store.put("b", [b"2"])
    assert store.unused == []


def test_fault_after_its_call_loses_only_the_result() -> None:
    store = FaultyStore(MemoryStore(), [Fault(method="put", call=1, after=True)])
    with pytest.raises(StoreError):
        store.put("a", [b"1"])
    assert store.get("a") == b"1"


def test_fault_without_a_method_counts_all_calls() -> None:
    """Each call of the caller counts once, also if the inner store makes several of it."""
    store = FaultyStore(MemoryStore(), [Fault(call=4), Fault(method="delete", call=9)])
    store.put("a", [b"1"])
    store.get("a")
    list(store.list())
    with pytest.raises(StoreError):
        store.exists("a")
    calls = [("put", "a"), ("get", "a"), ("list", ""), ("exists", "a")]
    assert store.calls == calls
    assert store.unused == [Fault(method="delete", call=9)]


def test_action_may_be_any_function() -> None:
    happened: list[str] = []
    store = FaultyStore(MemoryStore(), [Fault(call=1, action=lambda: happened.append("it"))])
    assert store.put("a", [b"1"])
    assert happened == ["it"]
