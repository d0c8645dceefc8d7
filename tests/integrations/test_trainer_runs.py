"""Runs of trainers and their branches: no run continues the branch of another by accident."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.errors import ConflictError, ErrorCode, InvalidInputError, StoreError
from casweights.stores.memory import MemoryStore

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import TrainerCallback, TrainerState

from casweights.integrations import _runs
from casweights.integrations.transformers import CasweightsCallback, resume
from tests.integrations.tiny import llama, trainer

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository


@pytest.mark.parametrize("logged", [True, False])
def test_two_runs_on_one_branch_get_a_conflict(
    repo: Repository, tmp_path: Path, logged: bool
) -> None:
    options: dict[str, Any] = {} if logged else {"logging_strategy": "no"}
    trainer(tmp_path / "one", CasweightsCallback(repo, "run"), max_steps=2, **options).train()
    head = repo.resolve("run")
    second = trainer(tmp_path / "two", CasweightsCallback(repo, "run"), max_steps=2, **options)
    with pytest.raises(ConflictError, match=r"another branch.*resume\(\).*parent='run'") as caught:
        second.train()
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    assert second.state.global_step == 0
    assert repo.resolve("run") == head


class Mover(TrainerCallback):
    """Moves the branch at one step, as a concurrent run would."""

    def __init__(self, repo: Repository, step: int) -> None:
        self.repo, self.step = repo, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.repo.commit({"step": self.step}, branch="run")


@pytest.mark.parametrize("step", [1, 2])
def test_a_branch_that_another_run_moves_is_a_conflict(
    repo: Repository, tmp_path: Path, step: int
) -> None:
    callback = CasweightsCallback(repo, "run", on_error="warn")
    run = trainer(tmp_path, Mover(repo, step), callback, max_steps=4)
    with pytest.raises(ConflictError, match="a separate branch") as caught:
        run.train()
    assert caught.value.code is ErrorCode.REF_MOVED
    assert run.state.global_step == step
    assert repo.load("run") == {"step": step}
    with pytest.raises(ConflictError):  # also at later saves
        callback.on_save(run.args, run.state, run.control)
    assert [path.name for path in tmp_path.glob(f"checkpoint-{step}")]


class Killed(BaseException):
    """Stands in for the end of a process."""


class KilledAt(TrainerCallback):
    """Kills the run after a step was saved, before or after its commit."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize(
    ("when", "logging_strategy"), [("before the commit", "no"), ("after the commit", "steps")]
)
def test_a_killed_run_continues_on_its_branch(
    repo: Repository, tmp_path: Path, when: str, logging_strategy: str
) -> None:
    options: dict[str, Any]
    options = {"save_total_limit": 1, "max_steps": 4, "logging_strategy": logging_strategy}
    callbacks: list[TrainerCallback] = [CasweightsCallback(repo, "run"), KilledAt(2)]
    if when == "before the commit":
        callbacks.reverse()
    with pytest.raises(Killed):
        trainer(tmp_path, *callbacks, **options).train()
    again = trainer(tmp_path, CasweightsCallback(repo, "run"), **options)
    again.train(resume_from_checkpoint=True)
    steps = [version.metadata["step"] for version in repo.log("run")]
    assert steps == ([4, 3, 1] if when == "before the commit" else [4, 3, 2, 1])


def test_a_run_continues_elsewhere_only_from_the_head(repo: Repository, tmp_path: Path) -> None:
    trainer(tmp_path / "one", CasweightsCallback(repo, "run"), max_steps=2).train()
    path = resume(repo, "run", tmp_path / "two")
    second = trainer(tmp_path / "two", CasweightsCallback(repo, "run"), max_steps=3)
    second.train(resume_from_checkpoint=path)
    assert [version.metadata["step"] for version in repo.log("run")] == [3, 2, 1]

    path = resume(repo, "run~1", tmp_path / "three")
    third = trainer(tmp_path / "three", CasweightsCallback(repo, "run"), max_steps=4)
    with pytest.raises(ConflictError):  # the version is not the head
        third.train(resume_from_checkpoint=path)
    assert third.state.global_step == 2


def test_a_run_cannot_resume_on_the_branch_of_another(repo: Repository, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 1, "logging_strategy": "no"}
    for name in ("one", "two"):  # equal in everything but their run IDs
        trainer(tmp_path / name, CasweightsCallback(repo, name), **options).train()
    mistaken = trainer(tmp_path / "two", CasweightsCallback(repo, "one"), max_steps=2)
    with pytest.raises(ConflictError):
        mistaken.train(resume_from_checkpoint=True)
    assert [version.metadata["step"] for version in repo.log("one")] == [1]


def test_only_one_of_two_runs_can_resume_the_same_run(repo: Repository, tmp_path: Path) -> None:
    trainer(tmp_path / "one", CasweightsCallback(repo, "run"), max_steps=2).train()
    runs = []
    for name in ("two", "three"):
        path = resume(repo, "run", tmp_path / name)
        callback = CasweightsCallback(repo, "run")
        runs.append((callback, trainer(tmp_path / name, callback, max_steps=4), path))
    (first, one, path), (_, other, other_path) = runs

    class Overtakes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                other.train(resume_from_checkpoint=other_path)

    one.add_callback(Overtakes())
    with pytest.raises(ConflictError):
        one.train(resume_from_checkpoint=path)
    assert first.snapshot is None
    assert [version.metadata["step"] for version in repo.log("run")] == [4, 3, 2, 1]


def test_a_run_may_follow_the_head_that_it_names_as_parent(
    repo: Repository, tmp_path: Path
) -> None:
    base = repo.commit(dict(llama().state_dict()))
    trainer(tmp_path / "run", CasweightsCallback(repo, parent="main"), max_steps=1).train()
    assert [version.id for version in repo.log()][1:] == [base.id]


def test_a_run_continues_from_a_version_that_failed_after_moving_the_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with casweights.open(MemoryStore(), create=True) as store:
        refs = store.database.refs
        advance, failing = refs.advance, [2]

        def fail_afterwards(*args: Any, ready: Any) -> Any:
            head = advance(*args, ready=ready)
            if head.position == failing[0]:
                raise StoreError(ErrorCode.IO_FAILED, "the answer was lost")
            return head

        monkeypatch.setattr(refs, "advance", fail_afterwards)
        callback = CasweightsCallback(store, "run", on_error="warn")
        trainer(tmp_path, callback, max_steps=4).train()
        assert [version.metadata["step"] for version in store.log("run")] == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "state", ["[]", "{", '{"global_step": "1"}', '{"global_step": 0, "log_history": 1}', "[" * 9999]
)
def test_a_head_that_is_no_checkpoint_is_a_conflict(
    repo: Repository, tmp_path: Path, state: str
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "trainer_state.json").write_text(state)
    repo.commit(tmp_path / "source")
    nothing: Any = None
    with pytest.raises(ConflictError, match="already exists"):
        CasweightsCallback(repo).on_train_begin(nothing, TrainerState(), nothing)


def test_a_state_that_is_too_large_is_not_read(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_runs, "_MAX_STATE", 100)
    (tmp_path / "source").mkdir()
    state = tmp_path / "source" / "trainer_state.json"
    state.write_text('{"global_step": 3}' + " " * 100)
    repo.commit(tmp_path / "source", branch="large")
    state.write_text('{"global_step": 3}')
    repo.commit(tmp_path / "source", branch="small")
    with pytest.raises(InvalidInputError, match="118 bytes, above the limit of 100"):
        resume(repo, "large", tmp_path / "run")
    assert resume(repo, "small", tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")
