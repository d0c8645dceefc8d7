"""The engine for vLLM, with a model as difficult as vLLM's: fused, sharded and padded.

Each test runs with the modules of a vLLM wheel if they are available (see `vllm_parts`), and with a
stand-in that has the same interface.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StaleError,
)
from tests.integrations.fused_model import Model, Shuffled, checkpoint, equal
from tests.integrations.vllm_worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository


def test_the_first_update_is_whole_and_later_ones_are_patches(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(3)]
    worker.init(store=path)
    worker.update(store=path, snapshot=ids[0], expect=None)
    assert worker.holds(checkpoint(0))
    assert (worker.whole, worker.patched) == (1, [])
    for before, step in ((0, 1), (1, 2)):
        worker.patched.clear()
        worker.update(store=path, snapshot=ids[step], expect=ids[before])
        assert worker.holds(checkpoint(step))
        assert str(worker.engine.version) == ids[step]
        assert worker.whole == 1
        assert sorted(worker.patched) == ["embed.weight", "k.weight", "norm.weight"]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_loads_its_part(
    adapter: Any, path: str, local_repo: Repository, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(2)]
    worker = Worker(adapter, Model(rank, 2), monkeypatch)
    for step in range(2):
        worker.update(store=path, snapshot=ids[step])
        assert worker.holds(checkpoint(step))
    assert worker.whole == 1
    worker.engine.shutdown()


def test_weights_that_the_model_holds_already_are_not_written(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    worker.model.load_weights(checkpoint(1).items())
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in (1, 2)]
    worker.init(store=path)  # the head is another version
    assert worker.engine.version is None
    worker.update(snapshot=ids[0])
    assert worker.holds(checkpoint(1))
    assert worker.whole == 0
    worker.update(snapshot=ids[1], expect=ids[0])
    assert worker.holds(checkpoint(2))
    assert worker.whole == 0


def test_a_model_that_holds_the_head_is_recognized(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    first = local_repo.commit(checkpoint(3), branch="policy")
    worker.model.load_weights(checkpoint(3).items())
    worker.init(store=path, branch="policy")
    assert worker.engine.version == first.id
    assert worker.holds(checkpoint(3))


@pytest.mark.parametrize("change", ["nan", "integer", "dense"])
def test_tensors_that_vllm_cannot_patch_are_written_whole(
    worker: Worker, path: str, local_repo: Repository, change: str
) -> None:
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(2)]
    for version in ids:
        worker.update(store=path, snapshot=version)
    worker.patched.clear()
    odd = checkpoint(2)
    match change:
        case "nan":
            odd["k.weight"][1, 1] = torch.nan
        case "integer":
            odd["steps.weight"][1] = 9
        case "dense":
            odd["k.weight"] *= 2
    worker.update(snapshot=str(local_repo.commit(odd).id), expect=ids[1])
    assert worker.holds(odd)
    assert worker.whole == 1
    patched = {"embed.weight", "norm.weight"} | ({"k.weight"} if change == "integer" else set())
    assert set(worker.patched) == patched
    worker.update(snapshot=str(local_repo.commit(checkpoint(3)).id))
    assert worker.holds(checkpoint(3))


def test_a_model_in_another_layout_is_loaded_whole_each_time(
    adapter: Any, path: str, local_repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(adapter, Shuffled(), monkeypatch)
    for step in range(3):
        worker.update(store=path, snapshot=str(local_repo.commit(checkpoint(step)).id))
        expected = Shuffled()
        expected.load_weights(checkpoint(step).items())
        assert equal(dict(worker.model.state_dict()), dict(expected.state_dict()))
    assert (worker.whole, worker.patched) == (3, [])
    worker.engine.shutdown()


def test_a_loader_that_writes_in_its_own_way_is_never_patched(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    def assign(param: torch.Tensor, loaded: torch.Tensor) -> None:
        param[:] = loaded

    worker.model.norm.weight.weight_loader = assign  # type: ignore[attr-defined]
    for step in range(2):
        worker.update(store=path, snapshot=str(local_repo.commit(checkpoint(step)).id))
        assert worker.holds(checkpoint(step))
    assert worker.patched == []


@pytest.mark.parametrize("what", ["attribute", "parameter", "tied"])
def test_a_model_with_more_than_the_checkpoint_is_never_patched(
    adapter: Any, path: str, local_repo: Repository, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Tensors derived from weights would become stale, and one place cannot hold two tensors."""
    model = Model()

    def load_all_as_q(param: torch.Tensor, loaded: torch.Tensor, shard: str) -> None:
        model.load_shard(param, loaded, "q")

    match what:
        case "attribute":
            model.qkv.split = torch.zeros(3)
        case "parameter":
            model.qkv.scales = nn.Parameter(torch.zeros(3), requires_grad=False)
        case "tied":
            model.qkv.weight.weight_loader = load_all_as_q  # type: ignore[attr-defined]
    worker = Worker(adapter, model, monkeypatch)
    for step in range(2):
        weights = checkpoint(step)
        weights |= {f"{name}.weight": weights["q.weight"].clone() for name in "kv"}
        worker.update(store=path, snapshot=str(local_repo.commit(weights).id))
    assert (worker.whole, worker.patched) == (2, [])
    worker.engine.shutdown()


