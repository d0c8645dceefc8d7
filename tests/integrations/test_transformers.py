"""Checkpoints of real trainers and models, into a store and out of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import save_file

import casweights
from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from casweights.stores.memory import MemoryStore
from casweights.sync.publisher import Publisher
from casweights.testing.faults import Fault, FaultyStore

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from casweights.integrations.transformers import (  # noqa: E402
    CasweightsCallback,
    from_pretrained,
    resume,
)
from tests.integrations.tiny import gpt2, llama, same_weights, trainer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from casweights import Repository

LARGE = json.dumps({"architectures": ["LlamaForCausalLM"]}) + " " * (16 << 20)  # above the limit
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "transformers.md"
STATE_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def files(directory: Path) -> dict[str, bytes]:
    """Everything in a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def saved(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


# The callback


def test_every_checkpoint_becomes_a_version(repo: Repository, tmp_path: Path) -> None:
    callback = CasweightsCallback(repo, "run", author="me", metadata={"data": "v2"})
    trainer(tmp_path, callback, save_total_limit=1, max_steps=3).train()

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]  # the others are deleted
    log = list(repo.log("run"))
    assert [version.message for version in log] == ["step 3", "step 2", "step 1"]
    assert [version.metadata["step"] for version in log] == [3, 2, 1]
    assert [version.metadata["epoch"] for version in log] == [0.375, 0.25, 0.125]
    assert all(version.metadata["loss"] > 0 for version in log)
    assert {(version.author, version.metadata["data"]) for version in log} == {("me", "v2")}
    assert callback.snapshot == log[0]
    repo.checkout("run", tmp_path / "copy")
    assert files(tmp_path / "copy") == files(tmp_path / "checkpoint-3")
    assert files(tmp_path / "copy").keys() >= STATE_FILES | {"model.safetensors", "config.json"}


def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    repo: Repository, tmp_path: Path
) -> None:
    whole = trainer(tmp_path / "whole", save_steps=3)
    whole.train()
    trainer(tmp_path / "first", CasweightsCallback(repo), save_steps=3).train()

    again = CasweightsCallback(repo, "again", parent="main~1")
    second = trainer(tmp_path / "second", again, save_steps=3)
    path = resume(repo, "main~1", tmp_path / "second")
    assert path == str(tmp_path / "second" / "checkpoint-3")
    assert files(Path(path)) == files(tmp_path / "first" / "checkpoint-3")
    second.train(resume_from_checkpoint=path)

    assert same_weights(second.model, whole.model)
    expected = files(tmp_path / "whole" / "checkpoint-6")
    actual = files(tmp_path / "second" / "checkpoint-6")
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert actual[name] == expected[name], name
    steps = [version.metadata["step"] for version in repo.log("again")]
    assert steps == [6, 3]  # the branch begins at the version that was resumed


@pytest.mark.parametrize("name", ["notes.txt", "sub/optimizer.pt", "trainer_state.json"])
def test_resuming_loses_no_file_of_the_users(repo: Repository, tmp_path: Path, name: str) -> None:
    state = tmp_path / "source" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text('{"global_step": 12}')
    (state.parent / "optimizer.pt").touch()
    repo.commit(state.parent, branch="other")  # so nothing is lost with it
    (state.parent / "optimizer.pt").unlink()
    repo.commit(state.parent)
    own = tmp_path / "run" / "checkpoint-12" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(ConflictError, match=name):
        resume(repo, "main", tmp_path / "run")
    assert files(tmp_path / "run") == {f"checkpoint-12/{name}": b"mine"}
    own.unlink()
    for _ in range(2):  # what is there already is no obstacle
        path = resume(repo, "main", tmp_path / "run")
        assert files(Path(path)) == {"trainer_state.json": state.read_bytes()}


