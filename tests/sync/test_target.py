"""Targets: tensors of any kind, in any layout, written in place."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch

import casweights
from casweights import InvalidInputError, StaleError, Subscriber, UnsupportedError
from casweights.config import StoreConfig
from casweights.stores.memory import MemoryStore
from casweights.sync.live import LiveTensor
from casweights.testing.strategies import (
    TORCH_DTYPES,
    State,
    from_bytes,
    state_dicts,
)
from tests.histories import CHUNK, ELEMENTS, step, weights
from tests.lengths import examples
from tests.sync.models import (
    Tied,
    bits,
    commit_all,
    memory_of,
    places,
    replica,
    scramble,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import Repository, SnapshotId

PAIR = getattr(torch, "float4_e2m1fn_x2", None)


def follow_all(
    repo: Repository, live: State | torch.nn.Module, states: list[Any], versions: list[SnapshotId]
) -> None:
    """Bring a target to each version and back, in place."""
    where = places(live)
    with Subscriber(repo) as subscriber:
        for n in (*range(len(states)), *reversed(range(len(states)))):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == bits(states[n])
            assert places(live) == where
            subscriber.verify()


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_is_synced_with_any_bits(repo: Repository, dtype: torch.dtype) -> None:
    width = dtype.itemsize
    many = 2 * CHUNK + 3 * width
    lone: tuple[int, ...] = (1,) if dtype is PAIR else ()
    states = []
    for n in range(3):
        state: State = {
            "many": from_bytes(bytes(many), dtype, (many // width,)),
            "rows": from_bytes(bytes(CHUNK), dtype, (4, CHUNK // 4 // width)),
            "lone": from_bytes(bytes(width), dtype, lone),
            "none": torch.empty((0, 3), dtype=dtype),
        }
        scramble(state, n)
        states.append(state)
    moved = copy.deepcopy(states[-1])
    for place in (0, CHUNK - 1, CHUNK, many - 1):
        memory_of(moved["many"])[place] ^= 1
    versions = commit_all(repo, [*states, moved])
    follow_all(repo, replica(moved), [*states, moved], versions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_bits_of_equal_numbers_are_told_apart(repo: Repository, dtype: torch.dtype) -> None:
    zeros = torch.zeros(64, dtype=torch.float32).to(dtype)
    negative = zeros.clone()
    memory_of(negative)[dtype.itemsize - 1 :: dtype.itemsize] = 0x80
    quiet = zeros.clone()
    memory_of(quiet)[:] = 0xFF
    payload = quiet.clone()
    memory_of(payload)[:: 2 * dtype.itemsize] ^= 1
    assert torch.equal(zeros.float(), negative.float())
    assert quiet.float().isnan().all()
    assert payload.float().isnan().all()
    states = [{"w": zeros}, {"w": negative}, {"w": quiet}, {"w": payload}]
    versions = commit_all(repo, states)
    assert len(set(versions)) == 4
    follow_all(repo, replica(states[0]), states, versions)


def as_target(state: Any, made: dict[int, torch.Tensor]) -> Any:
    """The same structure, ties and layouts, with tensors that can be written in place."""
    if isinstance(state, dict):
        return {key: as_target(value, made) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(as_target(value, made) for value in state)
    if not isinstance(state, torch.Tensor):
        return state
    if id(state) not in made:
        lazy = state.is_conj() or 0 in state.stride()
        made[id(state)] = state.resolve_conj().contiguous() if lazy else state
        made[id(state)] = copy.deepcopy(made[id(state)])
    return made[id(state)]


@hypothesis.settings(max_examples=examples(25))
@hypothesis.given(state=state_dicts())
def test_any_state_dict_can_be_a_target(state: State) -> None:
    first = as_target(state, {})
    named = len(tensors_of(first))
    hypothesis.assume(named)
    objects = MemoryStore()
    config = StoreConfig(chunk_size=CHUNK)
    with casweights.open(objects, create=True, config=config, workers=2) as repo:
        versions = [repo.commit(state).id]
        other = replica(first, 3)
        versions.append(repo.commit(other).id)
        live = replica(first, 4)
        tensors = repo.snapshot(versions[0]).files[0].header
        assert tensors is not None
        hypothesis.assume(not any(info.name.endswith("'") for info in tensors.tensors))
        follow_all(repo, live, [state, other], versions)


def test_a_synced_module_keeps_its_parameters_and_ties(repo: Repository) -> None:
    models = [Tied(n) for n in range(3)]
    versions = commit_all(repo, [dict(model.state_dict()) for model in models])
    live = Tied(9)
    parameters = dict(live.named_parameters())
    tokens = torch.arange(12)
    with Subscriber(repo) as subscriber:
        for model, version in zip(models, versions, strict=True):
            subscriber.sync(live, to=version)
            assert bits(live) == bits(model)
            assert torch.equal(live.eval()(tokens), model.eval()(tokens))
    assert live.head.weight is live.embed.weight
    assert all(dict(live.named_parameters())[name] is p for name, p in parameters.items())
    assert all(p.requires_grad and p.grad is None for p in live.parameters())


def test_autograd_detects_the_writes(repo: Repository) -> None:
    states = [{"w": weights(1, n).float(), "v": torch.ones(3)} for n in range(2)]
    versions = commit_all(repo, states)
    live = {name: tensor.clone().requires_grad_() for name, tensor in states[0].items()}
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        stale, fine = live["w"].square().sum(), live["v"].square().sum()
        subscriber.sync(to=versions[1])
        assert bits(live) == bits(states[1])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.backward(stale)
        torch.autograd.backward(fine)  # no sync wrote to its tensors
        assert live["w"].is_leaf
        assert live["w"].requires_grad
        assert subscriber.sync(expect=versions[1]).changed_elements == 0


def test_inference_tensors_can_be_a_target(repo: Repository) -> None:
    plain = {"a": weights(2), "b": weights(2, 1).view(ELEMENTS, 2), "c": weights(1, 2)}
    states = [plain, {name: step(t, 0.02, 5) for name, t in plain.items() if name != "b"}]
    states[1]["b"] = weights(2, 7).view(ELEMENTS, 2)
    versions = commit_all(repo, states)
    with torch.inference_mode():
        wide = torch.zeros(2 * ELEMENTS, dtype=torch.bfloat16)
        live = {
            "a": torch.zeros_like(plain["a"]),
            "b": torch.zeros(2, ELEMENTS, dtype=torch.bfloat16).t(),
            "c": wide[::2],
        }
    assert live["b"].is_inference()
    normal = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    normal["b"] = torch.zeros(2, ELEMENTS, dtype=torch.bfloat16).t()
    follow_all(repo, live, states, versions)
    with torch.inference_mode():
        follow_all(repo, live, states, versions)
        follow_all(repo, normal, states, versions)
    with Subscriber(repo) as subscriber, torch.inference_mode():
        subscriber.sync(normal, to=versions[0])
        normal["b"][3] = 3
        with pytest.raises(StaleError):
            subscriber.sync(expect=versions[0])


def test_a_sync_is_visible_in_existing_views(repo: Repository) -> None:
    states = [{"w": weights(2, n)} for n in range(2)]
    versions = commit_all(repo, states)
    live = replica(states[0])
    part = live["w"].view(2, ELEMENTS)[1]
    with Subscriber(repo) as subscriber:
        for state, version in zip(states, versions, strict=True):
            subscriber.sync(live, to=version)
            assert torch.equal(part, state["w"][ELEMENTS:])


def test_writes_to_one_view_do_not_mark_other_views(repo: Repository) -> None:
    """Torch counts writes to all views of a tensor together; those of a sync do not count."""
    old = {"a": weights(1, 1), "b": weights(1, 2)}
    new = {"a": step(old["a"], 0.01, 3), "b": old["b"]}
    versions = commit_all(repo, [old, new])
    flat = torch.zeros(3 * ELEMENTS, dtype=torch.bfloat16)
    live = {"a": flat[:ELEMENTS], "b": flat[ELEMENTS : 2 * ELEMENTS], "c": flat[2 * ELEMENTS :]}
    with Subscriber(repo, strict=False) as subscriber:
        subscriber.sync(live, to=versions[0])
        subscriber.sync(to=versions[1], expect=versions[0])
        subscriber.prefetch(to=versions[0])
        subscriber.sync(expect=versions[1])
        assert bits({"a": live["a"], "b": live["b"]}) == bits(old)
        assert not flat[2 * ELEMENTS :].any()
        live["b"][3] = 7  # a write of other code does count
        with pytest.raises(StaleError):
            subscriber.sync(to=versions[1], expect=versions[0])
        assert subscriber.sync(to=versions[1]).changed_elements > 1
        assert bits({"a": live["a"], "b": live["b"]}) == bits(new)


@pytest.mark.parametrize(
    "layout",
    [
        lambda flat: flat.view(3, -1).t().contiguous().t(),
        lambda flat: flat.view(ELEMENTS, 3).t().contiguous().t(),
        lambda flat: torch.stack([flat, flat], 1)[:, 0],
        lambda flat: flat.view(2, 3, -1).permute(2, 0, 1).contiguous().permute(1, 2, 0),
        lambda flat: torch.stack([flat, flat], 1).view(-1, 8, 2)[..., 1],
    ],
    ids=["wide", "tall", "strided", "permuted", "strided rows"],
)
def test_tensors_of_any_stride_can_be_a_target(
    repo: Repository, layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    flat = weights(3)
    states = [{"w": layout(t)} for t in (flat, step(flat, 0.01, 1), weights(3, 4))]
    live = {"w": layout(weights(3, 9))}
    assert not live["w"].is_contiguous()
    stride = live["w"].stride()
    follow_all(repo, live, states, commit_all(repo, states))
    assert live["w"].stride() == stride


def test_a_chunk_of_a_view_is_read_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    reshape = torch.Tensor.reshape

    def note(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
        copied.append(tensor.numel())
        return reshape(tensor, *shape)

    tensor = torch.zeros(ELEMENTS, 64, dtype=torch.bfloat16)[:, ::2]
    live = LiveTensor(tensor, CHUNK)
    monkeypatch.setattr(torch.Tensor, "reshape", note)
    assert len(live.holds) == 32
    for number in range(32):
        live.chunk(number)
    assert sum(copied) < 2 * tensor.numel()


@pytest.mark.parametrize(
    ("tensor", "error", "said"),
    [
        (torch.ones(1).expand(3), InvalidInputError, "'w' is an expanded view"),
        (torch.ones(3, dtype=torch.complex64).conj(), InvalidInputError, "'w' is a conj"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, InvalidInputError, "negated view"),
        (torch.ones(3, device="meta"), UnsupportedError, "'w' is meta"),
        (torch.ones(3).to_sparse(), UnsupportedError, "'w' is sparse"),
        (torch.ones(3, dtype=torch.complex128), UnsupportedError, "complex128"),
    ],
    ids=["expanded", "conjugated", "negated", "meta", "sparse", "dtype"],
)
def test_tensors_that_cannot_be_written_are_refused(
    repo: Repository, tensor: torch.Tensor, error: type[Exception], said: str
) -> None:
    states = [{"w": torch.arange(3.0)}, {"w": torch.zeros(3)}]
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        with pytest.raises(error, match=said):
            subscriber.sync({"w": tensor})
        subscriber.sync(to=versions[1], expect=versions[0])  # the former target is kept
    assert bits(live) == bits(states[1])


def test_dimensions_of_size_one_may_have_any_stride(repo: Repository) -> None:
    state = {"ids": torch.arange(5).expand(1, -1), "w": torch.ones(4).as_strided((1, 4), (0, 1))}
    commit_all(repo, [state])
    live = replica(state)
    assert live["w"].stride() == (0, 1)
    with Subscriber(repo) as subscriber:
        subscriber.sync(live)
    assert bits(live) == bits(state)


def test_empty_tensors_of_another_shape_are_another_target(repo: Repository) -> None:
    for shape in ((0, 3), (4, 0)):
        repo.commit({"e": torch.empty(shape), "w": torch.ones(2)}, branch=f"b{shape[0]}")
    with Subscriber(repo) as subscriber:
        subscriber.sync({"e": torch.empty(0, 3), "w": torch.zeros(2)}, to="b0")
        subscriber.sync({"e": torch.empty(4, 0), "w": torch.zeros(2)}, to="b4")
