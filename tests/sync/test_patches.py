"""Patches: the changes of a sync, for hosts with their own layout of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from casweights import IntegrityError, InvalidInputError, StaleError, Subscriber
from casweights.content.torch_types import patterns
from casweights.testing.faults import flip_bit
from casweights.testing.states import tensor_bits
from casweights.testing.strategies import TORCH_DTYPES, from_bytes
from tests.histories import CHUNK, ELEMENTS, history, step, weights
from tests.sync.models import bits, commit_all, memory_of, replica, scramble

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casweights import Repository
    from casweights.sync.patches import Patch
    from casweights.sync.subscriber import Verify
    from casweights.testing import CountingStore
    from tests.histories import State


def patch_by_hand(host: State, patches: Iterable[Patch]) -> dict[str, Patch]:
    """Apply patches to plain tensors, as a host does, and check their content."""
    seen: dict[str, Patch] = {}
    for patch in patches:
        assert patch.name not in seen
        seen[patch.name] = patch
        tensor = host[patch.name]
        assert (patch.dtype, patch.shape) == (tensor.dtype, tensor.shape)
        assert patch.values.dtype == patch.dtype
        new = patterns(patch.values)
        if patch.indices is None:
            assert patch.values.shape == patch.shape
            patterns(tensor).copy_(new)
        else:
            assert patch.indices.dtype == torch.int64
            assert patch.indices.shape == patch.values.shape
            assert (patch.indices.diff() > 0).all()
            flat = patterns(tensor).view(-1)
            assert (flat[patch.indices] != new).all()  # each value is a change
            flat[patch.indices] = new
    return seen


@pytest.mark.parametrize("memory", [0, 2000, 1 << 20])
@pytest.mark.parametrize("verify", ["full", "patch"])
def test_patches_turn_the_old_tensors_into_the_new_ones(
    repo: Repository, verify: Verify, memory: int
) -> None:
    """Applied to a host's tensors, for a step forward, a step back and several steps at once."""
    states = list(history(5, 0.01, chunks=12))
    versions = commit_all(repo, states)
    live, host = ({"w": states[0]["w"].clone()} for _ in range(2))
    at = None
    with Subscriber(repo, verify=verify, memory=memory) as subscriber:
        for n in (0, 1, 2, 1, 4, 0):
            found = patch_by_hand(host, subscriber.patches(live, to=versions[n], expect=at))
            assert bits(host) == bits(live) == bits(states[n])
            assert subscriber.version == versions[n]
            at = versions[n]
            for patch in found.values():
                assert (patch.indices is not None) == (memory == 1 << 20)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_patches_work_for_every_dtype(repo: Repository, dtype: torch.dtype) -> None:
    size = CHUNK + 64
    old = {
        "sparse": from_bytes(bytes(size), dtype, (2, size // 2 // dtype.itemsize)),
        "dense": from_bytes(bytes(64), dtype, (64 // dtype.itemsize,)),
        "same": from_bytes(bytes(64), dtype, (64 // dtype.itemsize,)),
    }
    new = replica(old)
    memory_of(new["sparse"])[:] = 0
    memory_of(new["same"])[:] = 0
    places = [0, CHUNK - 1, CHUNK, size - 1]
    memory_of(new["sparse"])[places] = 0x81
    commit_all(repo, [old, new])
    live, host = replica(old), replica(old)
    with Subscriber(repo) as subscriber:
        patch_by_hand(host, subscriber.patches(live, to="main~1"))
        assert bits(host) == bits(old)
        found = patch_by_hand(host, subscriber.patches(to="main"))
    assert bits(host) == bits(live) == bits(new)
    assert set(found) == {"sparse", "dense"}
    sparse = found["sparse"]
    assert sparse.indices is not None
    assert sparse.indices.tolist() == [place // dtype.itemsize for place in places]
    assert len(tensor_bits(sparse.values)) == 4 * dtype.itemsize
    assert found["dense"].indices is None


def test_patches_are_sparse_where_changes_are(repo: Repository) -> None:
    old = {"few": weights(3), "all": weights(1, 1), "some": weights(2, 2), "none": weights(1, 3)}
    new = {
        "few": step(old["few"], 0.001, 4),
        "all": weights(1, 5),
        "some": torch.cat([step(old["some"][:ELEMENTS], 0.001, 6), weights(1, 7)]),
        "none": old["none"],
    }
    versions = commit_all(repo, [old, new])
    live, host = replica(old), {name: tensor.clone() for name, tensor in old.items()}
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        subscriber.prefetch()
        found = patch_by_hand(host, subscriber.patches())
    assert bits(host) == bits(new)
    assert set(found) == {"few", "all", "some"}
    assert found["few"].indices is not None
    assert found["all"].indices is None
    assert found["some"].indices is None  # half of it changes everywhere
    assert len(found["few"].values) == int((old["few"] != new["few"]).sum())


def test_the_target_is_at_the_version_before_the_first_patch(repo: Repository) -> None:
    states = list(history(2, 0.01, chunks=2))
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        for _ in subscriber.patches(to=versions[1]):
            assert subscriber.version == versions[1]
            assert bits(live) == bits(states[1])
            break
        assert subscriber.sync(expect=versions[1]).changed_elements == 0


def test_sparse_patches_outlive_the_next_sync(repo: Repository) -> None:
    states = list(history(3, 0.01, chunks=2))
    versions = commit_all(repo, states)
    live, host = replica(states[0]), {"w": states[0]["w"].clone()}
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        patches = list(subscriber.patches(to=versions[1]))
        subscriber.sync(to=versions[2])
        patch_by_hand(host, patches)
    assert bits(host) == bits(states[1])


def test_patches_have_the_names_and_layout_of_the_version(repo: Repository) -> None:
    rows = weights(2).view(4, -1)
    new = step(rows.flatten(), 0.01, 1).view(4, -1)
    versions = commit_all(repo, [{"layer.w": rows}, {"layer.w": new}])
    live = {"w": rows.t().contiguous().t(), "tied": torch.empty(0)}
    live["tied"] = live["w"]
    host = {"layer.w": rows.clone()}
    with Subscriber(repo, key_map=lambda _: "layer.w") as subscriber:
        subscriber.sync(live, to=versions[0])
        found = patch_by_hand(host, subscriber.patches())
    assert list(found) == ["layer.w"]
    assert found["layer.w"].indices is not None
    assert torch.equal(host["layer.w"], new)
    assert torch.equal(live["w"], new)


def test_patches_of_parameters_have_no_gradients(repo: Repository) -> None:
    states = [{"w": weights(1, n)} for n in range(2)]
    commit_all(repo, states)
    model = {"w": torch.nn.Parameter(weights(1, 5))}
    with Subscriber(repo) as subscriber:
        (patch,) = subscriber.patches(model)
    assert not patch.values.requires_grad
    assert tensor_bits(patch.values) == tensor_bits(states[1]["w"])


@pytest.mark.usefixtures("packs_apart")
def test_failures_of_patches_leave_the_target_unchanged(
    repo: Repository, objects: CountingStore
) -> None:
    states = list(history(2, 0.01, chunks=2))
    versions = commit_all(repo, states[:1])
    objects.reset()
    versions += commit_all(repo, states[1:])
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        with pytest.raises(StaleError):
            list(subscriber.patches(to=versions[1], expect=versions[1]))
        with pytest.raises(InvalidInputError):
            list(subscriber.patches({"x": live["w"]}))
        subscriber.sync(live, to=versions[0])
        (pack,) = {name for name, _ in objects.writes if name.startswith("packs/")}
        flip_bit(objects, pack, 60)
        with pytest.raises(IntegrityError):
            list(subscriber.patches(to=versions[1], expect=versions[0]))
        assert subscriber.version == versions[0]
        assert bits(live) == bits(states[0])


def test_without_changes_there_are_no_patches(repo: Repository) -> None:
    state = {"w": weights(2)}
    commit_all(repo, [state, state])
    live = replica(state)
    with Subscriber(repo) as subscriber:
        assert [patch.name for patch in subscriber.patches(live)] == ["w"]
        assert list(subscriber.patches(to="main~1")) == []
        scramble(live)
        with pytest.raises(StaleError):
            subscriber.verify()
        assert [patch.name for patch in subscriber.patches()] == ["w"]
    assert bits(live) == bits(state)
