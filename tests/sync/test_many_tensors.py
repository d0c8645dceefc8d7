"""Thousands of small tensors: they are compared together, and keep their bits all the same."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from casweights import Publisher
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from casweights.testing.strategies import TORCH_DTYPES, from_bytes
from tests.sync.states import State, copied, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORK = 80  # calls for a tensor that has not changed, by whoever publishes and behind its back

# Others are not compared together: torch normalizes the one, and has no such scalars of the other.
_DTYPES = [
    dtype for dtype in TORCH_DTYPES if not str(dtype).startswith(("torch.bool", "torch.float4"))
]


class Calls:
    """Counts what Python calls, on all threads that are started meanwhile."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, frame: Any, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self.counts[event] += 1


@pytest.fixture
def calls() -> Iterator[Calls]:
    counter = Calls()
    threading.setprofile(counter)
    sys.setprofile(counter)
    yield counter
    sys.setprofile(None)
    threading.setprofile(None)


def scales(count: int) -> State:
    return {f"experts.{n}.scale": torch.full((16,), float(n)) for n in range(count)}


def test_a_tensor_that_did_not_change_is_little_work(calls: Calls) -> None:
    used = []
    for count in (500, 1500):
        state = scales(count)
        with open_store(MemoryStore()) as store, Publisher(store) as publisher:
            for step in range(3):
                calls.counts.clear()
                state["experts.7.scale"][3] = -step
                publisher.publish(state)
                publisher.wait()
            used.append(calls.counts.total())
    assert (used[1] - used[0]) / 1000 < _WORK


@st.composite
def small(draw: st.DrawFn) -> torch.Tensor:
    """A few elements with any bits, in any order of memory."""
    dtype = draw(st.sampled_from(_DTYPES))
    shape = draw(st.sampled_from([(0,), (), (2,), (2, 3)]))
    size = math.prod(shape) * dtype.itemsize
    return from_bytes(draw(st.binary(min_size=size, max_size=size)), dtype, shape)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(states=st.lists(st.lists(small(), min_size=3, max_size=8), min_size=1))
def test_small_tensors_keep_their_bits(states: list[list[torch.Tensor]]) -> None:
    with open_store(MemoryStore()) as store:
        wanted = {}
        with Publisher(store) as publisher:
            for tensors in states:
                for turned in (False, True):  # the second time the same shapes with other strides
                    state = {
                        str(n): tensor.mT.contiguous().mT
                        if turned and tensor.dim() == 2
                        else tensor
                        for n, tensor in enumerate(tensors)
                    }
                    state["0"] = torch.tensor([turned])
                    publisher.publish(state)
                    publisher.wait()
                    assert publisher.version is not None
                    wanted[publisher.version] = copied(state)
        for version, state in wanted.items():
            assert_same_state(store.load(version), state)


def test_many_small_tensors_of_which_some_changed() -> None:
    generator = torch.Generator().manual_seed(3)
    state = scales(700) | {"big": torch.zeros(9000), "empty": torch.zeros(0)}
    with open_store(MemoryStore()) as store:
        wanted = {}
        with Publisher(store) as publisher:
            for count in (0, 1, 30, 700, 0):
                for n in torch.randperm(700, generator=generator)[:count].tolist():
                    state[f"experts.{n}.scale"][n % 16] += 1
                publisher.publish(state)
                version = publisher.wait()
                assert version is not None
                wanted[version.id] = copied(state)
        for version_id, published in wanted.items():
            assert_same_state(store.load(version_id), published)


def test_shapes_values_and_ties_that_change_are_noticed() -> None:
    tensor = torch.ones(4)
    states: list[dict[Any, Any]] = [
        {"a": tensor, "b": tensor, "c": 1},
        {"a": tensor, "b": tensor.clone(), "c": 1},
        {"a": tensor, "b": tensor.clone(), "c": 1.0},
        {"a": tensor, "b": tensor.clone(), "c": True},
        {"a": tensor, "b": tensor.clone(), "c": -0.0},
        {"a": tensor, "b": tensor.clone(), "c": 0.0},
        {"a": tensor, "b": tensor.clone(), "c": [0]},
        {"a": tensor, "b": tensor.clone(), "c": (0,)},
        {"a": tensor, "b": tensor.view(2, 2), "c": (0,)},
        {"a": tensor, "b": tensor.view(2, 2).int(), "c": {0: None}},
        {"a": tensor, "b": tensor.view(2, 2).int(), "c": {"0": None}},
    ]
    with open_store(MemoryStore()) as store, Publisher(store) as publisher:
        for state in states:
            publisher.publish(state)
            version = publisher.wait()
            assert version is not None
            loaded = store.load(version.id)
            assert_same_state(loaded, state)
            assert repr(loaded["c"]) == repr(state["c"])
            assert (loaded["a"] is loaded["b"]) == (state["a"] is state["b"])
