"""Thousands of small tensors: they are compared in batches, and their bits are kept exactly."""

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

import casweights
from casweights import Publisher, Subscriber
from casweights.stores.memory import MemoryStore
from casweights.sync import state_copy, tensor_groups
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from casweights.testing.strategies import TORCH_DTYPES, from_bytes
from tests.lengths import examples
from tests.sync.states import State, copied, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Calls for a tensor that has not changed, on the caller's thread and in the background.
_WORK, _REPLICA_WORK = 80, 100
_COUNTS = 200, 400  # tensors; the one that changes shares its chunk with the same 57 of both
_MAX_STEP = 4096  # stored bytes of a step that changes three of 20,000 tensors


class Calls:
    """Counts calls of functions, on this thread and all that are started during the count."""

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


def flags(count: int) -> State:
    return {f"experts.{n}.mask": torch.full((16,), n % 2 == 0) for n in range(count)}


def steps(count: int) -> State:
    """The state of an optimizer with step numbers as tensors and the rate as a number."""
    moments = {n: {"step": torch.tensor(0.0)} for n in range(count)}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": list(range(count))}]}


def counted(count: int) -> State:
    return {"state": {n: {"step": 0, "exp_avg": torch.zeros(16)} for n in range(count)}}


def advance(state: State, step: int) -> None:
    """Change a tensor of a short bundle, or the step numbers, or the rate."""
    if "experts.1.scale" in state:
        state["experts.1.scale"][3] = -step
    elif "experts.1.mask" in state:
        state["experts.1.mask"][3] = step % 2 == 0
    elif "param_groups" in state:
        state["param_groups"][0]["lr"] *= 0.9
    else:
        for moments in state["state"].values():
            moments["step"] = step


@pytest.mark.parametrize(
    ("make", "cast", "on_host"),
    [
        (scales, {}, True),
        (scales, {}, False),
        (scales, {"*": torch.bfloat16}, True),
        (flags, {}, True),
        (steps, {}, True),
        (counted, {}, True),
    ],
)
def test_an_unchanged_tensor_needs_few_calls(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[int], State],
    cast: dict[str, torch.dtype],
    on_host: bool,
) -> None:
    pretend_device(monkeypatch, on_host=on_host)
    used = []
    for count in _COUNTS:
        state = make(count)
        with open_store(MemoryStore()) as store, Publisher(store, cast=cast) as publisher:
            for step in range(3):
                calls.counts.clear()
                advance(state, step)
                publisher.publish(state)
                publisher.wait()
            used.append(calls.counts.total())
    assert (used[1] - used[0]) / 200 < _WORK


def test_an_unchanged_tensor_of_a_replica_needs_few_calls(calls: Calls) -> None:
    used = []
    for count in _COUNTS:
        state = scales(count)
        live = copied(state)
        with open_store(MemoryStore()) as store, Subscriber(store) as subscriber:
            for step in range(3):
                advance(state, step)
                store.commit(state)
                calls.counts.clear()
                subscriber.sync(live)
        used.append(calls.counts.total())
        assert_same_state(live, state)
    assert (used[1] - used[0]) / 200 < _REPLICA_WORK


def test_a_step_that_changes_three_of_many_tensors_is_a_few_bytes() -> None:
    state = scales(20_000)
    objects = CountingStore(MemoryStore())
    with casweights.open(objects, create=True, workers=2) as store:
        live = copied(state)
        with Publisher(store) as publisher, Subscriber(store) as subscriber:
            publisher.publish(state)
            publisher.wait()
            subscriber.sync(live)
            for step in range(2):
                objects.reset()
                for n in (5, 9_000, 17_000):
                    state[f"experts.{n}.scale"][step] += 1
                publisher.publish(state)
                publisher.wait()
                assert sum(nbytes for _, nbytes in objects.writes) < _MAX_STEP
                stats = subscriber.sync()
                assert stats.changed_elements == 3
                assert stats.fetched_bytes < 200
        assert_same_state(live, state)


