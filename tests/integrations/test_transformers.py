"""Checkpoints of real trainers, committed to a store and resumed from it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.errors import ConflictError, InvalidInputError, NotFoundError, StoreError
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from casweights.integrations.transformers import (  # noqa: E402
    CasweightsCallback,
    resume,
)
from tests.integrations.tiny import same_weights, trainer  # noqa: E402

if TYPE_CHECKING:
    from casweights import Repository

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "transformers.md"
STATE_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def files(directory: Path) -> dict[str, bytes]:
    """The content of all files in a directory, by path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_every_checkpoint_becomes_a_version(repo: Repository, tmp_path: Path) -> None:
    callback = CasweightsCallback(repo, "run", author="me", metadata={"data": "v2"})
    trainer(tmp_path, callback, save_total_limit=1, max_steps=3).train()

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]  # the others are deleted
    log = list(repo.log("run"))
    assert [version.message for version in log] == ["step 3", "step 2", "step 1"]
    assert [version.metadata["step"] for version in log] == [3, 2, 1]
    assert [version.number for version in log] == [3, 2, 1]
    assert [version.metadata["epoch"] for version in log] == [0.375, 0.25, 0.125]
    assert all(version.metadata["loss"] > 0 for version in log)
    assert {(version.author, version.metadata["data"]) for version in log} == {("me", "v2")}
    assert callback.snapshot == log[0]
    repo.checkout("run", tmp_path / "copy")
    assert files(tmp_path / "copy") == files(tmp_path / "checkpoint-3")
    assert files(tmp_path / "copy").keys() >= STATE_FILES | {"model.safetensors", "config.json"}


def test_a_resumed_run_equals_an_uninterrupted_one(repo: Repository, tmp_path: Path) -> None:
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
def test_resuming_over_files_of_the_user_is_a_conflict(
    repo: Repository, tmp_path: Path, name: str
) -> None:
    state = tmp_path / "source" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text('{"global_step": 12}')
    (state.parent / "optimizer.pt").touch()
    repo.commit(state.parent, branch="other")  # so the store keeps its content
    (state.parent / "optimizer.pt").unlink()
    repo.commit(state.parent)
    own = tmp_path / "run" / "checkpoint-12" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(ConflictError, match=name):
        resume(repo, "main", tmp_path / "run")
    assert files(tmp_path / "run") == {f"checkpoint-12/{name}": b"mine"}
    own.unlink()
    for _ in range(2):  # existing files of the version are no obstacle
        path = resume(repo, "main", tmp_path / "run")
        assert files(Path(path)) == {"trainer_state.json": state.read_bytes()}


@pytest.mark.parametrize(
    "state", ['{"global_step": "1/../../../x"}', '{"global_step": -1}', "[]", "{}", "{"]
)
def test_only_a_checkpoint_can_be_resumed(repo: Repository, tmp_path: Path, state: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "trainer_state.json").write_text(state)
    repo.commit(tmp_path / "source")
    with pytest.raises(InvalidInputError, match="not a checkpoint of a Trainer"):
        resume(repo, "main", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_store_by_its_url_is_closed_after_the_training(tmp_path: Path) -> None:
    casweights.open(tmp_path / "store", create=True).close()
    callback = CasweightsCallback(tmp_path / "store")
    for run in ("one", "two"):
        trainer(tmp_path / run, callback, max_steps=1).train()
    with casweights.open(tmp_path / "store") as store:
        assert len(list(store.log())) == 2
    assert resume(tmp_path / "store", "main", tmp_path / "c").endswith("checkpoint-1")


@pytest.mark.parametrize("what", ["store", "parent"])
def test_a_missing_store_or_parent_is_refused_before_the_first_step(
    tmp_path: Path, what: str
) -> None:
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
    """A store whose first writes fail."""
    objects = MemoryStore()
    casweights.open(objects, create=True).close()
    return casweights.open(FaultyStore(objects, [Fault(call=1, method="put")]))


def test_a_failing_store_ends_the_training(tmp_path: Path) -> None:
    with failing_store() as store, pytest.raises(StoreError, match="no space"):
        trainer(tmp_path, CasweightsCallback(store), max_steps=3).train()


def test_a_failing_store_can_be_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with failing_store() as store:
        callback = CasweightsCallback(store, on_error="warn")
        trainer(tmp_path, callback, max_steps=3).train()
        steps = [version.metadata["step"] for version in store.log()]
    assert steps == [3, 2]
    assert "step 1 is not in the store: cannot write" in caplog.text


def test_an_unknown_on_error_is_refused(tmp_path: Path) -> None:
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
def test_one_process_commits_the_files_of_all(tmp_path: Path) -> None:
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


# peft reads an attribute of models that transformers renamed.
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