@pytest.mark.parametrize(
    "state", ['{"global_step": "1/../../../x"}', '{"global_step": -1}', "[]", "{}", "{"]
)
def test_only_a_checkpoint_can_be_resumed(repo: Repository, tmp_path: Path, state: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "trainer_state.json").write_text(state)
    repo.commit(tmp_path / "source")
    with pytest.raises(InvalidInputError, match="no checkpoint of a Trainer"):
        resume(repo, "main", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_url_is_opened_for_the_training_and_closed_after_it(tmp_path: Path) -> None:
    casweights.open(tmp_path / "store", create=True).close()
    callback = CasweightsCallback(tmp_path / "store")
    for run in ("one", "two"):
        trainer(tmp_path / run, callback, max_steps=1).train()
    with casweights.open(tmp_path / "store") as store:
        assert len(list(store.log())) == 2
    assert resume(tmp_path / "store", "main", tmp_path / "c").endswith("checkpoint-1")


@pytest.mark.parametrize("what", ["store", "parent"])
def test_what_is_not_there_is_told_before_the_first_step(tmp_path: Path, what: str) -> None:
    if what == "parent":
        casweights.open(tmp_path / "store", create=True).close()
    run = trainer(tmp_path / "run", CasweightsCallback(tmp_path / "store", parent="base"))
    with pytest.raises(NotFoundError):
        run.train()
    assert run.state.global_step == 0


def test_other_processes_open_and_commit_nothing(tmp_path: Path) -> None:
    callback = CasweightsCallback(tmp_path / "no-store")
    run = trainer(tmp_path / "run")
    state = transformers.TrainerState(global_step=1, is_world_process_zero=False)
    callback.on_train_begin(run.args, state, run.control)
    callback.on_save(run.args, state, run.control)
    callback.on_train_end(run.args, state, run.control)
    assert callback.snapshot is None


def failing_store() -> Repository:
    """A store that cannot write at first."""
    objects = MemoryStore()
    casweights.open(objects, create=True).close()
    return casweights.open(FaultyStore(objects, [Fault(call=1, method="put")]))


def test_a_storage_that_fails_ends_the_training(tmp_path: Path) -> None:
    with failing_store() as store, pytest.raises(StoreError, match="no space"):
        trainer(tmp_path, CasweightsCallback(store), max_steps=3).train()


def test_or_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with failing_store() as store:
        callback = CasweightsCallback(store, on_error="warn")
        trainer(tmp_path, callback, max_steps=3).train()
        steps = [version.metadata["step"] for version in store.log()]
    assert steps == [3, 2]
    assert "step 1 is not in the store: cannot write" in caplog.text


def test_what_happens_on_errors_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'raise' or 'warn'"):
        CasweightsCallback(tmp_path, on_error="ignore")  # type: ignore[arg-type]


# Both ranks are forks of one process, which imports torch and transformers once.
DISTRIBUTED = """
import os, sys, time
from functools import partial
from pathlib import Path
from transformers import Trainer
from casweights.integrations.transformers import CasweightsCallback
from tests.faults.kill_driver import end_of, fork
from tests.integrations.tiny import trainer

directory, save = Path(sys.argv[1]), Trainer._save_rng_state

def save_late(self, directory):
    time.sleep(0.5)
    save(self, directory)

def train(rank):
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    if rank == "1":
        Trainer._save_rng_state = save_late
    trainer(directory / "run", CasweightsCallback(directory / "store"), max_steps=2).train()

print(*map(end_of, [fork(partial(train, rank)) for rank in "01"]))
"""


@pytest.mark.slow
def test_one_process_commits_what_all_have_written(tmp_path: Path) -> None:
    casweights.open(tmp_path / "store", create=True).close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", DISTRIBUTED, str(tmp_path)]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    run = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **world, "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.split()[-2:] == ["finished", "finished"]
    with casweights.open(tmp_path / "store") as store:
        assert [version.metadata["step"] for version in store.log()] == [2, 1]
        for version in store.log():
            names = {file.path for file in version.files}
            assert names >= {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"}


# from_pretrained


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
def test_what_a_publisher_published_is_a_model(
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


def test_of_a_checkpoint_only_the_model_is_fetched(repo: Repository, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", CasweightsCallback(repo), max_steps=1)
    run.train()
    cls = transformers.AutoModelForCausalLM
    kept = tmp_path / "kept"
    loaded = from_pretrained(repo, "main", cls, directory=kept)
    assert same_weights(loaded, run.model)
    folder = kept / str(repo.resolve("main"))
    assert loaded.name_or_path == str(folder)
    assert set(files(folder)) == {"config.json", "generation_config.json", "model.safetensors"}


def two_sets(directory: Path) -> dict[str, PreTrainedModel]:
    """A single file and shards of another model beside it."""
    models = {"single": llama(), "shards": llama()}
    models["shards"].lm_head.weight.data += 1
    saved(models["single"], directory)
    single = (directory / "model.safetensors").read_bytes()
    saved(models["shards"], directory, max_shard_size="10KB")
    (directory / "model.safetensors").write_bytes(single)
    return models


def test_weights_that_programs_disagree_about_are_refused(repo: Repository, tmp_path: Path) -> None:
    models = two_sets(tmp_path)
    repo.commit(tmp_path)
    with pytest.raises(InvalidInputError, match=r"model\.safetensors\.index\.json") as caught:
        from_pretrained(repo)
    assert caught.value.code is ErrorCode.AMBIGUOUS
    assert from_pretrained(repo, "main", transformers.AutoConfig).intermediate_size == 48
    assert same_weights(from_pretrained(repo, include="model.safetensors"), models["single"])
    assert same_weights(from_pretrained(repo, include=["model-*"]), models["shards"])
    with pytest.raises(NotFoundError, match="no file with weights matches 'x'"):
        from_pretrained(repo, include=["x"])


def test_an_index_without_its_shards_is_an_error_of_the_version(
    repo: Repository, tmp_path: Path
) -> None:
    saved(llama(), tmp_path, max_shard_size="10KB")
    min(tmp_path.glob("model-*")).unlink()
    repo.commit(tmp_path)
    with pytest.raises(InvalidInputError, match="model-00001-of") as caught:
        from_pretrained(repo)
    assert caught.value.code is ErrorCode.BAD_INDEX


def test_a_variant_is_what_its_own_files_are(repo: Repository, tmp_path: Path) -> None:
    two_sets(tmp_path)
    saved(llama(), tmp_path, variant="fp16", max_shard_size="10KB")
    repo.commit(tmp_path)
    assert same_weights(from_pretrained(repo, variant="fp16"), llama())
    min(tmp_path.glob("model.fp16-*")).unlink()
    repo.commit(tmp_path)
    with pytest.raises(InvalidInputError, match=r"index\.fp16\.json"):
        from_pretrained(repo, variant="fp16")


def test_arguments_go_on_to_the_class(repo: Repository, tmp_path: Path) -> None:
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


def test_a_subfolder_is_fetched_alone(repo: Repository, tmp_path: Path) -> None:
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
def test_without_an_architecture_the_class_must_be_said(
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


def test_versions_that_are_kept_do_not_mix(repo: Repository, tmp_path: Path) -> None:
    repo.commit(saved(llama(), tmp_path / "whole"))
    other = llama()
    other.lm_head.weight.data += 1
    repo.commit(saved(other, tmp_path / "sharded", max_shard_size="10KB"))
    assert same_weights(from_pretrained(repo, "main~1", directory=tmp_path / "kept"), llama())
    assert same_weights(from_pretrained(repo, "main", directory=tmp_path / "kept"), other)


# Importing, and the page


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_imports_no_host() -> None:
    run = python("import sys, casweights.repository, casweights.integrations; print(*sys.modules)")
    assert not {"transformers", "peft", "accelerate"} & set(run.stdout.split())


@pytest.mark.parametrize(("module", "missing"), [("transformers",) * 2, ("peft",) * 2])
def test_without_the_host_the_error_says_what_to_install(module: str, missing: str) -> None:
    run = python(
        f"import sys; sys.modules[{missing!r}] = None; import casweights.integrations.{module}"
    )
    assert f"ImportError: casweights.integrations.{module} needs {missing}" in run.stderr
    assert f"pip install 'casweights[{missing}]'" in run.stderr


# peft asks a model for an attribute that transformers renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    prepared = trainer(tmp_path / "run", max_steps=2)
    names: dict[str, Any] = {"model": prepared.model, "args": prepared.args}
    names["dataset"] = prepared.train_dataset
    examples = [part.partition("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]
    assert len(examples) >= 4
    for example in examples:
        exec(example, names)
    assert names["path"] == str(tmp_path / "run" / "checkpoint-2")
    assert isinstance(names["adapted"], peft.PeftModel)


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