def pretend_device(monkeypatch: pytest.MonkeyPatch, *, on_host: bool) -> None:
    """Treat tensors on the host as if they were on an accelerator, unless `on_host`."""
    for module in (tensor_groups, state_copy):
        monkeypatch.setattr(module, "is_on_host", lambda _: on_host)


@st.composite
def small(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of a few elements with any bits, including NaN."""
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    packed = "float4" in str(dtype)
    shape = draw(st.sampled_from([(0,), (2,) if packed else (), (2,), (2, 3), (3, 40)]))
    size = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size) | st.just(b"\xff" * size))
    tensor = from_bytes(data, dtype, shape)
    return tensor.conj() if dtype.is_complex and draw(st.booleans()) else tensor


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements in another order in memory, for a matrix."""
    packed = "float4" in str(tensor.dtype)
    return tensor if tensor.dim() != 2 or packed else tensor.mT.contiguous().mT


def named(tensors: list[torch.Tensor], *, turn: bool) -> State:
    """A state dict in which the names of tensors that can be cast begin with an f."""
    state: State = {"flag": torch.tensor([turn]), "step": float(turn)}
    for n, tensor in enumerate(tensors):
        kind = "f" if tensor.dtype.is_floating_point and "float4" not in str(tensor.dtype) else "i"
        state[f"{kind}{n}"] = transposed(tensor) if turn else tensor
    return state


def published(states: list[State], **options: Any) -> tuple[list[Any], list[State]]:
    """Publish states; return the files of their versions, and the loaded states."""
    with open_store(MemoryStore()) as store:
        versions = []
        with Publisher(store, **options) as publisher:
            for state in states:
                publisher.publish(state)
                version = publisher.wait()
                assert version is not None
                versions.append(version)
        return [version.files for version in versions], [store.load(v.id) for v in versions]


CASTS = st.sampled_from([{}, {"f*": torch.bfloat16}, {"f*": torch.float32}, {"f?": torch.float64}])


# The results of casting these depend on the order in memory, and on neighbouring tensors.
NANS = from_bytes(b"\xff\xff\xff\x7f" * 20, torch.float32, (4, 5))
HALF_NANS = [torch.full((2, 3), math.nan, dtype=torch.float16), torch.tensor(math.nan)]


@pytest.mark.parametrize("compare", ["host", "device"])
@pytest.mark.parametrize("on_host", [True, False])
def test_batches_result_in_the_same_versions_as_single_tensors(
    monkeypatch: pytest.MonkeyPatch, compare: str, on_host: bool
) -> None:
    pretend_device(monkeypatch, on_host=on_host)

    @hypothesis.settings(max_examples=examples(8), deadline=None)
    @hypothesis.given(
        tensors=st.lists(st.lists(small(), min_size=3, max_size=8), min_size=1, max_size=3),
        cast=CASTS,
    )
    @hypothesis.example(tensors=[[NANS]], cast={"f*": torch.bfloat16})
    @hypothesis.example(tensors=[HALF_NANS], cast={"f*": torch.bfloat16})
    def check(tensors: list[list[torch.Tensor]], cast: dict[str, torch.dtype]) -> None:
        states = [named(each, turn=turn) for each in tensors for turn in (False, True)]
        for state in states[1:]:  # the same layout, and some of the same bits
            states.append(state | {k: v for k, v in states[0].items() if like(v, state.get(k))})
        batched, loaded = published(states, compare=compare, cast=cast)
        with monkeypatch.context() as patch:
            patch.setattr(tensor_groups, "_MAX_BATCHED_BYTES", 0)
            single, _ = published(states, compare=compare, cast=cast)
        assert batched == single
        if not cast:
            for state, wanted in zip(loaded, states, strict=True):
                assert_same_state(state, wanted)

    check()


def like(tensor: Any, other: Any) -> bool:
    """Whether both are tensors of the same dtype and shape."""
    if not isinstance(tensor, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return tensor.dtype == other.dtype and tensor.shape == other.shape


def test_versions_of_many_small_tensors_have_every_change() -> None:
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


def test_changes_of_shapes_values_and_ties_are_detected() -> None:
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
