"""Kills commits, checkouts and repacks in forked children. `test_kill.py` runs it as a process.

Usage: kill_driver.py MOMENT FOLDER SEED TRIALS

MOMENT is "random" or selects the steps at which to kill, with one trial for each: "before call" or
"after call" for operations on the store, or "file change" for changes to the file system. The
program prints its counts as JSON; a broken promise ends it with a traceback.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

import casweights
import casweights.database.reflog
import casweights.database.writer
import casweights.operations.checkout
import casweights.operations.maintain
import casweights.operations.merging
import casweights.operations.repack
from casweights.config import KiB, StoreConfig
from casweights.database.packs import list_packs, read_pack_index
from casweights.format.dtypes import DTYPES
from casweights.format.hashing import blake3_256
from casweights.format.safetensors import build_header
from casweights.stores.local import LocalStore
from casweights.system.staging import PREFIX
from casweights.testing.faults import Fault, FaultyStore, kill_process
from tests.disks import wait_for_no_disk
from tests.lengths import moments

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import SnapshotId
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore

TRIALS_PER_STORE = 10
FILE_CHANGES = ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")

Digests = dict[str, bytes]


class Model:
    """A directory of safetensors shards; each step changes some of the tensors."""

    def __init__(self, folder: Path, shards: int, tensors: int, nbytes: int, seed: int) -> None:
        self.folder = folder
        self._chance = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._nbytes = nbytes
        self._step = 0
        layout = [(f"layer.{n}", DTYPES["F32"], (nbytes // 4,)) for n in range(tensors)]
        header = build_header(layout, {"format": "pt"})
        self._start = len(header)
        self._shards = [bytearray(header + bytes(tensors * nbytes)) for _ in range(shards)]
        (folder / "sub").mkdir(parents=True)
        for number in range(shards):
            self._change(number, range(tensors))

    def _change(self, number: int, tensors: range | list[int]) -> None:
        shard = self._shards[number]
        for n in tensors:
            start = self._start + n * self._nbytes
            if n % 2:
                shard[start : start + self._nbytes] = self._numbers.bytes(self._nbytes)
            else:
                values = self._numbers.standard_normal(self._nbytes // 4, dtype="f4")
                shard[start : start + self._nbytes] = values.tobytes()
        (self.folder / "sub" / f"model-{number}.safetensors").write_bytes(shard)

    def step(self) -> None:
        """Change some tensors of two shards, one small file, and the set of files."""
        self._step += 1
        for number in self._chance.sample(range(len(self._shards)), 2):
            total = (len(self._shards[number]) - self._start) // self._nbytes
            self._change(number, self._chance.sample(range(total), total // 2))
        (self.folder / f"step-{self._step - 1}.txt").unlink(missing_ok=True)
        (self.folder / f"step-{self._step}.txt").write_text(f"step {self._step}")
        (self.folder / "config.json").write_text(json.dumps({"step": self._step}))

    def digests(self) -> Digests:
        return look(self.folder)


def look(folder: Path) -> Digests:
    """Return the digest of every file below a folder, without drafts."""
    return {
        path.relative_to(folder).as_posix(): blake3_256(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and PREFIX not in str(path)
    }


def leftovers(folder: Path) -> list[Path]:
    gc.collect()  # the temporary folder of an open store is deleted with the store
    return list(folder.glob(f"{PREFIX}*"))


def fork(action: Callable[[], object]) -> int:
    """Run `action` in a child, which ends without any cleanup; return its process ID."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def end_of(child: int) -> str:
    """Wait for a child; return "killed" or "finished". Any other end is an error."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {-signal.SIGKILL: "killed", 0: "finished"}[code]


def kill_after(seconds: float, action: Callable[[], object]) -> str:
    child = fork(action)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return end_of(child)


def seconds_for(action: Callable[[], object]) -> float:
    start = time.monotonic()
    assert end_of(fork(action)) == "finished"
    return time.monotonic() - start


def limit_packs(size: int) -> None:
    """Make a commit of a few hundred kilobytes write several packs."""
    vars(casweights.database.writer)["PACK_TARGET"] = size


def repeated_frames(root: Path) -> set[tuple[ChunkId, ChunkId | None]]:
    """Return the chunks that are stored twice with the same base, or twice without one."""
    store = LocalStore(root)
    found = Counter(
        (location.frame.chunk, location.frame.base)
        for info in list_packs(store)
        for location in read_pack_index(store, info)
    )
    return {key for key, times in found.items() if times > 1}


def commit(store: ObjectStore | Path, model: Path) -> SnapshotId:
    with casweights.open(store) as repo:
        return repo.commit(model).id


def checkout(store: ObjectStore | Path, version: SnapshotId, target: Path) -> None:
    with casweights.open(store) as repo:
        repo.checkout(version, target, delete=True)


def limit_versions() -> None:
    """Make maintenance move all versions into archives but the last one of a branch."""
    vars(casweights.operations.merging)["FAN_IN"] = 1
    vars(casweights.database.reflog)["RECENT_MOVES"] = 1


def repack(store: ObjectStore | Path) -> None:
    """Maintain a store, and then repack it."""
    with casweights.open(store) as repo:
        repo.maintain()
        repo.repack(compression="small")  # another compression, so that every pack is replaced


class Trials:
    """One store, on which commits, checkouts and repacks are killed and repeated.

    Attributes:
        versions: The digests of the files of every version that was committed.
    """

    def __init__(self, folder: Path, model: Model, chunk_size: int) -> None:
        self.model = model
        self.root = folder / "store"
        self.target = folder / "target"
        self.versions: dict[SnapshotId, Digests] = {}
        config = StoreConfig(chunk_size=chunk_size)
        casweights.open(self.root, create=True, config=config).close()
        self.head = self.commit()

    def commit(self) -> SnapshotId:
        self.head = commit(self.root, self.model.folder)
        self.versions[self.head] = self.model.digests()
        return self.head

    def check_store(self, spot: random.Random) -> bool:
        """Check after a kill that all earlier versions are sound.

        Every frame is decoded and hashed; one file of one version is compared as well.

        Returns:
            Whether the killed commit had made its version visible.
        """
        with casweights.open(self.root) as repo:
            found = repo.verify()
            assert found.problems == (), found.problems
            log = [snapshot.id for snapshot in repo.log()]
            assert self.head in log[:2], "the branch lost a version"
            assert set(self.versions) <= set(log)
            version = spot.choice(list(self.versions))
            path = spot.choice(list(self.versions[version]))
            assert blake3_256(b"".join(repo.read(version, path))) == self.versions[version][path]
            return log[0] != self.head

    def repeat_commit(self) -> None:
        """Repeat a killed commit: it uses the packs that arrived and leaves no draft behind."""
        arrived = {path: path.stat().st_ino for path in (self.root / "packs").glob("*")}
        self.commit()
        with casweights.open(self.root) as repo:
            found = repo.verify()
            assert found.problems == (), found.problems
            assert not repeated_frames(self.root), "a chunk was uploaded twice"
        assert {path: path.stat().st_ino for path in arrived} == arrived
        del repo
        assert leftovers(self.root) == []

    def check_target(self, before: Digests, wanted: Digests) -> None:
        """Check after a kill that each file is the old one, the new one, or missing."""
        for path, digest in look(self.target).items():
            assert digest in (before.get(path), wanted.get(path)), f"{path} is half-written"

    def repeat_checkout(self, version: SnapshotId) -> None:
        checkout(self.root, version, self.target)
        assert look(self.target) == self.versions[version]
        assert leftovers(self.target) == []

    def repeat_repack(self) -> None:
        """Repeat a killed repack: it completes and leaves none of the old packs."""
        repack(self.root)
        with casweights.open(self.root) as repo:
            found = repo.verify()
            assert found.problems == (), found.problems
        assert not repeated_frames(self.root), "old packs are left"

    def check_all_versions(self) -> None:
        for version, digests in self.versions.items():
            shutil.rmtree(self.target)
            checkout(self.root, version, self.target)
            assert look(self.target) == digests


def kill_at_random(folder: Path, seed: int, number: int) -> Counter[str]:
    """Kill commits and checkouts, half of the trials each, at random moments."""
    limit_packs(512 * KiB)
    chance = random.Random(seed)
    model = Model(folder / "model", shards=4, tensors=12, nbytes=128 * KiB, seed=seed)
    ends: Counter[str] = Counter()
    for first in range(0, number // 2, TRIALS_PER_STORE):
        place = folder / f"trials-{first}"
        place.mkdir()
        trials = Trials(place, model, 256 * KiB)
        model.step()
        commit_time = seconds_for(partial(commit, trials.root, model.folder))
        trials.commit()
        checkout_time = seconds_for(partial(checkout, trials.root, trials.head, trials.target))
        for _ in range(min(TRIALS_PER_STORE, number // 2 - first)):
            model.step()
            seconds = chance.uniform(0, commit_time)
            end = kill_after(seconds, partial(commit, trials.root, model.folder))
            ends[f"commit {end}"] += 1
            ends["commit visible"] += trials.check_store(chance)
            trials.repeat_commit()

            version = chance.choice(list(trials.versions))
            if chance.random() < 0.3:
                shutil.rmtree(trials.target)
            before = look(trials.target)
            seconds = chance.uniform(0, checkout_time)
            end = kill_after(seconds, partial(checkout, trials.root, version, trials.target))
            ends[f"checkout {end}"] += 1
            trials.check_target(before, trials.versions[version])
            trials.repeat_checkout(version)
        trials.check_all_versions()
        shutil.rmtree(place)
    return ends


def die_at_file_change(number: int) -> None:
    """Arrange that this process is killed just before its `number`-th change of a file."""
    numbers = count(1)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def watch(event: str, args: tuple[Any, ...]) -> None:
        changes = event in FILE_CHANGES or (event == "open" and args[2] & writing)
        if changes and next(numbers) == number:
            kill_process()

    sys.addaudithook(watch)


def die_at(moment: str, number: int, root: Path, action: Callable[[ObjectStore], object]) -> None:
    store: ObjectStore = LocalStore(root)
    if moment == "file change":
        die_at_file_change(number)
    else:
        fault = Fault(call=number, after=moment == "after call", action=kill_process)
        store = FaultyStore(store, [fault])
    action(store)


def kill_at_every_step(folder: Path, seed: int, moment: str) -> Counter[str]:
    """Kill a commit, a checkout and a repack at operations on the store or file system.

    Maintenance before the repack is killed as well.
    """
    limit_packs(256 * KiB)
    limit_versions()
    chance = random.Random(seed)
    model = Model(folder / "model", shards=2, tensors=8, nbytes=64 * KiB, seed=seed)
    ends: Counter[str] = Counter()
    for number in moments(6, moment):
        place = folder / f"trial-{number}"
        place.mkdir()
        trials = Trials(place, model, 64 * KiB)
        die = partial(die_at, moment, number, trials.root)
        old = trials.head
        shutil.copytree(model.folder, trials.target)
        before = look(trials.target)
        model.step()
        commit_end = end_of(fork(partial(die, partial(commit, model=model.folder))))
        ends[f"commit {commit_end}"] += 1
        ends["commit visible"] += trials.check_store(chance)
        trials.repeat_commit()

        restore = partial(checkout, version=trials.head, target=trials.target)
        checkout_end = end_of(fork(partial(die, restore)))
        ends[f"checkout {checkout_end}"] += 1
        trials.check_target(before, trials.versions[trials.head])
        trials.repeat_checkout(trials.head)
        trials.repeat_checkout(old)

        repack_end = end_of(fork(partial(die, repack)))
        ends[f"repack {repack_end}"] += 1
        assert not trials.check_store(chance)
        trials.check_all_versions()
        trials.repeat_repack()
        trials.check_all_versions()
        shutil.rmtree(place)
        if commit_end == checkout_end == repack_end == "finished":
            break
    return ends


def main() -> NoReturn:
    moment, folder, seed, number = sys.argv[1:]
    wait_for_no_disk()
    gc.freeze()  # otherwise a collection in a child copies all objects of this process
    if moment == "random":
        ends = kill_at_random(Path(folder), int(seed), int(number))
    else:
        ends = kill_at_every_step(Path(folder), int(seed), moment)
    print(json.dumps(ends))
    sys.exit()


if __name__ == "__main__":
    main()
