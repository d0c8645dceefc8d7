"""Writers and collectors on one directory, killed at random. `test_collect_kill.py` runs it.

Usage: collect_driver.py FOLDER SEED ROUNDS

Between two rounds nothing runs, and everything becomes older than the grace time. The program
prints its counts as JSON; a broken promise ends it with a traceback.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import casweights
from casweights.config import KiB, StoreConfig
from casweights.errors import CasweightsError, NotFoundError
from casweights.format import names
from casweights.stores.local import LocalStore
from tests.ages import DAY, GRACE, age
from tests.lengths import choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import Repository

WRITERS = COLLECTORS = 2
STATES = 5  # so few that chunks recur which are about to go
CONFIG = StoreConfig(chunk_size=64 * KiB)
FILE = "w.bin"


def content(state: int) -> bytes:
    """Return the bytes of a state; two states share a chunk."""
    parts = (random.Random(state).randbytes(64 * KiB), random.Random(state // 2).randbytes(99))
    return b"".join(parts)


def write(folder: Path, name: str, seed: int) -> None:
    """Commit states to branches, and delete branches; log each promise once it was made."""
    chance, source = random.Random(seed), folder / f"source-{name}"
    source.mkdir(exist_ok=True)
    with (folder / f"log-{name}").open("a") as log, open_store(folder) as repo:

        def note(*event: object) -> None:
            log.write(json.dumps(event) + "\n")
            log.flush()

        while True:
            branch, state = f"{name}/{chance.randrange(3)}", chance.randrange(STATES)
            if chance.random() < 0.3:
                note("deleting", branch)
                with suppress(NotFoundError):
                    repo.delete_branch(branch)
                note("deleted", branch)
                continue
            (source / FILE).write_bytes(content(state))
            note("committing", branch)
            made = repo.commit(source, branch=branch)
            note("committed", branch, str(made.id), state)


def collect(folder: Path, name: str, seed: int) -> None:
    """Collect again and again; now and then bring something back."""
    chance = random.Random(f"{name} {seed}")
    with open_store(folder) as repo:
        while True:
            # Another collector may have been killed, or may have deleted what this one reads.
            with suppress(CasweightsError):
                done = repo.gc(apply=True)
                if done.pending and chance.random() < 0.2:
                    repo.undelete_collection(done.pending[0].id)


def open_store(folder: Path) -> Repository:
    return casweights.open(folder / "store", create=True, config=CONFIG, workers=1)


def run_killed(work: Callable[[Path, str, int], None], folder: Path, name: str, seed: int) -> int:
    """Start a child that works until it is killed."""
    child = os.fork()
    if child == 0:
        try:
            work(folder, name, seed)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # only errors end the work
    return child


def run_round(folder: Path, seed: int, counts: Counter[str]) -> None:
    chance = random.Random(seed)
    jobs = [(write, f"w{n}") for n in range(WRITERS)] + [
        (collect, f"c{n}") for n in range(COLLECTORS)
    ]
    children = [run_killed(work, folder, name, seed) for work, name in jobs]
    chance.shuffle(children)
    for child in children:
        time.sleep(chance.uniform(0.1, choose(0.3, 1)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "a child ended by an error"
        counts["kills"] += 1


def check(folder: Path, counts: Counter[str]) -> None:
    """Check that everything that was promised is there."""
    with open_store(folder) as repo:
        problems = repo.verify().problems
        assert problems == (), problems
        heads = repo.branches()
        for log in folder.glob("log-*"):
            for branch, events in by_branch(log).items():
                last = max(
                    (n for n, event in enumerate(events) if event[0] == "committed"), default=-1
                )
                since = [event[0] for event in events[last + 1 :]]
                if since[-1:] == ["deleted"]:
                    assert branch not in heads, branch
                elif last >= 0 and "deleting" not in since:  # else it is not known what happened
                    _, _, version, state = events[last]
                    assert version in [str(found.id) for found in repo.log(branch)], branch
                    read = b"".join(repo.read(version, FILE))
                    assert read == content(state), branch
                    counts["checked"] += 1


def by_branch(log: Path) -> dict[str, list[list[Any]]]:
    found: dict[str, list[list[Any]]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        found.setdefault(event[1], []).append(event)
    return found


def main(folder: Path, seed: int, rounds: int) -> None:
    counts: Counter[str] = Counter()
    open_store(folder).close()
    objects = LocalStore(folder / "store")
    for number in range(rounds):
        run_round(folder, seed + number, counts)
        counts["aside"] += len(list(objects.list(names.ASIDE)))
        check(folder, counts)
        age(objects, GRACE + DAY)
    with open_store(folder) as repo:
        for _ in range(3):
            age(objects, GRACE + DAY)
            repo.gc(apply=True)
    assert not list(objects.list(names.ASIDE))
    check(folder, counts)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
