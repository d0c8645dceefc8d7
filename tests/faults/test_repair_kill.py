"""SIGKILL at random steps of a repair loses nothing; repeating it rebuilds the rest.

Run as a module, this is the process without threads that forks the repairs: the arguments are where
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
from casweights.config import KiB, StoreConfig
from casweights.database.packs import list_packs
from casweights.errors import CasweightsError
from casweights.stores.local import LocalStore
from tests.disks import wait_for_no_disk
from tests.faults.kill_driver import Model, die_at, end_of, fork, limit_packs, look
from tests.lengths import choose, moments

if TYPE_CHECKING:
    from casweights import SnapshotId
    from casweights.stores.base import ObjectStore
    from tests.faults.kill_driver import Digests

SEED = 20261129


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before call", "after call", "file change"])
def test_a_repair_killed_at_random_steps_can_be_repeated(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.test_repair_kill"]
    run = subprocess.run(
        [*command, moment, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=choose(900, 14400),
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    ends = json.loads(run.stdout)
    print(ends)
    assert ends["killed"] >= choose(8, 100)
    assert ends["some versions were back"] >= 1, "killed after the repair had begun to help"


def make_damaged(root: Path, model: Model) -> dict[SnapshotId, Digests]:
    """Make a store in which frames, an index, a header and a whole version are damaged or gone."""
    versions = {}
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(root, create=True, config=config) as repo:
        for number in range(4):
            versions[repo.commit(model.folder).id] = model.digests()
            model.step()
            if number == 1:
                repo.repack()
    shutil.copytree(root, root.parent / "sound")
    for number, info in enumerate(list_packs(LocalStore(root))):
        path = root / info.name
        data = bytearray(path.read_bytes())
        data[(20, len(data) // 2, -20)[number % 3]] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    return versions


def repair(store: ObjectStore | Path, sources: list[Path]) -> None:
    with casweights.open(store) as repo:
        repo.repair(sources, apply=True)


def readable(root: Path, versions: dict[SnapshotId, Digests], out: Path) -> set[SnapshotId]:
    """Return the versions that can be checked out, which must have the right bytes."""
    found = set()
    for version, digests in versions.items():
        with casweights.open(root) as repo:
            try:
                repo.checkout(version, out, delete=True)
            except CasweightsError:
                continue
        assert look(out) == digests
        found.add(version)
    return found


def kill_at_random_steps(folder: Path, moment: str) -> Counter[str]:
    limit_packs(256 * KiB)
    model = Model(folder / "model", shards=2, tensors=6, nbytes=64 * KiB, seed=SEED)
    start = folder / "damaged"
    versions = make_damaged(start, model)
    before = readable(start, versions, folder / "out")
    assert len(before) < len(versions)
    ends: Counter[str] = Counter()
    for number in moments(6 if moment == "file change" else 28, moment):
        root = folder / f"store-{number}"
        shutil.copytree(start, root)
        action = partial(repair, sources=[folder / "sound"])
        end = end_of(fork(partial(die_at, moment, number, root, action)))
        ends[end] += 1
        now = readable(root, versions, folder / "out")
        assert now >= before, "a killed repair lost a version"
        ends["some versions were back"] += now > before
        repair(root, [folder / "sound"])
        assert readable(root, versions, folder / "out") == versions.keys()
        with casweights.open(root) as repo:
            assert repo.verify().problems == ()
        shutil.rmtree(root)
        if end == "finished":
            break
    return ends


if __name__ == "__main__":
    wait_for_no_disk()
    print(json.dumps(kill_at_random_steps(Path(sys.argv[2]), sys.argv[1])))
