"""Writers and collectors of one store, killed at random moments: nothing promised is lost.

`collect_driver.py` checks the promises, as a process without threads, so that it can fork.
`tools/soak/run collect` does the same for longer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lengths import choose

SEED, KILLS = 20261129, choose(20, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["directory", "hub"])
def test_killed_writers_and_collectors_lose_nothing(store: str) -> None:
    command = [sys.executable, "-m", "tests.faults.collect_driver", f"--store={store}"]
    run = subprocess.run(
        [*command, f"--kills={KILLS}", f"--seed={SEED}"],
        capture_output=True,
        text=True,
        timeout=choose(600, 7200),
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    counts: dict[str, int] = json.loads(run.stdout)
    assert counts["kills"] == KILLS
    assert counts["loaded"] > KILLS
    assert counts["checked"] > 0
