"""SIGKILL of trainers and replicas: replicas hold published versions, and durable versions stay.

The promises themselves are checked in `sync_driver.py`, which runs as a process without threads so
that it can fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from casweights.testing.hub import LocalHubProcess
from tests.faults.hub_driver import BUCKET
from tests.lengths import choose

ROOT = Path(__file__).parents[2]
SEED = 20261125
KILLS, HUB_KILLS = choose(8, 1000), choose(3, 100)


def drive(what: str, folder: Path, store: str, kills: int = 0) -> dict[str, int]:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.sync_driver"]
    run = subprocess.run(
        [*command, what, str(folder), store, str(SEED), str(kills)],
        capture_output=True,
        text=True,
        timeout=choose(300, 7200),
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, f"with seed {SEED}:\n{run.stderr}"
    ends: dict[str, int] = json.loads(run.stdout)
    print(ends)
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before call", "after call", "file change"])
def test_a_trainer_killed_at_any_step_loses_no_durable_version(tmp_path: Path, moment: str) -> None:
    ends = drive(f"trainer at {moment}", tmp_path, "")
    assert ends["killed"] >= choose(2, 15)
    assert ends["finished"] == 1, "with no step left to be killed at"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before call", "after call"])
def test_a_step_that_a_killed_trainer_made_from_another_parent_is_published(
    tmp_path: Path, moment: str
) -> None:
    """Only frames that are the same with either parent are uploaded again."""
    ends = drive(f"skipper at {moment}", tmp_path, "")
    assert ends["killed"] >= choose(2, 15)
    assert ends["finished"] == 1, "with no step left to be killed at"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before call", "file change"])
def test_a_trainer_killed_at_any_step_of_maintenance_loses_nothing(
    tmp_path: Path, moment: str
) -> None:
    ends = drive(f"maintained trainer at {moment}", tmp_path, "")
    assert ends["killed"] >= choose(4, 25)
    assert ends["finished"] == 1, "with no step left to be killed at"


@pytest.mark.slow
def test_a_trainer_that_maintains_and_its_replica_killed_at_random_moments(tmp_path: Path) -> None:
    ends = drive("maintained random", tmp_path / "run", str(tmp_path / "store"), KILLS // 2)
    assert ends["trainer killed"] + ends["replica killed"] >= KILLS // 2


@pytest.mark.slow
def test_a_replica_killed_at_any_write_can_start_again(tmp_path: Path) -> None:
    ends = drive("replica at exchange", tmp_path, "")
    assert ends["killed"] >= choose(2, 10)
    assert ends["finished"] == 1, "with no write left to be killed at"


@pytest.mark.slow
def test_trainer_and_replica_killed_at_random_moments_reach_the_goal(tmp_path: Path) -> None:
    ends = drive("random", tmp_path / "run", str(tmp_path / "store"), KILLS)
    assert ends["trainer killed"] + ends["replica killed"] >= KILLS
    assert min(ends["trainer killed"], ends["replica killed"]) > KILLS // 4


@pytest.mark.slow
def test_trainer_and_replica_killed_at_random_moments_reach_the_goal_with_a_hub(
    tmp_path: Path,
) -> None:
    """The replicas share a disk cache, in which killed ones may leave incomplete files."""
    with LocalHubProcess(tmp_path / "hub") as hub:
        hub.create_bucket(BUCKET)
        ends = drive("random", tmp_path / "run", f"{hub.url}#x", HUB_KILLS)
    assert ends["trainer killed"] + ends["replica killed"] >= HUB_KILLS
