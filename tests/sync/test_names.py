"""Matching the tensors of a target with those of a version, and refusals of those that differ."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch

from casweights import ErrorCode, InvalidInputError, Publisher, Subscriber
from tests.histories import ELEMENTS, step, weights
from tests.sync.models import Tied, bits, replica

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.testing import CountingStore
    from tests.histories import State

OLD = {"a": torch.arange(4.0), "b": torch.arange(6.0).view(2, 3), "c": torch.zeros(2)}


def refusal(repo: Repository, live: State, **options: Any) -> InvalidInputError:
    """The error with which the head is refused, by every call and without a write."""
    before = bits(live)
    with Subscriber(repo, **options) as subscriber:
        for call in (subscriber.prefetch, subscriber.sync, lambda t: list(subscriber.patches(t))):
            with pytest.raises(InvalidInputError) as caught:
                call(live)
        assert subscriber.version is None
    assert bits(live) == before
    return caught.value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a": None}, "the target lacks 'a' (strict"),
        ({"d": torch.ones(1)}, "the version lacks 'd' (strict"),
        (
            {"a": None, "A": torch.ones(4)},
            "the version lacks 'A'; the target lacks 'a' (strict=False ignores them, key_map",
        ),
        ({"a": torch.ones(5)}, "'a' is F32 [4] in the version and F32 [5] in the target"),
        ({"b": torch.ones(3, 2)}, "'b' is F32 [2, 3] in the version and F32 [3, 2] in the target"),
        ({"a": torch.ones(4).half()}, "'a' is F32 [4] in the version and F16 [4] in the target"),
        ({"a": torch.ones(4).int()}, "'a' is F32 [4] in the version and I32 [4] in the target"),
    ],
)
def test_names_dtypes_and_shapes_must_fit(
    repo: Repository, change: dict[str, torch.Tensor | None], said: str
) -> None:
    repo.commit(OLD)
    live = {name: tensor for name, tensor in (replica(OLD) | change).items() if tensor is not None}
    error = refusal(repo, live)
    assert error.code is ErrorCode.TARGET_MISMATCH
    assert said in str(error)


def test_many_wrong_names_are_not_all_listed(repo: Repository) -> None:
    repo.commit({f"layers.{n}": torch.ones(1) for n in range(1000)})
    said = str(refusal(repo, {"w": torch.ones(1)}))
    assert "'layers.0', 'layers.1'" in said
    assert "and 995 more" in said
    assert len(said) < 400


def test_dtypes_and_shapes_must_fit_without_strict_too(repo: Repository) -> None:
    repo.commit(OLD)
    error = refusal(repo, {"a": torch.ones(5)}, strict=False)
    assert error.code is ErrorCode.TARGET_MISMATCH
    assert "'a' is F32 [4]" in str(error)
    assert "lacks" not in str(error)


def test_without_strict_unmatched_tensors_are_ignored(repo: Repository) -> None:
    repo.commit(OLD)
    live = {"a": torch.tensor([0.0, 1, 2, 9]), "other": torch.ones(3)}
    with Subscriber(repo, strict=False) as subscriber:
        stats = subscriber.sync(live)
        assert subscriber.version == stats.snapshot
        subscriber.verify()
    assert bits(live) == bits({"a": OLD["a"], "other": torch.ones(3)})
    assert stats.changed_elements == 1


@pytest.mark.parametrize(
    "key_map",
    [
        {"model.a": "a", "model.b": "b", "model.c": "c"},
        lambda name: name.removeprefix("model."),
    ],
    ids=["dict", "function"],
)
def test_a_key_map_renames_tensors(repo: Repository, key_map: Any) -> None:
    version = repo.commit(OLD).id
    live = {f"model.{name}": tensor for name, tensor in replica(OLD).items()}
    with Subscriber(repo, key_map=key_map) as subscriber:
        subscriber.sync(live)
        assert subscriber.version == version
        names = {patch.name for patch in subscriber.patches(to=repo.commit(replica(OLD, 3)).id)}
    assert names == set(OLD)
    with Subscriber(repo, key_map=key_map) as subscriber:
        subscriber.sync(live, to=version)
    assert bits(live) == {f"model.{name}": held for name, held in bits(OLD).items()}


def test_names_that_a_key_map_lacks_stay(repo: Repository) -> None:
    repo.commit(OLD)
    live = {"x": torch.ones(4), "b": torch.ones(2, 3), "c": torch.ones(2)}
    with Subscriber(repo, key_map={"x": "a"}) as subscriber:
        subscriber.sync(live)
    assert bits(live) == {{"a": "x"}.get(name, name): held for name, held in bits(OLD).items()}
    error = refusal(repo, {"y": torch.ones(4)}, key_map={"x": "a"})
    assert "the version lacks 'y'" in str(error)


def test_tensors_tied_only_in_the_target_must_be_equal_in_the_version(repo: Repository) -> None:
    same = repo.commit({"a": torch.ones(3), "b": torch.ones(3)}).id
    shared = torch.zeros(3)
    with Subscriber(repo) as subscriber:
        subscriber.sync({"a": shared, "b": shared}, to=same)
        assert shared.tolist() == [1, 1, 1]
    repo.commit({"a": torch.ones(3), "b": torch.zeros(3)})
    error = refusal(repo, {"a": shared, "b": shared})
    assert error.code is ErrorCode.TARGET_MISMATCH
    assert "'a' and 'b' are one tensor in the target, but differ in the version" in str(error)


def test_tensors_tied_only_in_the_version_are_written_separately(repo: Repository) -> None:
    shared = torch.arange(3.0)
    repo.commit({"a": shared, "deep": [shared]})
    live = {"a": torch.zeros(3), "deep": [torch.ones(3)]}
    with Subscriber(repo) as subscriber:
        subscriber.sync(live)
    assert bits(live) == {"a": bits({"a": shared})["a"], "deep.0": bits({"a": shared})["a"]}


def test_a_checkpoint_that_names_a_tied_tensor_once_fits(repo: Repository, tmp_path: Path) -> None:
    """`save_pretrained` writes such checkpoints."""
    model = Tied(1)
    state = {name: t for name, t in model.state_dict().items() if name != "head.weight"}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    repo.commit(tmp_path)
    live = Tied(2)
    with Subscriber(repo) as subscriber:
        subscriber.sync(live)
    assert bits(live) == bits(model)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    state = {f"layers.{n}.w": weights(1, n).view(-1, 64) for n in range(6)}
    index: dict[str, str] = {}
    for n in range(3):
        part = {name: state[name] for name in list(state)[n::3]}
        file = f"model-0000{n + 1}-of-00003.safetensors"
        safetensors.torch.save_file(part, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path, state


def test_sharded_checkpoints_and_single_files_follow_each_other(
    repo: Repository, shards: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    directory, state = shards
    first = repo.commit(directory).id
    live = replica(state)
    with Subscriber(repo) as subscriber:
        subscriber.sync(live)
        assert bits(live) == bits(state)
        state["layers.3.w"] = step(state["layers.3.w"].flatten(), 0.01, 1).view(-1, 64)
        repo.commit(dict(reversed(state.items())))  # all in one file, in another order
        stats = subscriber.sync(expect=first)
    assert bits(live) == bits(state)
    assert stats.lag == 1
    assert 0 < stats.changed_elements < ELEMENTS / 50


def test_files_that_an_index_lacks_do_not_reach_a_replica(
    repo: Repository, shards: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    directory, state = shards
    stray = {"layers.1.w": state["layers.1.w"] + 1, "other": torch.ones(2)}
    safetensors.torch.save_file(stray, directory / "other.safetensors")
    repo.commit(directory)
    live = replica(state)
    with Subscriber(repo) as subscriber:
        subscriber.sync(live)
    assert bits(live) == bits(state)
    chosen = {name: torch.zeros_like(tensor) for name, tensor in stray.items()}
    with Subscriber(repo, include="other.safetensors") as subscriber:
        subscriber.sync(chosen)
    assert bits(chosen) == bits(stray)


def test_contradicting_files_leave_a_replica_unchanged(
    repo: Repository, shards: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    directory, state = shards
    (directory / "model.safetensors.index.json").unlink()
    stray = {"layers.1.w": state["layers.1.w"] + 1}
    safetensors.torch.save_file(stray, directory / "model-00004-of-00004.safetensors")
    repo.commit(directory)
    error = refusal(repo, replica(state))
    assert error.code is ErrorCode.AMBIGUOUS
    assert "'layers.1.w'" in str(error)
    assert "model-00002-of-00003.safetensors, model-00004-of-00004.safetensors" in str(error)


def test_an_unchanged_index_is_not_read_again(
    repo: Repository, objects: CountingStore, shards: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    directory, state = shards
    repo.commit(directory)
    with Subscriber(repo) as subscriber:
        subscriber.sync(replica(state))
        repo.commit(directory, message="the same again")
        objects.reset()
        subscriber.sync()
    assert objects.read_bytes("packs/", "snapshots/") == 0


def test_a_malformed_tree_is_refused(repo: Repository, tmp_path: Path) -> None:
    safetensors.torch.save_file(OLD, tmp_path / "m.safetensors", {"casweights.tree": "[1"})
    repo.commit(tmp_path)
    assert refusal(repo, replica(OLD)).code is ErrorCode.BAD_STATE


def test_a_version_without_tensors_is_refused(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    repo.commit(tmp_path)
    assert "the version lacks 'a', 'b', 'c'" in str(refusal(repo, replica(OLD)))


class Scaled(torch.nn.Module):
    """Has extra state in addition to its weights, as in Transformer Engine."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


@pytest.mark.parametrize("kept", ["keep", "drop"])
@pytest.mark.parametrize(
    "extra",
    [b"fp8", b"", io.BytesIO(b"fp8"), np.float64(3), np.ones(2), None, 5],
    ids=lambda extra: type(extra).__name__,
)
def test_modules_with_extra_state_can_be_synced(repo: Repository, extra: Any, kept: Any) -> None:
    source, target = Scaled(extra), Scaled(extra)
    with Publisher(repo, extra_state=kept) as publisher:
        publisher.publish(source)
    assert ("_extra_state" in repo.load("main")) == (kept == "keep")
    with Subscriber(repo) as subscriber:
        subscriber.sync(target)
    assert torch.equal(source.layer.weight, target.layer.weight)
