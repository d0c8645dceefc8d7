"""A trainer and its replicas, which are killed while they work. Tests run it as a process.

Usage: sync_driver.py WHAT FOLDER STORE SEED NUMBER

STORE is a directory, or the URL of a Hub, "#", and the folder in its bucket. WHAT is one of

* "run": a trainer and NUMBER replicas work up to the goal that FOLDER names;
* "random": a trainer and a replica are killed and restarted until there were NUMBER kills;
* WHO "at" MOMENT, such as "trainer at before call": one is killed at each of these moments. A
  "skipper" is a trainer that skips a step, which its successor publishes;
* "maintained" and one of these: trainers merge packs after each version.

The tensors of a step are a function of its number (`sync_states`), so that the driver can check
every version. It prints its counts as JSON; a broken promise ends it with a traceback.
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
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import torch

import casweights
from casweights import ConflictError, Publisher, Subscriber
from casweights.config import KiB
from casweights.database import reflog
from casweights.operations import maintain, merging
from casweights.stores.local import LocalStore
from casweights.sync.live import LiveTensor
from casweights.sync.publisher import Compare, Policy
from casweights.testing.faults import kill_process
from tests.disks import wait_for_no_disk
from tests.faults.hub_driver import import_client, wrapped
from tests.faults.kill_driver import die_at, end_of, fork
from tests.faults.sync_states import (
    CONFIG,
    blank,
    digest,
    digest_of,
    expect,
    state,
    step_of,
    write_state,
)
from tests.faults.sync_uploads import check_uploads
from tests.lengths import moments
from tests.sync.states import end_of_round

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore
    from casweights.sync.changes import ElementChange

WORKERS = ("trainer", "replica")
ROUND, KILLS = 6, 3  # steps from one goal to the next, and kills before it
MAINTAINED = "SYNC_DRIVER_MAINTAINED"  # set in the environment of trainers that maintain


class Run:
    """A store, and a folder in which its trainer and replicas note what they did.

    Args:
        folder: The folder of the notes.
        store: STORE, as in the usage of this program.
    """

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        folder.mkdir(exist_ok=True)

    def objects(self, disk_cache: Path | None = None) -> ObjectStore:
        if not self.store.startswith("http:"):
            return LocalStore(Path(self.store))
        url, _, prefix = self.store.partition("#")
        return wrapped(url, prefix, disk_cache, stall=2.0)

    def create(self) -> None:
        casweights.open(self.objects(), create=True, config=CONFIG).close()

    @property
    def goal(self) -> int:
        """The last step to publish."""
        return int((self.folder / "goal").read_text())

    @goal.setter
    def goal(self, step: int) -> None:
        new = self.folder / "new-goal"
        new.write_text(str(step))
        new.replace(self.folder / "goal")

    def note(self, kind: str, *words: object) -> None:
        """Append a line of a kind; it survives the process."""
        line = " ".join(map(str, words)) + "\n"
        with (self.folder / kind).open("ab", buffering=0) as file:
            file.write(line.encode())

    def notes(self, kind: str) -> list[list[str]]:
        path = self.folder / kind
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def train(
    run: Run, store: ObjectStore, *, compare: Compare = "host", policy: Policy = "block"
) -> None:
    """Publish steps from the head of the branch to the goal; note durable versions as claimed."""
    with (
        casweights.open(store, workers=2) as repo,
        Publisher(repo, compare=compare, policy=policy, maintain=int(is_maintained())) as publisher,
    ):
        head = publisher.wait()
        step = step_of(head) + 1 if head else 0
        weights = state(step)
        while step <= run.goal:
            publisher.publish(weights, step=step)
            if step % 3 == 0 and policy == "block":
                publisher.wait()
                run.note("claimed", publisher.version)
            step += 1
            write_state(weights, step)  # `publish` must have copied the tensors by now
        publisher.wait()
        end_of_round()
        run.note("claimed", publisher.version)


def skip(run: Run, store: ObjectStore) -> None:
    """Publish the goal right after the head, as a trainer does that may skip steps."""
    with casweights.open(store, workers=2) as repo, Publisher(repo) as publisher:
        head, goal = publisher.wait(), run.goal
        assert head is not None
        skipped = [*range(step_of(head) + 1, goal)]
        publisher.publish(state(goal), step=goal, metadata={"skipped": skipped})
        publisher.wait()
        run.note("claimed", publisher.version)


def train_again_after_conflicts(run: Run) -> None:
    while True:
        try:
            train(run, run.objects())
        except ConflictError:
            run.note("conflicts", "conflict")
        else:
            return


def follow(run: Run, store: ObjectStore, *, seed: int = 0) -> None:
    """Sync to the head of the branch, and sometimes back, up to the goal.

    After each sync, note the version and the digest of the tensors, which a server would now use.
    """
    chance = random.Random(seed)
    memory = chance.choice([0, 100 * KiB, 1 << 27])
    weights, seen = blank(), []
    with (
        casweights.open(store, workers=2) as repo,
        Subscriber(repo, memory=memory, verify=chance.choice(["full", "patch"])) as replica,
    ):
        while True:
            head = replica.head()
            if head is None or (head == replica.version and not is_done(run, repo, replica)):
                time.sleep(0.005)
                continue
            if head == replica.version:
                return
            if chance.random() < 0.5:
                replica.prefetch(weights)
            replica.sync(weights)
            run.note("served", replica.version, digest(weights))
            seen.append(replica.version)
            if chance.random() < 0.2:
                replica.sync(to=str(chance.choice(seen)))
                run.note("served", replica.version, digest(weights))


def is_done(run: Run, repo: Repository, replica: Subscriber) -> bool:
    return replica.version is not None and step_of(repo.snapshot(replica.version)) >= run.goal


def check(run: Run, known: Mapping[str, int], *, rewritten: bool = False) -> dict[str, int]:
    """Check the promises that must hold at any time; return the steps of all versions by ID.

    Args:
        run: The run.
        known: Steps of the versions whose tensors were checked before.
        rewritten: Whether other writers moved the branch, so that versions may have left it.
    """
    steps = dict(known)

    def step_at(repo: Repository, version: str) -> int:
        if version not in steps:
            snapshot = repo.snapshot(version)
            steps[version] = step_of(snapshot)
            assert digest(repo.load(snapshot)) == digest_of(steps[version]), "not as published"
        return steps[version]

    claimed = {version for (version,) in run.notes("claimed")}
    served = run.notes("served")
    with casweights.open(run.objects(), workers=2) as repo:
        log = [*repo.log()][::-1]
        parents: tuple[SnapshotId, ...] = ()
        last = -1
        for snapshot in log:
            assert snapshot.parents == parents
            covered = [*snapshot.metadata.get("skipped", []), step_of(snapshot)]
            assert covered == [*range(last + 1, covered[-1] + 1)], "a step was lost"
            parents, last = (snapshot.id,), covered[-1]
        for version in [*(str(snapshot.id) for snapshot in log), *claimed]:
            step_at(repo, version)
        assert rewritten or claimed <= {str(snapshot.id) for snapshot in log}, (
            "a durable version left the branch"
        )
        for version, held in served:
            assert held == digest_of(step_at(repo, version)), "a mixture was served"
    return steps


def check_store(run: Run) -> None:
    """Check at the end that frames are sound, none was uploaded twice, and versions match."""
    with casweights.open(run.objects(), workers=2) as repo:
        found = repo.verify()
        assert found.problems == (), found.problems
        if not is_maintained():  # merged packs no longer show what was uploaded
            check_uploads(repo)
    check(run, {})


def is_maintained() -> bool:
    return MAINTAINED in os.environ


def merge_early() -> None:
    """Let trainers archive all versions but the newest one, and merge all packs but two."""
    os.environ[MAINTAINED] = "yes"
    setattr(maintain, "_RECENT_PACKS", 1)  # noqa: B010  mypy refuses a plain assignment
    # With one move, maintenance could remove the base of a move before its writer has looked.
    setattr(reflog, "RECENT_MOVES", 2)  # noqa: B010
    setattr(merging, "FAN_IN", 2)  # noqa: B010
    setattr(merging, "LEVELS", (1 << 30,))  # noqa: B010


def result_of(path: Path, action: Callable[[], Any]) -> Any:
    """Run `action` in a child and return its result: this process must stay free of threads."""
    assert end_of(fork(lambda: path.write_text(json.dumps(action())))) == "finished"
    return json.loads(path.read_text())


class Pair:
    """A trainer and a replica that are killed at random and restarted."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run = run
        self.chance = random.Random(seed)
        self._versions: dict[str, int] = {}
        result_of(run.folder / "answer", run.create)

    def check(self) -> None:
        self._versions = result_of(
            self.run.folder / "answer", partial(check, self.run, self._versions)
        )

    def start(self, who: str) -> int:
        compare = self.chance.choice(get_args(Compare))
        policy = self.chance.choice(get_args(Policy))
        seed = self.chance.randrange(1000)
        if who == "trainer":
            return fork(lambda: train(self.run, self.run.objects(), compare=compare, policy=policy))
        disk_cache = self.run.folder / "cache"
        return fork(lambda: follow(self.run, self.run.objects(disk_cache), seed=seed))

    def goal(self) -> None:
        """Set the next goal."""
        self.run.goal = max(self._versions.values(), default=-1) + ROUND
        expect(self.run.goal)

    def round(self, seconds: float) -> Iterator[str]:
        """Work up to the next goal, with kills on the way; yield how each victim ended."""
        self.goal()
        children = {who: self.start(who) for who in WORKERS}
        for _ in range(KILLS):
            time.sleep(self.chance.uniform(0, seconds))
            victims = self.chance.choice([*zip(WORKERS, strict=True), WORKERS])
            for who in victims:
                os.kill(children[who], signal.SIGKILL)
            for who in victims:
                yield f"{who} {end_of(children[who])}"
            if "trainer" in victims:
                self.check()
            children |= {who: self.start(who) for who in victims}
        for child in children.values():
            assert end_of(child) == "finished"
        self.check()


