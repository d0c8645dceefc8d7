"""Several processes share a cache on disk, and some of them are killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import sys
import time
from itertools import count
from typing import TYPE_CHECKING

from casweights.stores.cached import CachedStore
from casweights.stores.local import LocalStore
from casweights.system.staging import PREFIX

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from multiprocessing.synchronize import Event
    from pathlib import Path

KiB = 1 << 10
SIZE = 300 * KiB
CAPACITY = 1024 * KiB
NAMES = [f"packs/{n}" for n in range(6)]
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "fcntl.flock")
TRIALS = 24
PATIENCE = 60  # seconds for a process to start or to end
FORKS = multiprocessing.get_context(
    "forkserver"
)  # its processes inherit the imports of this module
FORKS.set_forkserver_preload([__name__])


def content(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


class CountingLocalStore(LocalStore):
    count = 0

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        self.count += 1
        super().readinto(name, start, out)


def kill_at(moment: int) -> None:
    numbers = count(1)

    def hook(event: str, _: object) -> None:
        if event in CHANGES and next(numbers) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def read_some(store: CachedStore, contents: dict[str, bytes], chance: random.Random) -> None:
    name = chance.choice(NAMES)
    step = chance.choice([1, 50_000])
    start = chance.randrange(SIZE // step) * step
    size = chance.choice([100, 1000, 50_000, 100_000])
    expected = contents[name][start : start + size]
    assert store.get(name, start, len(expected)) == expected, (name, start, size)


def read_until(folder: Path, seed: int, moment: int, ready: Event) -> None:
    """Read until a file `stop` exists, or kill this process before a change of the file system.

    Args:
        folder: Folder of the store, the cache and the file `stop`.
        seed: Seed of the random reads.
        moment: Number of the change before which to kill the process; 0 for no kill.
        ready: Set when the reads begin.
    """
    contents = {name: content(name) for name in NAMES}
    inner = CountingLocalStore(folder / "store")
    store = CachedStore(inner, folder / "cache", CAPACITY, "key")
    chance = random.Random(seed)
    ready.set()
    if moment:
        kill_at(moment)
    for number in count(1):
        read_some(store, contents, chance)
        if number >= 500 and (folder / "stop").exists():
            break
    assert 0 < inner.count < number, "nothing came from the cache"


def start(folder: Path, seed: int, moment: int = 0) -> ForkServerProcess:
    ready = FORKS.Event()
    process = FORKS.Process(target=read_until, args=(folder, seed, moment, ready))
    process.start()
    assert ready.wait(PATIENCE)
    return process


def end(process: ForkServerProcess) -> int | None:
    process.join(PATIENCE)
    return process.exitcode


def write_store(folder: Path) -> LocalStore:
    store = LocalStore(folder / "store")
    store.create()
    for name in NAMES:
        store.put(name, [content(name)])
    return store


def leftovers(cache: Path) -> list[Path]:
    gc.collect()
    return list(cache.glob(f"{PREFIX}*"))


def nbytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())


def test_readers_get_right_bytes_while_others_are_killed(tmp_path: Path) -> None:
    store, cache, chance = write_store(tmp_path), tmp_path / "cache", random.Random(1)
    steady = [start(tmp_path, seed) for seed in range(3)]
    try:
        for trial in range(TRIALS):
            moment = chance.randrange(1, 200) if trial % 2 else 0
            victim = start(tmp_path, 100 + trial, moment)
            if not moment:
                time.sleep(chance.random() / 10)
                victim.kill()
            assert end(victim) == -signal.SIGKILL
    finally:
        (tmp_path / "stop").touch()
        statuses = [end(process) for process in steady]
    assert statuses == [0, 0, 0]

    late = CachedStore(store, cache, CAPACITY, "another key")
    assert late.get(NAMES[0], 0, 1000) == content(NAMES[0])[:1000]
    assert 0 < nbytes(cache) <= CAPACITY
    del late
    assert leftovers(cache) == []

    store.delete_all(NAMES)
    again = CachedStore(store, cache, CAPACITY, "key")
    checked = 0
    for name in NAMES:
        for extent in again._cache._object_folder(name).glob("*"):
            first, last = map(int, extent.name.split("-"))
            assert again.get(name, first, last - first) == content(name)[first:last]
            checked += 1
    assert checked


def test_the_next_process_deletes_drafts_of_killed_ones(tmp_path: Path) -> None:
    """This holds at every step at which the first write to the cache may stop."""
    store = write_store(tmp_path)
    seen = 0
    for moment in range(1, 16):
        cache = tmp_path / "cache"
        assert end(start(tmp_path, seed=7, moment=moment)) == -signal.SIGKILL
        seen += len(leftovers(cache))
        later = CachedStore(store, cache, CAPACITY, "key")
        for _ in range(2):
            assert later.get(NAMES[0], 0, 1000) == content(NAMES[0])[:1000]
        assert later._cache._object_folder(NAMES[0]).is_dir(), "the cache must be in use again"
        del later
        assert leftovers(cache) == []
        cache.rename(tmp_path / f"cache {moment}")
    assert seen, "no process was killed during a write"
