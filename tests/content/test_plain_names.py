"""Plain names: trainers and replicas match tensors although wrappers change their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from casweights import ErrorCode, InvalidInputError, Publisher, Subscriber
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.sync.states import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

# Torch itself causes this warning when it imports its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))


def inner(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def wrapped(model: nn.Module) -> nn.Module:
        assert isinstance(model, nn.Sequential)
        model[1] = wrap(model[1])
        return model

    return wrapped


def compiled(model: nn.Module) -> nn.Module:
    wrapper = torch.compile(model)
    assert isinstance(wrapper, nn.Module)
    return wrapper


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda model: compiled(nn.DataParallel(model)),
    "compiled layer": inner(compiled),
    "parallel layer": inner(nn.DataParallel),
}


@pytest.mark.parametrize("source", WRAPS)
def test_a_wrapped_model_is_published_under_its_plain_names(source: str) -> None:
    with open_store(MemoryStore()) as store:
        with Publisher(store) as publisher:
            publisher.publish(WRAPS[source](net()))
        assert_same_state(store.load("main"), dict(net().state_dict()))


@pytest.mark.parametrize("target", WRAPS)
@pytest.mark.parametrize("source", ["plain", "both", "compiled layer"])
def test_a_trainer_and_a_replica_may_have_different_wrappers(source: str, target: str) -> None:
    model = net(seed=1)
    live = WRAPS[target](model)
    plain = net(seed=1)
    with open_store(MemoryStore()) as store:
        with Publisher(store) as publisher:
            publisher.publish(WRAPS[source](net()))
        with Subscriber(store) as subscriber:
            subscriber.sync(live)
    plain.load_state_dict(net().state_dict())
    values = [tensor.clone() for tensor in live.state_dict().values()]
    assert all(map(torch.equal, values, plain.state_dict().values()))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_a_prefix_of_all_names_is_dropped(prefix: str) -> None:
    state = {prefix + name: torch.ones(2) for name in ("a", "b.module.c")}
    live = {name: torch.zeros(2) for name in ("a", "b.module.c")}
    with open_store(MemoryStore()) as store:
        store.commit(state)
        assert store.load("main").keys() == state.keys()  # a commit renames nothing
        with Subscriber(store) as subscriber:
            subscriber.sync(live)
            subscriber.sync({prefix + name: torch.zeros(2) for name in live})
        with Publisher(store) as publisher:
            publisher.publish(state)
        assert_same_state(store.load("main"), {name: torch.ones(2) for name in live})
    assert_same_state(live, {name: torch.ones(2) for name in live})


def test_a_prefix_of_only_some_names_is_kept() -> None:
    state = {"module.a": torch.ones(2), "b": torch.ones(2)}
    with open_store(MemoryStore()) as store:
        with Publisher(store) as publisher:
            publisher.publish(state)
        assert_same_state(store.load("main"), state)
        with Subscriber(store) as subscriber, pytest.raises(InvalidInputError) as caught:
            subscriber.sync({"a": torch.ones(2), "b": torch.ones(2)})
        assert caught.value.code is ErrorCode.TARGET_MISMATCH


def test_a_key_map_may_contain_names_with_or_without_the_prefix() -> None:
    with open_store(MemoryStore()) as store:
        store.commit({"module.a": torch.ones(2)})
        for name in ("a", "module.a"):
            live = {"x": torch.zeros(2)}
            with Subscriber(store, key_map={"x": name}) as subscriber:
                subscriber.sync(live)
            assert_same_state(live, {"x": torch.ones(2)})


class Clashing(nn.Module):
    """A module with a wrapped parameter, and a buffer that has the parameter's plain name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.DataParallel(nn.ParameterDict({"w": torch.ones(2)}))
        self.layer.register_buffer("w", torch.ones(2))


def test_two_names_with_the_same_plain_name_are_refused() -> None:
    with open_store(MemoryStore()) as store:
        with Publisher(store) as publisher, pytest.raises(InvalidInputError) as caught:
            publisher.publish(Clashing())
        assert caught.value.code is ErrorCode.BAD_STATE
        assert "'layer.w' and 'layer.module.w'" in str(caught.value)
        store.commit({"layer.w": torch.ones(2)})
        with Subscriber(store) as subscriber, pytest.raises(InvalidInputError, match="both become"):
            subscriber.sync(Clashing())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plain_name_is_not_confused_with_an_equal_prefixed_name(
    wrapped: bool,
) -> None:
    """``module.a`` is the plain name of one tensor and the prefixed name of the other."""
    outer = {"module.a": torch.ones(2), "module.module.a": torch.full((2,), 2.0)}
    inner = {name.removeprefix("module."): tensor for name, tensor in outer.items()}
    stored, target = (outer, inner) if wrapped else (inner, outer)
    live = {name: torch.zeros(2) for name in target}
    with open_store(MemoryStore()) as store:
        store.commit(stored)
        with Subscriber(store) as subscriber:
            subscriber.sync(live)
    assert_same_state(live, target)
