"""Trainers and replicas work while the Hub is down or fails, or others move the branch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import ConflictError, Publisher
from casweights.testing.hub import Conditions, LocalHubProcess
from tests.faults.hub_driver import BUCKET
from tests.faults.sync_driver import Run
from tests.faults.sync_states import ENDLESS, state, step_of
from tests.faults.test_hub_kill import ROOT, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository


@contextmanager
def at_work(run: Run, replicas: int) -> Iterator[None]:
    """Run a trainer and its replicas in processes; check at the end that all reached the goal."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.sync_driver", "run"]
    command += [str(run.folder), run.store, "0", str(replicas)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield
        except BaseException:
            run.goal = 0  # makes all processes end
            raise
        finally:
            _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


@contextmanager
def hub_run(folder: Path, conditions: Conditions) -> Iterator[tuple[LocalHubProcess, Run]]:
    with LocalHubProcess(folder / "hub") as hub:
        hub.create_bucket(BUCKET)
        run = Run(folder / "run", f"{hub.url}#x")
        run.create()
        hub.conditions = conditions
        yield hub, run


def wait_for_news(run: Run, kind: str, times: int) -> None:
    wanted = len(run.notes(kind)) + times
    wait_until(lambda: len(run.notes(kind)) >= wanted)


@pytest.mark.slow
def test_trainer_and_replicas_survive_outages_of_the_hub(tmp_path: Path) -> None:
    """One outage begins during an upload of the trainer, one during downloads of the replicas."""
    with hub_run(tmp_path, Conditions(latency=0.01)) as (hub, run):
        run.goal = ENDLESS
        with at_work(run, replicas=2):
            for route, seconds in (("batch", 10.0), ("reconstruction", 1.0)):
                wait_for_news(run, "served", 3)
                hub.reset_counters()
                wait_until(lambda route=route: hub.counters().requests[route] > 0)  # type: ignore[misc]
                hub.kill()
                time.sleep(seconds)
                hub.restart()
                wait_for_news(run, "claimed", 1)
            wait_for_news(run, "served", 4)
            run.goal = 0
    assert run.notes("conflicts") == []


@pytest.mark.slow
def test_trainer_and_replicas_survive_failing_requests(tmp_path: Path) -> None:
    with hub_run(tmp_path, Conditions(error_rate=0.05, seed=1)) as (_, run):
        run.goal = 29
        with at_work(run, replicas=2):
            pass
    assert run.notes("conflicts") == []
    assert len({version for version, _ in run.notes("served")}) > 5


def rewind(repo: Repository) -> None:
    repo.branch("main", "main~2", force=True)


def publish_too(repo: Repository) -> None:
    with Publisher(repo) as other:
        head = other.wait()
        assert head is not None
        other.publish(state(step_of(head) + 1), step=step_of(head) + 1)


@pytest.mark.slow
def test_trainer_and_replicas_survive_other_writers_of_the_branch(tmp_path: Path) -> None:
    """The trainer gets a conflict and restarts from the new head; the replicas follow."""
    run = Run(tmp_path / "run", str(tmp_path / "store"))
    run.create()
    run.goal = ENDLESS
    with at_work(run, replicas=2), casweights.open(run.store, workers=2) as repo:
        for move in (rewind, publish_too, rewind):
            wait_for_news(run, "claimed", 2)
            wait_for_news(run, "served", 2)
            conflicts = len(run.notes("conflicts"))
            until_it_wins(move, repo)
            wait_until(lambda seen=conflicts: len(run.notes("conflicts")) > seen)  # type: ignore[misc]
        wait_for_news(run, "served", 2)
        run.goal = 0


def until_it_wins(move: Callable[[Repository], object], repo: Repository) -> None:
    while True:
        with suppress(ConflictError):
            move(repo)
            return