def kill_at_random(run: Run, seed: int, number: int) -> Counter[str]:
    pair, ends = Pair(run, seed), Counter[str]()
    pair.goal()
    begin = time.monotonic()
    for child in [pair.start(who) for who in WORKERS]:
        assert end_of(child) == "finished"
    seconds = time.monotonic() - begin
    pair.check()
    while sum(ends[f"{who} killed"] for who in WORKERS) < number:
        ends.update(pair.round(seconds / 2))
    result_of(run.folder / "answer", partial(check_store, run))
    return ends


def die_at_exchange(number: int) -> None:
    """Arrange that this process is killed before its `number`-th write to a live tensor."""
    numbers, exchange = count(1), LiveTensor.exchange

    def exchange_or_die(self: LiveTensor, chunk: int, change: ElementChange) -> None:
        if next(numbers) == number:
            kill_process()
        exchange(self, chunk, change)

    setattr(LiveTensor, "exchange", exchange_or_die)  # noqa: B010  mypy refuses a plain assignment


def kill_at_every_step(folder: Path, who: str, moment: str) -> Counter[str]:
    """Kill a trainer between steps 0 and 2, or a new replica, at moments of a kind."""
    works = {"trainer": train, "skipper": skip, "replica": follow}
    template = Run(folder / "template", str(folder / "template" / "store"))
    template.goal = 0
    expect(2)
    result_of(folder / "answer", partial(_begin, template))
    ends: Counter[str] = Counter()
    for number in moments(7, (who, moment)):
        shutil.copytree(template.folder, folder / f"{number}")
        run = Run(folder / f"{number}", str(folder / f"{number}" / "store"))
        run.goal = 0 if who == "replica" else 2
        work = partial(works[who], run)
        end = end_of(fork(partial(_work_to_death, run, work, moment, number)))
        result_of(folder / "answer", partial(_finish_with_others, run))
        shutil.rmtree(run.folder)
        ends[end] += 1
        if end == "finished":
            break
    return ends