def test_patching_can_be_switched_off(worker: Worker, path: str, local_repo: Repository) -> None:
    worker.init(store=path, sparse=False)
    for step in range(2):
        worker.update(snapshot=str(local_repo.commit(checkpoint(step)).id))
        assert worker.holds(checkpoint(step))
    assert (worker.whole, worker.patched) == (2, [])


def test_an_expected_version_that_the_model_lacks_is_refused(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(3)]
    with pytest.raises(StaleError, match="unknown version"):
        worker.update(store=path, snapshot=ids[1], expect=ids[0])
    worker.update(store=path, snapshot=ids[0])
    with pytest.raises(StaleError, match=ids[0]) as caught:
        worker.update(snapshot=ids[2], expect=ids[1])
    assert caught.value.code is ErrorCode.STALE
    assert worker.holds(checkpoint(0))
    worker.update(snapshot=ids[2])
    assert worker.holds(checkpoint(2))


def test_updates_may_go_back_or_repeat_a_version(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(3)]
    for step in (2, 2, 0, 1):
        worker.update(store=path, snapshot=ids[step])
        assert worker.holds(checkpoint(step))
    assert worker.whole == 1


@pytest.mark.usefixtures("packs_apart")
def test_a_damaged_store_changes_no_weight(
    worker: Worker, path: str, local_repo: Repository, tmp_path: Path
) -> None:
    first = str(local_repo.commit(checkpoint(0)).id)
    worker.update(store=path, snapshot=first)
    packs = set(tmp_path.glob("store/packs/**/*"))
    second = str(local_repo.commit(checkpoint(1)).id)
    for pack in set(tmp_path.glob("store/packs/**/*")) - packs:
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            for n in range(0, len(data) // 2, 7):
                data[n] ^= 0x55
            pack.chmod(0o644)
            pack.write_bytes(data)
    with pytest.raises(IntegrityError):
        worker.update(snapshot=second, expect=first)
    assert worker.holds(checkpoint(0))
    assert str(worker.engine.version) == first
    with pytest.raises(NotFoundError):
        worker.update(snapshot="ab" * 32)
    assert str(worker.engine.version) == first


def test_after_a_failed_write_the_version_is_unknown(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(3)]
    worker.update(store=path, snapshot=ids[0])
    worker.model.fail = "k.weight"
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.update(snapshot=ids[1], expect=ids[0])
    assert worker.engine.version is None
    worker.model.fail = ""
    with pytest.raises(StaleError):
        worker.update(snapshot=ids[2], expect=ids[0])
    worker.update(snapshot=ids[2])
    assert worker.holds(checkpoint(2))
    assert worker.whole == 2


def test_a_copy_that_is_ahead_of_the_model_is_loaded_whole(
    worker: Worker, adapter: Any, path: str, local_repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy changes before the model; a failure in between must not lose the changes."""
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(3)]
    worker.update(store=path, snapshot=ids[0])

    def fail(patches: Iterator[Any]) -> Iterator[Any]:
        next(patches)
        raise MemoryError

    with monkeypatch.context() as patching:
        patching.setattr(adapter, "_batches", fail)
        with pytest.raises(MemoryError):
            worker.update(snapshot=ids[1], expect=ids[0])
    assert worker.holds(checkpoint(0))
    assert str(worker.engine.version) == ids[0]
    worker.update(snapshot=ids[2], expect=ids[0])
    assert worker.holds(checkpoint(2))
    assert worker.whole == 2


def test_a_version_with_other_tensors_is_loaded_whole(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    """The first version of the branch has other dtypes and more tensors than the later ones."""
    first = {name: tensor.double() for name, tensor in checkpoint(0).items()}
    first["steps.weight"] = checkpoint(0)["steps.weight"]
    ids = [str(local_repo.commit(first).id)]
    worker.init(store=path)
    ids += [str(local_repo.commit(checkpoint(step)).id) for step in (1, 2)]
    for version, weights in zip(ids, (first, checkpoint(1), checkpoint(2)), strict=True):
        worker.update(snapshot=version)
        assert worker.holds(weights)
    assert worker.whole == 2
    assert sorted(worker.patched) == ["embed.weight", "k.weight", "norm.weight"]


def test_an_engine_can_be_initialized_again_after_shutdown(
    worker: Worker, path: str, local_repo: Repository
) -> None:
    ids = [str(local_repo.commit(checkpoint(step)).id) for step in range(2)]
    with pytest.raises(InvalidInputError, match="no store"):
        worker.update(snapshot=ids[0])
    worker.update(store=path, snapshot=ids[0])
    worker.engine.shutdown()
    assert worker.engine.version is None
    assert worker.holds(checkpoint(0))
    worker.update(snapshot=ids[1])
    assert worker.holds(checkpoint(1))


def test_malformed_messages_are_refused(worker: Worker, path: str) -> None:
    with pytest.raises(ValueError, match="unexpected"):
        worker.update(snapshot="ab" * 32, names=["k.weight"])
    with pytest.raises(InvalidInputError, match="hexadecimal"):
        worker.update(store=path, snapshot="main")


def test_registering_twice_does_nothing(adapter: Any) -> None:
    adapter.register()
    adapter.register()
    from vllm.model_executor import model_loader

    assert model_loader.registry["casweights"] is adapter.CasweightsModelLoader


def test_without_vllm_there_is_a_clear_error() -> None:
    code = "import casweights.sync; import casweights.integrations.vllm"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode
    assert "ImportError: casweights.integrations.vllm needs vLLM 0.28 or newer" in run.stderr
