"""Writers and collectors of one directory, killed at random moments: nothing promised is lost.

`collect_driver.py` checks the promises, as a process without threads, so that it can fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lengths import choose

SEED, ROUNDS = 20261129, choose(8, 250)


@pytest.mark.slow
def test_killed_writers_and_collectors_lose_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.faults.collect_driver",
            str(tmp_path),
            str(SEED),
            str(ROUNDS),
        ],
        capture_output=True,
        text=True,
        timeout=choose(600, 7200),
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, f"with seed {SEED}:\n{run.stderr}"
    counts: dict[str, int] = json.loads(run.stdout)
    assert counts["kills"] == 4 * ROUNDS
    assert counts["aside"] > 0, "nothing was collected, so this proves nothing"
    assert counts["checked"] > ROUNDS
