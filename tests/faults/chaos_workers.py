"""The workers of a chaos run, and the journals of what was reported to them.

Each worker repeats one kind of work on a shared store until it is stopped or killed. The tensors of
a version are a function of the step in its metadata (`sync_states`), so that any process can check
any version.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from safetensors.torch import save_file

import casweights
from casweights import ConflictError, Publisher, SnapshotId, Subscriber
from casweights.database import reflog
from casweights.operations import maintain, merging
from casweights.stores.local import LocalStore
from casweights.sync.publisher import Compare
from tests.faults.hub_driver import BUCKET, wrapped
from tests.faults.sync_states import blank, digest, digest_of, state, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.config import Compression
    from casweights.stores.base import ObjectStore

PREFIX = "chaos"  # folder of the store in the bucket
STEPS = 60  # number of different states of the model
MAIN, LIVE = "main", "live"
CONFLICT = 11  # exit status of a command that lost the race for a branch


class Broken(Exception):
    """A promise of the store was broken."""


@dataclass(frozen=True)
class Place:
    """Folder and store of a run.

    Attributes:
        folder: Folder of all files of the run.
        hub: URL of the Hub that has the store; None if the store is a directory.
    """

    folder: Path
    hub: str | None

    @property
    def url(self) -> str:
        """The store's URL or path for the command line."""
        return str(self.folder / "store") if self.hub is None else f"hf://buckets/{BUCKET}/{PREFIX}"

    def objects(self, cache: Path | None = None) -> ObjectStore:
        if self.hub is None:
            return LocalStore(self.folder / "store")
        return wrapped(self.hub, PREFIX, cache)

    @contextmanager
    def opened(self) -> Iterator[Repository]:
        with casweights.open(self.objects(), workers=2) as repo:
            yield repo

    @property
    def is_over(self) -> bool:
        return (self.folder / "stop").exists()


