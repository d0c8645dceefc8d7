"""Runs every operation on a store, each in a process of its own and under limits."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import casweights
from casweights import CasweightsError, Keep, Repository
from tools.soak.hostile.forge import MODEL

CPU_LIMIT, TIME_LIMIT = 6, 30  # seconds of processor time and of wall-clock time
MEMORY_LIMIT = 2 << 30  # bytes beyond those in use before

Verb = Callable[[Repository, Path], object]


def _commit(repo: Repository, scratch: Path) -> None:
    (scratch / "model").mkdir()
    (scratch / "model" / "weights").write_bytes(b"weights of mine")
    repo.commit(scratch / "model")


def _commit_relative(repo: Repository, _: Path) -> None:
    repo.commit({"t": MODEL["t"] + (MODEL["t"] % 97 == 0)}, branch="relative")


def _load_tensor(repo: Repository, _: Path) -> None:
    for file in repo.snapshot("main").files:
        for info in file.header.tensors if file.header else ():
            repo.tensor("main", info.name)
            return


def _read(repo: Repository, _: Path) -> None:
    for file in repo.snapshot("main").files[:1]:
        for _piece in repo.read("main", file.path):
            pass


def _mine(repo: Repository, scratch: Path) -> Repository:
    """Make another store, with a branch of its own."""
    mine = casweights.open(scratch / "mine", create=True, config=repo.config)
    mine.commit({"t": torch.zeros(8)}, branch="mine")
    return mine


def _push(repo: Repository, scratch: Path) -> None:
    with _mine(repo, scratch) as mine:
        mine.push(repo)


def _pull(repo: Repository, scratch: Path) -> None:
    with _mine(repo, scratch) as mine:
        repo.push(mine)


def _delete_branch(repo: Repository, _: Path) -> None:
    for branch in repo.branches():
        repo.delete_branch(branch)


def _push_shallow(repo: Repository, scratch: Path) -> None:
    with casweights.open(scratch / "other", create=True, config=repo.config) as target:
        repo.push(target, ["main"], history=False)


def _sync(repo: Repository, _: Path) -> None:
    with casweights.Subscriber(repo) as subscriber:
        subscriber.sync({"t": torch.zeros(0)})


VERBS: dict[str, Verb] = {
    "open": lambda repo, _: repo.config,
    "log": lambda repo, _: [version.message for version in repo.log("main")],
    "log --graph": lambda repo, _: [version.lineage for version in repo.graph()],
    "show": lambda repo, _: repr(repo.snapshot("main")),
    "ls": lambda repo, _: [(file.path, file.size) for file in repo.snapshot("main").files],
    "diff": lambda repo, _: repo.diff("main", "main"),
    "revision": lambda repo, _: repo.resolve("main~1000000"),
    "checkout": lambda repo, scratch: repo.checkout("main", scratch / "out"),
    "load": lambda repo, _: repo.load("main"),
    "tensor": _load_tensor,
    "cat": _read,
    "commit": _commit,
    "commit relative": _commit_relative,
    "push": _push,
    "pull": _pull,
    "shallow push": _push_shallow,
    "repack": lambda repo, _: repo.repack(),
    "verify": lambda repo, _: repo.verify(),
    "verify --quick": lambda repo, _: repo.verify(quick=True),
    "stats": lambda repo, _: repo.stats(),
    "branch": lambda repo, _: repo.branch("new", "main"),
    "branch --delete": _delete_branch,
    "branches": lambda repo, _: repo.branches(),
    "gc": lambda repo, _: repo.gc(),
    "gc --apply": lambda repo, _: repo.gc(apply=True),
    "maintain": lambda repo, _: repo.maintain(),
    "expire": lambda repo, _: repo.expire(Keep(last=1)),
    "repair": lambda repo, _: repo.repair(),
    "space": lambda repo, _: repo.space(),
    "similar": lambda repo, _: repo.similar(MODEL),
    "tag": lambda repo, _: repo.tag("new", "main"),
    "sync": _sync,
}


class Cost(NamedTuple):
    """The costs of a verb.

    Attributes:
        seconds: Processor time of all threads together.
        nbytes: Peak memory, beyond that in use before.
        failure: Description of an end that is not permitted, if any.
    """

    seconds: float
    nbytes: int
    failure: str = ""


def measure(verb: Verb, store: Path, scratch: Path) -> Cost:
    """Run a verb in a fork of this process, so that no imports are measured; return its costs."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(verb, store, scratch, writing)
    os.close(writing)
    with os.fdopen(reading) as report:
        text = report.read()
    _, status, usage = os.wait4(child, 0)
    nbytes, _, failure = text.partition(" ")
    if os.WIFSIGNALED(status):
        failure = f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return Cost(usage.ru_utime + usage.ru_stime, int(nbytes or 0), failure)


def _run(verb: Verb, store: Path, scratch: Path, report: int) -> None:
    before, failure = _status("VmRSS"), ""
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY_LIMIT,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
    signal.alarm(TIME_LIMIT)
    try:
        with casweights.open(store) as repo:
            verb(repo, scratch)
    except CasweightsError:
        pass
    except BaseException:
        failure = traceback.format_exc(limit=-3).replace("\n", " | ")
    os.write(report, f"{_status('VmHWM') - before} {failure}".encode()[:4000])
    os._exit(0)


def _status(field: str) -> int:
    """Return a number of bytes from the status of this process, as Linux reports it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise LookupError(field)
