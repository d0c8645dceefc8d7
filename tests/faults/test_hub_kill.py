"""A client of the Hub, or the Hub itself, is killed with SIGKILL during its work.

The promises about killed clients are checked in `hub_driver.py`, which runs as a process without
threads so that it can fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casweights import CasweightsError, ErrorCode, SnapshotId
from casweights.testing.hub import Conditions, LocalHub, LocalHubProcess
from tests.faults.hub_driver import (
    BUCKET,
    PACK,
    RANDOM_TRIALS,
    check_sound,
    new_store,
    opened,
    sizes,
    small_model,
    watched_uploads,
)
from tests.faults.kill_driver import Digests, Model, look
from tests.lengths import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


def drive(moment: str, folder: Path) -> dict[str, int]:
    with LocalHub(folder / "hub") as hub:
        hub.create_bucket(BUCKET)
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.hub_driver"]
        run = subprocess.run(
            [*command, moment, hub.url, str(folder)],
            capture_output=True,
            text=True,
            timeout=choose(300, 7200),
            check=False,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
    assert run.returncode == 0, run.stderr
    ends: dict[str, int] = json.loads(run.stdout)
    print(ends)
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after call", "after step"])
def test_a_commit_killed_at_any_step_can_be_repeated(tmp_path: Path, moment: str) -> None:
    ends = drive(moment, tmp_path)
    assert ends["killed"] >= choose(3, 10)
    assert ends["finished"] == 1, "with no step left to be killed at"


@pytest.mark.slow
def test_a_commit_killed_at_random_moments_can_be_repeated(tmp_path: Path) -> None:
    ends = drive("random", tmp_path)
    assert ends["killed"] + ends.get("finished", 0) == RANDOM_TRIALS
    assert ends["killed"] > RANDOM_TRIALS // 2, "the kills came too late to prove anything"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHubProcess]:
    with LocalHubProcess(tmp_path / "hub") as hub:
        hub.create_bucket(BUCKET)
        yield hub


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr("casweights.database.writer.PACK_TARGET", PACK)
    return small_model(tmp_path / "model")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


class Outage:
    """Runs an action, kills the Hub during it, and restarts the Hub after some seconds."""

    def __init__(self, hub: LocalHubProcess, seconds: float) -> None:
        self._hub = hub
        self._seconds = seconds
        self.error: CasweightsError | None = None

    def during(self, action: Callable[[], object], route: str, times: int) -> None:
        def act() -> None:
            try:
                action()
            except CasweightsError as error:
                self.error = error

        self._hub.reset_counters()
        thread = threading.Thread(target=act)
        thread.start()
        wait_until(lambda: self._hub.counters().requests[route] >= times)
        self._hub.kill()
        time.sleep(self._seconds)
        self._hub.restart()
        thread.join()


SLOW = Conditions(latency=0.03, bandwidth=4_000_000.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "times"),
    [("xorb_upload", 2), ("batch", 2)],
)
def test_an_upload_survives_an_outage_or_reports_it(
    hub: LocalHubProcess, model: Model, tmp_path: Path, route: str, times: int
) -> None:
    """A patient client waits; an impatient one reports the outage, and the next client reuses
    the objects that had arrived.
    """
    new_store(hub.url, "x")
    hub.conditions = SLOW
    versions: dict[SnapshotId, Digests] = {}
    for patience, seconds in ((60.0, 1.0), (0.2, 2.0)):
        with opened(hub.url, "x", patience=patience, stall=1.0) as repo:
            outage = Outage(hub, seconds)
            outage.during(lambda: repo.commit(model.folder), route, times)
            if patience > 1:
                assert outage.error is None
                versions[repo.resolve("main")] = model.digests()
            else:
                assert outage.error is not None
                assert outage.error.code is ErrorCode.UNREACHABLE
                assert repo.resolve("main") in versions
        arrived = sizes(hub.url, "x")
        with opened(hub.url, "x") as repo:
            check_sound(repo, versions, tmp_path / "out")
            with watched_uploads() as sent:
                versions[repo.commit(model.folder).id] = model.digests()
        after = sizes(hub.url, "x")
        assert arrived.items() <= after.items()
        assert sum(sent) == sum(after.values()) - sum(arrived.values())
        model.step()
    with opened(hub.url, "x") as repo:
        check_sound(repo, versions, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_a_download_survives_an_outage_or_reports_it(
    hub: LocalHubProcess, model: Model, tmp_path: Path, seconds: float
) -> None:
    new_store(hub.url, "x")
    with opened(hub.url, "x") as repo:
        version = repo.commit(model.folder).id
    hub.conditions = SLOW
    with opened(hub.url, "x", stall=1.0) as repo:
        outage = Outage(hub, seconds)
        outage.during(lambda: repo.checkout("main", tmp_path / "out"), "xorb_read", 2)
        assert outage.error is None
        assert look(tmp_path / "out") == model.digests()
    with opened(hub.url, "x", patience=0.2, stall=1.0) as repo:
        outage = Outage(hub, 2.0)
        outage.during(lambda: repo.checkout("main", tmp_path / "again"), "xorb_read", 2)
        assert outage.error is not None
        assert outage.error.code is ErrorCode.UNREACHABLE
        assert look(tmp_path / "again") == {}
        check_sound(repo, {version: model.digests()}, tmp_path / "again")