class Journal:
    """A file of what was reported to a worker, in lines that survive the worker.

    Args:
        folder: Folder of all journals.
        who: Name of the worker.
    """

    def __init__(self, folder: Path, who: str) -> None:
        folder.mkdir(exist_ok=True)
        self._who = who
        self._file = os.open(folder / f"{who}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, **fields: Any) -> None:
        line = {"time": time.monotonic(), "who": self._who, **fields}
        os.write(self._file, json.dumps(line, default=str).encode() + b"\n")

    @contextmanager
    def doing(self, what: str, ref: str = "", **fields: Any) -> Iterator[dict[str, Any]]:
        """Note the begin and, if the block succeeds, the end of some work.

        Yields:
            A dict to which the block adds the results that were reported.
        """
        self.note(what=what, ref=ref, done=False, **fields)
        told: dict[str, Any] = {}
        yield told
        self.note(**{"what": what, "ref": ref, "done": True, **fields, **told})


def read_journals(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of all workers, in the order of time."""
    lines = [
        json.loads(line)
        for path in folder.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return sorted(lines, key=lambda line: line["time"])


class Worker:
    """The state of one worker process.

    Args:
        place: Folder and store of the run.
        role: The kind of work: a key of `ROLES`.
        number: Number of earlier workers of this role.
        seed: Seed of all random choices.
    """

    def __init__(self, place: Place, role: str, number: int, seed: int) -> None:
        self.place = place
        self.name = f"{role}-{number}"
        self.chance = random.Random(f"{seed} {self.name}")
        self.folder = place.folder / "work" / self.name
        self.folder.mkdir(parents=True)
        self.journal = Journal(place.folder / "journal", self.name)

    def step(self) -> int:
        return self.chance.randrange(STEPS)

    def run(self, *arguments: object, accepted: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """Run a command; return the last JSON object that it printed, with its exit status."""
        command = [sys.executable, "-m", "casweights", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines()
        if done.returncode not in accepted:
            raise Broken(f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(lines[-1])
        return {**answer, "status": done.returncode}

    def acknowledged(self) -> list[dict[str, Any]]:
        """Return the lines of all journals that report a version."""
        return [line for line in read_journals(self.place.folder / "journal") if "version" in line]


def commit(worker: Worker) -> None:
    """Commit states with the library, several with one open store."""
    with worker.place.opened() as repo:
        for _ in range(worker.chance.randint(1, 12)):
            step = worker.step()
            with worker.journal.doing("commit", MAIN) as told:
                try:
                    told["version"] = repo.commit(state(step), metadata={"step": step}).id
                except ConflictError as error:
                    told |= {"what": "conflict", "version": error.snapshot}


def commit_files(worker: Worker) -> None:
    """Commit files with the command line."""
    step, model = worker.step(), worker.folder / "model"
    model.mkdir(exist_ok=True)
    save_file(state(step), model / "model.safetensors")
    (model / "step.txt").write_text(str(step))
    wanted = ["commit", model, "--meta", f"step={step}", "--store", worker.place.url]
    with worker.journal.doing("commit", MAIN) as told:
        answer = worker.run(*wanted, accepted=(0, CONFLICT))
        told["version"] = answer["id"]
        if answer["status"] == CONFLICT:
            told["what"] = "conflict"


def publish(worker: Worker) -> None:
    """Publish steps, as the only trainer of its branch."""
    compare: Compare = worker.chance.choice(get_args(Compare))
    with worker.place.opened() as repo, Publisher(repo, LIVE, compare=compare) as publisher:
        head = publisher.wait()
        step = step_of(head) + 1 if head else 0
        for number in range(step, step + worker.chance.randint(2, 20)):
            with worker.journal.doing("publish", LIVE) as told:
                publisher.publish(state(number % STEPS), step=number)
                publisher.wait()
                told["version"] = publisher.version


def follow(worker: Worker) -> None:
    """Follow a branch as a replica, and check its tensors against the version that it reports."""
    branch = worker.chance.choice([MAIN, LIVE])
    weights = blank()
    with (
        worker.place.opened() as repo,
        Subscriber(repo, branch, verify=worker.chance.choice(["full", "patch"])) as replica,
    ):
        for _ in range(10):
            if replica.head() is not None:
                with worker.journal.doing("follow", branch):
                    replica.sync(weights)
                assert replica.version is not None
                expect(repo, replica.version, digest(weights))
            time.sleep(worker.chance.uniform(0, 0.1))


def expect(repo: Repository, version: SnapshotId, held: str) -> None:
    """Check that a digest of tensors is that of a version."""
    step = step_of(repo.snapshot(version))
    if held != digest_of(step % STEPS):
        raise Broken(f"{version} is not what step {step} must be")


def check_version(repo: Repository, version: SnapshotId) -> None:
    """Check that tensors and files of a version are those that were committed."""
    expect(repo, version, digest(repo.load(version)))
    snapshot = repo.snapshot(version)
    if any(file.path == "step.txt" for file in snapshot.files):
        text = b"".join(repo.read(version, "step.txt"))
        if text != str(step_of(snapshot)).encode():
            raise Broken(f"step.txt of {version} is {text!r}")


def read(worker: Worker) -> None:
    """Read some of the versions that were reported to any worker."""
    told = worker.acknowledged()
    for line in worker.chance.sample(told, min(5, len(told))):
        with worker.journal.doing("read"), worker.place.opened() as repo:
            check_version(repo, SnapshotId.from_hex(line["version"]))


def name_versions(worker: Worker) -> None:
    """Create, move and delete branches and tags whose names no other worker uses."""
    kind = worker.chance.choice(["branch", "tag"])
    name = f"{worker.name}/{time.monotonic_ns()}"
    ref, journal = f"{kind} {name}", worker.journal
    with worker.place.opened() as repo:
        if MAIN not in repo.branches():
            return
        target = repo.resolve(MAIN)
        with journal.doing("make", ref, at=target):
            (repo.branch if kind == "branch" else repo.tag)(name, target)
        if kind == "branch":
            for _ in range(worker.chance.randint(0, 3)):
                step = worker.step()
                with journal.doing("move", ref) as told:
                    version = repo.commit(state(step), branch=name, metadata={"step": step}).id
                    told |= {"version": version, "at": version}
        if worker.chance.random() < 0.7:
            with journal.doing("delete", ref, at=None):
                if worker.chance.random() < 0.5:
                    (repo.delete_branch if kind == "branch" else repo.delete_tag)(name)
                else:
                    worker.run(kind, name, "--delete", "--store", worker.place.url)


def repack(worker: Worker) -> None:
    """Repack the store, or merge its objects, also rather new ones."""
    compression: Compression = worker.chance.choice(["fast", "auto"])
    maintain._RECENT_PACKS, merging.FAN_IN = 0, 2
    with worker.journal.doing("repack"):
        if worker.chance.random() < 0.5:
            with worker.place.opened() as repo:
                repo.maintain()
        elif worker.chance.random() < 0.2:
            worker.run("repack", "--store", worker.place.url)
        else:
            with worker.place.opened() as repo:
                repo.repack(compression=compression)


def verify(worker: Worker) -> None:
    """Verify the store while the others work: there must be no problem."""
    quick = ["--quick"] if worker.chance.random() < 0.5 else []
    with worker.journal.doing("verify"):
        worker.run("verify", *quick, "--store", worker.place.url)


def copy(worker: Worker) -> None:
    """Push everything to a store that is kept, and pull one version into a new one."""
    with worker.journal.doing("push"):
        target = worker.place.folder / "pushed"
        worker.run("push", target, "--create", "--store", worker.place.url)
    with worker.place.opened() as repo:
        if MAIN not in repo.branches():
            return
    part = worker.folder / "part"
    with worker.journal.doing("pull"):
        answer = worker.run(
            "pull", worker.place.url, MAIN, "--shallow", "--create", "--store", part
        )
    with casweights.open(part, workers=1) as repo:
        check_version(repo, SnapshotId.from_hex(answer["tips"][f"heads/{MAIN}"]))
    shutil.rmtree(part)


ROLES: dict[str, Callable[[Worker], None]] = {
    "commit": commit,
    "commit-files": commit_files,
    "publish": publish,
    "follow": follow,
    "read": read,
    "name": name_versions,
    "repack": repack,
    "verify": verify,
    "copy": copy,
}


def work(place: Place, role: str, number: int, seed: int) -> None:
    """Repeat the work of a role until the run is over."""
    reflog.RECENT_MOVES = 5  # of each branch, so that maintenance has work
    worker = Worker(place, role, number, seed)
    while not place.is_over:
        ROLES[role](worker)
        time.sleep(worker.chance.uniform(0, 0.05))