def _begin(run: Run) -> None:
    run.create()
    train(run, run.objects())


def _work_to_death(
    run: Run, work: Callable[[ObjectStore], object], moment: str, number: int
) -> None:
    if moment == "exchange":
        die_at_exchange(number)
        work(run.objects())
    else:
        die_at(moment, number, Path(run.store), work)


def _finish_with_others(run: Run) -> None:
    """Check the store; then a new trainer and replica reach the goal, and nothing is left over."""
    check(run, {})
    run.goal = 2
    train(run, run.objects())
    follow(run, run.objects())
    assert run.notes("served")[-1][1] == digest_of(2)
    check_store(run)


def work(run: Run, number: int) -> dict[str, int]:
    """Run a trainer and `number` replicas up to the goal; return the numbers of their notes."""
    children = [fork(partial(train_again_after_conflicts, run))]
    children += [fork(partial(_follow_with_cache, run, n)) for n in range(number)]
    for child in children:
        assert end_of(child) == "finished"
    rewritten = bool(run.notes("conflicts"))
    result_of(run.folder / "answer", partial(check, run, {}, rewritten=rewritten))
    return {kind: len(run.notes(kind)) for kind in ("claimed", "served", "conflicts")}


def _follow_with_cache(run: Run, number: int) -> None:
    follow(run, run.objects(run.folder / f"cache-{number}"), seed=number)


def main() -> NoReturn:
    what, folder, store, seed, number = sys.argv[1:]
    wait_for_no_disk()
    if what.startswith("maintained "):
        what = what.removeprefix("maintained ")
        merge_early()
    torch.set_num_threads(1)  # a fork would lose torch's other threads
    if "#" in store:
        import_client()
    gc.freeze()  # otherwise a collection in a child copies all objects of this process
    who, _, moment = what.partition(" at ")
    if what == "run":
        ends: Mapping[str, int] = work(Run(Path(folder), store), int(number))
    elif what == "random":
        ends = kill_at_random(Run(Path(folder), store), int(seed), int(number))
    else:
        ends = kill_at_every_step(Path(folder), who, moment)
    print(json.dumps(ends))
    sys.exit()


if __name__ == "__main__":
    main()
