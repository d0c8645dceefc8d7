"""Models that transformers loads from versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import save_file

from casweights.errors import ErrorCode, InvalidInputError, NotFoundError, UnsupportedError
from casweights.sync.publisher import Publisher
from casweights.testing.trees import read_tree

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from casweights.integrations.transformers import (  # noqa: E402
    CasweightsCallback,
    from_pretrained,
)
from tests.integrations.tiny import gpt2, llama, same_weights, trainer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

    from casweights import Repository

LARGE = json.dumps({"architectures": ["LlamaForCausalLM"]}) + " " * (16 << 20)  # above the limit


def saved(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("shards", ["one", "many"])
def test_a_model_comes_back_bit_for_bit(
    repo: Repository,
    tmp_path: Path,
    make: Callable[[], PreTrainedModel],
    shards: str,
) -> None:
    model = make()
    size = {"one": "1GB", "many": "10KB"}[shards]
    directory = saved(model, tmp_path / "model", max_shard_size=size)
    assert (len(list(directory.glob("*.safetensors"))) > 1) == (shards == "many")
    repo.commit(directory)
    loaded = from_pretrained(repo)
    assert type(loaded) is type(model)
    assert same_weights(loaded, model)
    assert loaded.name_or_path == loaded.config.name_or_path == ""


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_published_version_loads_as_a_model(
    repo: Repository, tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    model = make()
    saved(model, tmp_path / "base")
    with Publisher(repo, extra=tmp_path / "base") as publisher:
        for step in (1, 2):
            next(model.parameters()).data += 1  # the embeddings
            publisher.publish(model, step=step)
    loaded, info = from_pretrained(repo, output_loading_info=True)
    assert same_weights(loaded, model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_only_the_model_of_a_checkpoint_is_fetched(repo: Repository, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", CasweightsCallback(repo), max_steps=1)
    run.train()
    cls = transformers.AutoModelForCausalLM
    kept = tmp_path / "kept"
    loaded = from_pretrained(repo, "main", cls, directory=kept)
    assert same_weights(loaded, run.model)
    folder = kept / str(repo.resolve("main"))
    assert loaded.name_or_path == str(folder)
    assert set(read_tree(folder)) == {"config.json", "generation_config.json", "model.safetensors"}


def two_sets(directory: Path) -> dict[str, PreTrainedModel]:
    """Save a model in a single file, and another one in shards, to one directory."""
    models = {"single": llama(), "shards": llama()}
    models["shards"].lm_head.weight.data += 1
    saved(models["single"], directory)
    single = (directory / "model.safetensors").read_bytes()
    saved(models["shards"], directory, max_shard_size="10KB")
    (directory / "model.safetensors").write_bytes(single)
    return models


def test_ambiguous_weights_are_refused(repo: Repository, tmp_path: Path) -> None:
    models = two_sets(tmp_path)
    repo.commit(tmp_path)
    with pytest.raises(InvalidInputError, match=r"model\.safetensors\.index\.json") as caught:
        from_pretrained(repo)
    assert caught.value.code is ErrorCode.AMBIGUOUS
    assert from_pretrained(repo, "main", transformers.AutoConfig).intermediate_size == 48
    assert same_weights(from_pretrained(repo, include="model.safetensors"), models["single"])
    assert same_weights(from_pretrained(repo, include=["model-*"]), models["shards"])
    with pytest.raises(NotFoundError, match="no weight file matches 'x'"):
        from_pretrained(repo, include=["x"])


def test_an_index_without_its_shards_is_refused(repo: Repository, tmp_path: Path) -> None:
    saved(llama(), tmp_path, max_shard_size="10KB")
    min(tmp_path.glob("model-*")).unlink()
    repo.commit(tmp_path)
    with pytest.raises(InvalidInputError, match="model-00001-of") as caught:
        from_pretrained(repo)
    assert caught.value.code is ErrorCode.BAD_INDEX


def test_a_variant_is_checked_by_its_own_files(repo: Repository, tmp_path: Path) -> None:
    two_sets(tmp_path)
    saved(llama(), tmp_path, variant="fp16", max_shard_size="10KB")
    repo.commit(tmp_path)
    assert same_weights(from_pretrained(repo, variant="fp16"), llama())
    min(tmp_path.glob("model.fp16-*")).unlink()
    repo.commit(tmp_path)
    with pytest.raises(InvalidInputError, match=r"index\.fp16\.json"):
        from_pretrained(repo, variant="fp16")


def test_arguments_are_passed_to_the_class(repo: Repository, tmp_path: Path) -> None:
    import torch

    repo.commit(saved(llama(), tmp_path / "model"))
    loaded = from_pretrained(repo, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert same_weights(loaded.to(torch.float32), from_pretrained(repo).bfloat16().float())


def test_tokenizers_and_configs_need_no_weights(repo: Repository, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "model")
    repo.commit(saved(llama(), tmp_path / "model"))
    kept = tmp_path / "kept"
    loaded = from_pretrained(repo, "main", transformers.AutoTokenizer, directory=kept)
    assert loaded("world hello there")["input_ids"] == [2, 1, 0]
    assert "tokenizer.json" in {path.name for path in kept.rglob("*")}
    assert not list(kept.rglob("*.safetensors"))
    config = from_pretrained(repo, "main", transformers.AutoConfig)
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.intermediate_size == 48
    assert config.name_or_path == ""


def test_only_the_files_of_a_subfolder_are_fetched(repo: Repository, tmp_path: Path) -> None:
    saved(llama(), tmp_path / "models" / "large")
    saved(gpt2(), tmp_path / "models" / "small")
    repo.commit(tmp_path / "models")
    kept = tmp_path / "kept"
    loaded = from_pretrained(repo, "main", directory=kept, subfolder="small")
    assert same_weights(loaded, gpt2())
    assert [path.name for path in kept.glob("*/*")] == ["small"]
    with pytest.raises(NotFoundError, match="no files to load from in none"):
        from_pretrained(repo, "main", subfolder="none")


@pytest.mark.parametrize("architecture", ["NoSuchModel", "AutoTokenizer", "__name__"])
def test_a_class_that_is_no_model_is_not_called(
    repo: Repository, tmp_path: Path, architecture: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    repo.commit(tmp_path)
    with pytest.raises(UnsupportedError, match="pass `cls`"):
        from_pretrained(repo)


@pytest.mark.parametrize(
    "config", [None, "{}", "[]", '{"architectures": []}', "{", "[" * 9999, LARGE]
)
def test_without_an_architecture_the_class_must_be_passed(
    repo: Repository, tmp_path: Path, config: str | None
) -> None:
    import torch

    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    repo.commit(tmp_path)
    with pytest.raises(NotFoundError, match="pass `cls`") as caught:
        from_pretrained(repo)
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND


def test_versions_in_one_directory_do_not_mix(repo: Repository, tmp_path: Path) -> None:
    repo.commit(saved(llama(), tmp_path / "whole"))
    other = llama()
    other.lm_head.weight.data += 1
    repo.commit(saved(other, tmp_path / "sharded", max_shard_size="10KB"))
    assert same_weights(from_pretrained(repo, "main~1", directory=tmp_path / "kept"), llama())
    assert same_weights(from_pretrained(repo, "main", directory=tmp_path / "kept"), other)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module."])
def test_a_checkpoint_of_a_wrapped_model_loads_under_its_plain_names(
    repo: Repository, tmp_path: Path, prefix: str
) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "model")
    wrapped = {prefix + name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(wrapped, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    repo.commit(tmp_path / "model")
    assert same_weights(from_pretrained(repo), model)
