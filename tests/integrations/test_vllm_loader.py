"""Models that vLLM loads from a store at the start; see `test_vllm`."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from casweights.errors import (
    ErrorCode,
    InvalidInputError,
    NotFoundError,
)
from tests.integrations.fused_model import Model, checkpoint, equal, served

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from tests.integrations.fused_model import Weights
    from tests.integrations.vllm_worker import Worker


def loader(adapter: Any, **extra: Any) -> Any:
    return adapter.CasweightsModelLoader(SimpleNamespace(model_loader_extra_config=extra))


PLAIN = SimpleNamespace(quantization=None)


def test_a_cold_start_loads_the_version(adapter: Any, path: str, local_repo: Repository) -> None:
    local_repo.commit(checkpoint(0))
    local_repo.tag("v1", "main")
    local_repo.commit(checkpoint(1))
    for ref, step in (("main", 1), ("v1", 0), (str(local_repo.resolve("main")), 1)):
        cold = loader(adapter, store=path, ref=ref)
        cold.download_model(PLAIN)
        model = Model()
        cold.load_weights(model, PLAIN)
        assert equal(dict(model.state_dict()), served(checkpoint(step)))


def test_a_cold_start_accepts_names_of_a_compiled_model(
    adapter: Any, path: str, local_repo: Repository
) -> None:
    local_repo.commit({f"_orig_mod.{name}": tensor for name, tensor in checkpoint(0).items()})
    model = Model()
    loader(adapter, store=path, ref="main").load_weights(model, PLAIN)
    assert equal(dict(model.state_dict()), served(checkpoint(0)))


def strays(directory: Path) -> None:
    """Write files that vLLM ignores next to a sharded checkpoint; their names sort last."""
    wrong = checkpoint(7)
    for path in ("model-00009-of-00009", "z/model-00001-of-00001", "model.fp16", "consolidated"):
        target = directory / f"{path}.safetensors"
        target.parent.mkdir(exist_ok=True)
        save_file(wrong, target)


def shards(directory: Path, weights: Weights) -> None:
    """A checkpoint in two shards, and strays."""
    names = {"model-00001-of-00002.safetensors": list(weights)[::2]}
    names["model-00002-of-00002.safetensors"] = list(weights)[1::2]
    for path, part in names.items():
        save_file({name: weights[name] for name in part}, directory / path)
    index = {name: path for path, part in names.items() for name in part}
    text = json.dumps({"weight_map": index})
    (directory / "model.safetensors.index.json").write_text(text)
    strays(directory)


def test_strays_do_not_reach_a_model(
    worker: Worker, adapter: Any, path: str, local_repo: Repository, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    ids = []
    for step in range(2):
        shards(folder, checkpoint(step))
        ids.append(str(local_repo.commit(folder).id))
    model = Model()
    loader(adapter, store=path).load_weights(model, PLAIN)
    assert equal(dict(model.state_dict()), served(checkpoint(1)))
    for step in range(2):
        worker.update(store=path, snapshot=ids[step])
        assert worker.holds(checkpoint(step))


def test_patterns_select_the_files_to_load(
    worker: Worker, adapter: Any, path: str, local_repo: Repository, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    strays(folder)
    shards(folder, checkpoint(0))
    version = str(local_repo.commit(folder).id)
    for include in ("z/*", ["z/*"]):
        model = Model()
        loader(adapter, store=path, include=include).load_weights(model, PLAIN)
        assert equal(dict(model.state_dict()), served(checkpoint(7)))
    worker.init(store=path, include=["z/*"])
    worker.update(store=path, snapshot=version)
    assert worker.holds(checkpoint(7))


def test_files_that_differ_are_refused_before_a_weight_is_loaded(
    worker: Worker, adapter: Any, path: str, local_repo: Repository, tmp_path: Path
) -> None:
    for n in (1, 2):
        save_file(checkpoint(n), tmp_path / f"model-0000{n}-of-00002.safetensors")
    version = str(local_repo.commit(tmp_path, exclude=["store"]).id)
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InvalidInputError, match=r"model-00001.*model-00002.*include=") as caught:
        loader(adapter, store=path).load_weights(model, PLAIN)
    assert caught.value.code is ErrorCode.AMBIGUOUS
    assert equal(dict(model.state_dict()), before)
    before = {name: tensor.clone() for name, tensor in worker.model.state_dict().items()}
    with pytest.raises(InvalidInputError, match="include="):
        worker.update(store=path, snapshot=version)
    assert equal(dict(worker.model.state_dict()), before)


def test_a_version_that_lacks_weights_is_refused(
    adapter: Any, path: str, local_repo: Repository
) -> None:
    weights = checkpoint()
    del weights["norm.weight"]
    local_repo.commit(weights)
    with pytest.raises(NotFoundError, match=r"norm\.weight"):
        loader(adapter, store=path).load_weights(Model(), PLAIN)
    with pytest.raises(NotFoundError):
        loader(adapter, store=path, ref="other").download_model(PLAIN)


def test_several_ranks_must_name_a_version_by_its_id(
    adapter: Any, path: str, local_repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = str(local_repo.commit(checkpoint()).id)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InvalidInputError, match=version):
        loader(adapter, store=path).load_weights(Model(), PLAIN)
    loader(adapter, store=path, ref=version).load_weights(Model(), PLAIN)


@pytest.mark.parametrize(
    "extra", [{}, {"store": ""}, {"store": "x", "revision": "main"}, {"store": "x", "include": [1]}]
)
def test_a_config_without_a_store_is_refused(adapter: Any, extra: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="model-loader-extra-config"):
        loader(adapter, **extra)
