"""SIGKILL at any moment leaves earlier versions intact, and repeating the command completes it.

The promises themselves are checked in `kill_driver.py`, which runs as a process without threads so
that it can fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lengths import choose

SEED = 20240229
TRIALS = choose(40, 2000)


def drive(moment: str, folder: Path) -> dict[str, int]:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.kill_driver"]
    run = subprocess.run(
        [*command, moment, str(folder), str(SEED), str(TRIALS)],
        capture_output=True,
        text=True,
        timeout=choose(900, 14400),
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, f"with seed {SEED}:\n{run.stderr}"
    ends: dict[str, int] = json.loads(run.stdout)
    print(ends)
    return ends


@pytest.mark.slow
def test_commands_killed_at_random_moments_can_be_repeated(tmp_path: Path) -> None:
    ends = drive("random", tmp_path)
    assert ends["commit killed"] + ends.get("commit finished", 0) == TRIALS // 2
    assert ends["checkout killed"] + ends.get("checkout finished", 0) == TRIALS // 2
    assert ends["commit killed"] > TRIALS // 4, "the kills came too late to prove anything"
    assert ends["checkout killed"] > TRIALS // 4, "the kills came too late to prove anything"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before call", "after call", "file change"])
def test_commands_killed_at_any_step_can_be_repeated(tmp_path: Path, moment: str) -> None:
    ends = drive(moment, tmp_path)
    assert ends["commit killed"] >= choose(3, 10)
    assert ends["checkout killed"] >= choose(3, 10)
    assert ends["repack killed"] >= choose(3, 10)
    assert ends["repack finished"] >= 1, "with no step left to be killed at"
    assert ends["checkout finished"] >= 1, "with no step left to be killed at"
    assert ends["commit finished"] >= 1, "with no step left to be killed at"
