"""SIGKILL at any step of a push leaves a sound target; repeating the push sends only the rest.

Run as a module, this is the process without threads that forks the pushes: the arguments are where
to kill, see `kill_driver.py`, and a folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import casweights
import casweights.operations.transfer
from casweights.config import KiB, StoreConfig
from casweights.stores.local import LocalStore
from casweights.testing.faults import FaultyStore
from tests.disks import wait_for_no_disk
from tests.faults.kill_driver import Model, die_at, end_of, fork, limit_packs, look
from tests.lengths import choose, moments

if TYPE_CHECKING:
    from casweights import SnapshotId
    from casweights.stores.base import ObjectStore
    from tests.faults.kill_driver import Digests

SEED = 20260117


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before call", "after call", "file change"])
def test_a_push_killed_at_any_step_can_be_repeated(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.test_transfer_kill"]
    run = subprocess.run(
        [*command, moment, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    ends = json.loads(run.stdout)
    print(ends)
    assert ends["killed"] >= choose(6, 20)
    assert ends["nothing was left to do"] >= 1, "with the last step left to be killed at"


def make_source(root: Path, model: Model) -> dict[SnapshotId, Digests]:
    """Make a store of two branches, partly repacked."""
    versions = {}
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(root, create=True, config=config) as repo:
        for branch in ("main", "main", "fork", "main"):
            parent = "main" if branch == "fork" else None
            version = repo.commit(model.folder, branch=branch, parent=parent)
            versions[version.id] = model.digests()
            model.step()
            if len(versions) == 2:
                repo.repack(compression="small")
        repo.tag("v1", "main~1")
    return versions


def push(target: ObjectStore | Path, source: Path) -> None:
    with casweights.open(source) as here, casweights.open(target) as there:
        here.push(there)


def names(root: Path) -> set[str]:
    return {info.name for info in LocalStore(root).list()}


def check(root: Path, versions: dict[SnapshotId, Digests]) -> None:
    """Check that the objects that arrived are sound, and every version has its whole history."""
    with casweights.open(root) as repo:
        found = repo.verify()
        assert found.problems == (), found.problems
        assert {snapshot.id for name in repo.branches() for snapshot in repo.log(name)} <= set(
            versions
        )


def kill_at_every_step(folder: Path, moment: str) -> Counter[str]:
    limit_packs(256 * KiB)
    model = Model(folder / "model", shards=2, tensors=6, nbytes=64 * KiB, seed=SEED)
    source = folder / "source"
    versions = make_source(source, model)
    ends: Counter[str] = Counter()
    for number in moments(5, moment):
        target = folder / f"target-{number}"
        casweights.open(target, create=True, config=StoreConfig(chunk_size=64 * KiB)).close()
        end = end_of(fork(partial(die_at, moment, number, target, partial(push, source=source))))
        ends[end] += 1
        check(target, versions)

        arrived = names(target)
        watched = FaultyStore(LocalStore(target))
        push(watched, source)
        written = {name for method, name in watched.calls if method == "put"}
        assert not written & arrived, "something was uploaded twice"
        assert arrived | written == names(target)
        ends["nothing was left to do"] += not written
        check(target, versions)
        with casweights.open(source) as here, casweights.open(target) as there:
            assert there.branches() == here.branches()
            assert there.tags() == here.tags()
            for version, digests in versions.items():
                there.checkout(version, folder / "out", delete=True)
                assert look(folder / "out") == digests
        shutil.rmtree(target)
        if end == "finished":
            return ends
    raise AssertionError("not reached")


if __name__ == "__main__":
    wait_for_no_disk()
    print(json.dumps(kill_at_every_step(Path(sys.argv[2]), sys.argv[1])))
