"""Many processes work on one store while some of them are killed or stopped.

`chaos_driver.py` implements the run; `tools/soak/run chaos` runs it for any length of time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import casweights
from tests.faults.chaos_oracle import find_problems
from tests.faults.chaos_workers import Journal, Place
from tests.faults.sync_states import CONFIG, digest, state
from tests.lengths import choose

ROOT = Path(__file__).parents[2]
SEED = 20261128
DISTURBANCES = choose(10, 1000)  # not a time, so that slow machines do not test less


def chaos(store: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.chaos_driver"]
    options = {"--disturbances": DISTURBANCES, "--seed": SEED, "--store": store, "--folder": folder}
    run = subprocess.run(
        [*command, *(str(part) for option in options.items() for part in option)],
        capture_output=True,
        text=True,
        timeout=choose(600, 3600),
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, f"with seed {SEED}:\n{run.stderr}"
    print(run.stdout)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("store", ["directory", "hub"])
def test_a_store_keeps_every_result_that_it_reported(tmp_path: Path, store: str) -> None:
    result = chaos(store, tmp_path / "run")
    assert result["problems"] == []
    assert result["workers"]["killed"] >= 4
    assert result["workers"]["stopped"] >= 4
    assert {"commit", "publish"} <= result["done"].keys()
    # How much of the other work completes before a kill depends on the machine.
    assert {"follow", "read", "make", "repack"} <= result["begun"].keys()


class Quiet:
    """A store and a journal, as after a run in which only the calls of a test happened."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder, None)
        self.journal = Journal(folder / "journal", "nobody")
        self.repo = casweights.open(folder / "store", create=True, config=CONFIG, workers=1)

    def commit(self, branch: str = "main", step: int = 1, held: int = 1) -> str:
        return str(self.repo.commit(state(held), branch=branch, metadata={"step": step}).id)

    def told(self, **line: object) -> None:
        self.journal.note(**{"ref": "main", "done": True, **line})

    def problems(self) -> str:
        self.repo.close()
        return "\n".join(find_problems(self.place))


@pytest.fixture
def quiet(tmp_path: Path) -> Quiet:
    return Quiet(tmp_path)


def test_the_oracle_reports_nothing_if_all_results_hold(quiet: Quiet) -> None:
    version = quiet.commit()
    quiet.told(what="commit", version=version)
    quiet.repo.branch("x", "main")
    quiet.repo.tag("y", "main")
    quiet.told(what="make", ref="branch x", at=version)
    quiet.told(what="make", ref="tag y", at=version)
    quiet.told(what="make", ref="branch gone", at=version)
    quiet.told(what="delete", ref="branch gone", at=None)
    quiet.told(what="make", ref="branch maybe", at=version, done=False)
    assert quiet.problems() == ""


def test_the_oracle_reports_a_lost_version(quiet: Quiet) -> None:
    quiet.commit()
    quiet.told(what="conflict", version="ab" * 32)
    assert "the store has no snapshot abab" in quiet.problems()


def test_the_oracle_reports_a_version_that_is_not_on_its_branch(quiet: Quiet) -> None:
    quiet.commit()
    other = quiet.commit("other", 2, 2)
    quiet.told(what="make", ref="branch other", at=other)
    quiet.told(what="commit", version=other)
    assert f"{other} is not on main" in quiet.problems()


def test_the_oracle_reports_a_version_with_other_content(quiet: Quiet) -> None:
    assert digest(state(1)) != digest(state(2))
    quiet.told(what="commit", version=quiet.commit(step=1, held=2))
    assert "is not what step 1 must be" in quiet.problems()


def test_the_oracle_reports_refs_that_returned_moved_or_vanished(quiet: Quiet) -> None:
    first = quiet.commit()
    quiet.commit(step=2, held=2)
    for name in ("back", "elsewhere", "unknown"):
        quiet.repo.branch(name, "main")
    quiet.told(what="delete", ref="branch back", at=None)
    quiet.told(what="make", ref="branch elsewhere", at=first)
    quiet.told(what="make", ref="tag lost", at=first)
    found = quiet.problems()
    for problem in ("branch back is at", "branch elsewhere is at", "tag lost is at None"):
        assert problem in found
    assert "no worker made branch unknown" in found


def test_the_oracle_reports_damage_and_tracebacks(quiet: Quiet) -> None:
    quiet.commit()
    [version] = (quiet.place.folder / "store/snapshots").iterdir()
    version.write_bytes(version.read_bytes()[:-20])
    (quiet.place.folder / "x.stderr").write_text("casweights: this is a bug of casweights: ...")
    found = quiet.problems()
    assert "verify:" in found
    assert "x.stderr" in found
