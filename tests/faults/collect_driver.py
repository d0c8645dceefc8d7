"""Writers and collectors on one store, killed at random; `test_collect_kill.py` runs it.

Between two rounds nothing runs, and everything becomes older than the grace time. The program
prints its counts as JSON; a broken promise ends it with a traceback. This process opens no store,
so that it has no threads and can fork.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from casweights.format import names
from casweights.stores.local import LocalStore
from casweights.testing.hub import Conditions, LocalHubProcess
from casweights.testing.states import assert_same_state
from tests.ages import DAY, GRACE, age
from tests.faults.collect_workers import STATES, Place, collect, content, write
from tests.faults.hub_driver import BUCKET, import_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import Repository

WRITERS, COLLECTORS = 8, 2
LONG = GRACE + DAY
FREEING = Conditions(free_after=0.0, token_lifetime=1e9)


class Run:
    """A run of some rounds.

    Args:
        place: The store.
        hub: The Hub that has it; None for a directory.
        seed: Seed of all choices.
    """

    def __init__(self, place: Place, hub: LocalHubProcess | None, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._place, self._hub, self._seed = place, hub, seed
        self._ahead = 0.0
        self.wait(0.0)
        self._do(lambda: place.open().close(), "the store cannot be made")

    def wait(self, seconds: float = LONG.total_seconds()) -> None:
        """Let time pass."""
        if self._hub is None:
            if seconds:
                age(LocalStore(self._place.folder / "store"), LONG)
            return
        self._hub.clock.advance(seconds)
        self._ahead += seconds
        (self._place.folder / "ahead").write_text(str(self._ahead))

    def round(self, number: int) -> None:
        """Let all work, and kill one after the other."""
        chance = random.Random(f"{self._seed} {number}")
        seed = chance.randrange(1 << 32)
        jobs = [(write, f"w{n}") for n in range(WRITERS)]
        jobs += [(collect, f"c{n}") for n in range(COLLECTORS)]
        children = [fork(lambda: work(self._place, name, seed)) for work, name in jobs]  # noqa: B023
        order = chance.sample(children[:WRITERS], WRITERS)
        for collector in children[WRITERS:]:
            order.insert(chance.randrange(WRITERS // 2, WRITERS), collector)
        statuses = []
        for child in order:
            time.sleep(chance.uniform(0.1, 0.7))
            os.kill(child, signal.SIGKILL)
            statuses.append(os.waitpid(child, 0)[1])
        assert all(map(os.WIFSIGNALED, statuses)), "a child ended by an error"
        self.counts["kills"] += len(children)
        self.check()

    def check(self) -> None:
        """Check all promises in a child, and add what it has counted."""
        found = self._place.folder / "counts"
        self._do(lambda: check(self._place, found), "a promise was broken")
        self.counts.update(json.loads(found.read_text()))

    def finish(self) -> None:
        """Collect until nothing lies aside."""
        for _ in range(3):
            self.wait()
            self._do(lambda: collect_once(self._place), "a collection failed")
        self.check()

    @staticmethod
    def _do(work: Callable[[], object], failure: str) -> None:
        """Do something in a child, and wait for it."""
        _, status = os.waitpid(fork(work), 0)
        assert os.waitstatus_to_exitcode(status) == 0, failure


def fork(work: Callable[[], object]) -> int:
    """Start a child; its exit status is 0 if the work ends, and 1 if it fails."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def collect_once(place: Place) -> None:
    with place.open() as repo:
        repo.gc(apply=True)


def check(place: Place, counts: Path) -> None:
    """Check that everything that was promised is there, and write down what was counted."""
    found: Counter[str] = Counter()
    states = [content(state) for state in range(STATES)]
    with place.open() as repo:
        problems = repo.verify().problems
        assert problems == (), problems
        refs = {f"heads/{name}": at for name, at in repo.branches().items()}
        refs |= {f"tags/{name}": at for name, at in repo.tags().items()}
        found["aside"] = len(list(repo.database.objects.list(names.ASIDE)))
        for log in place.folder.glob("log-*"):
            for ref, events in by_ref(log).items():
                kind, *rest = events[-1]
                if kind == "deleted":
                    assert ref not in refs, ref
                elif kind == "moved":
                    check_ref(repo, states, ref, str(refs.get(ref)), *rest[1:])
                    found["checked"] += 1
        for at in refs.values():  # also where the last word is not known
            assert any(same(repo.load(at), state) for state in states), at
            found["loaded"] += 1
    counts.write_text(json.dumps(found))


def check_ref(
    repo: Repository,
    states: list[dict[str, torch.Tensor]],
    ref: str,
    at: str,
    version: str,
    state: int | None,
) -> None:
    assert at == version, ref
    if state is not None:
        assert_same_state(repo.load(version), states[state])


def same(one: dict[str, Any], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in other)


def by_ref(log: Path) -> dict[str, list[list[Any]]]:
    """Return the events of each ref, in order."""
    found: dict[str, list[list[Any]]] = {}
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may be cut
            event = json.loads(line)
            found.setdefault(event[1], []).append(event)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/soak/run collect", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="end after this many, default 1000")
    parser.add_argument("--seed", type=int, default=None, help="seed of all random choices")
    parser.add_argument(
        "--store", choices=["directory", "hub"], default="directory", help="kind of store to use"
    )
    parser.add_argument("--folder", type=Path, help="folder to keep (default: temporary)")
    wanted = parser.parse_args()
    seed = random.randrange(1 << 32) if wanted.seed is None else wanted.seed
    print(f"{wanted.store}, seed {seed}", file=sys.stderr)
    with ExitStack() as stack:
        folder = wanted.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = None
        if wanted.store == "hub":
            hub = stack.enter_context(LocalHubProcess(folder / "hub", conditions=FREEING))
            hub.create_bucket(BUCKET)
        prepare(folder, hub)
        run = Run(Place(folder, hub.url if hub else None), hub, seed)
        number = 0
        while run.counts["kills"] < wanted.kills:
            run.round(number)
            run.wait()
            number += 1
            if number % 10 == 0:
                print(json.dumps(run.counts), file=sys.stderr, flush=True)
        run.finish()
    print(json.dumps(run.counts))


def prepare(folder: Path, hub: LocalHubProcess | None) -> None:
    """Prepare the environment and the imports that all children inherit."""
    os.environ |= {
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)  # a fork would lose torch's other threads
    if hub is not None:
        import_client()
    gc.freeze()  # otherwise a collection in a child copies all objects of this process


if __name__ == "__main__":
    main()
