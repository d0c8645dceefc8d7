"""What writers and collectors of one store do until they are killed, and what was promised to them.

Each writer has branches and tags of its own, and a log of its promises. All use the same few
states, so that chunks recur which are about to go.
"""

from __future__ import annotations

import json
import os
import random
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

import casweights
from casweights import Keep, Publisher
from casweights.config import KiB, StoreConfig
from casweights.database import reflog
from casweights.errors import CasweightsError, NotFoundError
from casweights.operations import collections
from tests.faults.hub_driver import wrapped
from tests.large_versions import packs_apart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights import Repository

STATES = 5
CONFIG = StoreConfig(chunk_size=64 * KiB)
PREFIX = "collected"  # in the bucket
FILE = "model.safetensors"


@dataclass(frozen=True)
class Place:
    """The store of a run.

    Attributes:
        folder: Folder of the run.
        hub: URL of the Hub that has the store; None if the store is a directory.
    """

    folder: Path
    hub: str | None

    def open(self) -> Repository:
        """Open the store, or create it, with the clock of this process at the time of the store."""
        at = self.folder / "store" if self.hub is None else wrapped(self.hub, PREFIX)
        ahead = float((self.folder / "ahead").read_text()) if self.hub else 0.0
        patch.object(collections, "machine_time", lambda: time.time() + ahead).start()
        patch.object(reflog, "RECENT_MOVES", 2).start()  # in a bucket, moves are versions
        return casweights.open(at, create=True, config=CONFIG, workers=1)


def content(state: int) -> dict[str, torch.Tensor]:
    """Return a state; two states share a chunk."""
    shared = random.Random(state // 2).randbytes(64 * KiB)
    own = random.Random(state).randbytes(64 * KiB)
    parts = {"shared": shared, "own": own}
    return {k: torch.frombuffer(bytearray(part), dtype=torch.uint8) for k, part in parts.items()}


class Writer:
    """Changes branches and tags at random; logs each promise before it is made, and after.

    Args:
        place: The store.
        name: The first part of the names of its branches and tags.
        seed: Seed of all choices.
    """

    def __init__(self, place: Place, name: str, seed: int) -> None:
        self._chance = random.Random(f"{name} {seed}")
        self._name = name
        self._log = (place.folder / f"log-{name}").open("a")
        self._repo = place.open()
        self._side = casweights.open(place.folder / f"side-{name}", create=True, config=CONFIG)

    def run(self) -> None:
        """Work until the process is killed."""
        verbs = [self.commit] * 4 + [self.publish] * 3 + [self.delete] * 3 + [self.transfer] * 2
        verbs += [self.branch, self.tag, self.tag, self.delete_tag, self.undelete, self.expire]
        while True:
            self._chance.choice(verbs)()

    def note(self, *event: object) -> None:
        """Log a promise: what happens to a ref, its name, and what it promises."""
        self._log.write(json.dumps(event) + "\n")
        self._log.flush()

    def _ref(self, kind: str = "heads") -> tuple[str, str]:
        name = f"{self._name}/{self._chance.randrange(3)}"
        return f"{kind}/{name}", name

    def _state(self) -> int:
        return self._chance.randrange(STATES)

    def commit(self) -> None:
        """Commit a state to a branch."""
        (ref, branch), state = self._ref(), self._state()
        self.note("moving", ref)
        made = self._repo.commit(content(state), branch=branch)
        self.note("moved", ref, str(made.id), state)

    def publish(self) -> None:
        """Publish some states to a branch."""
        ref, branch = self._ref()
        with Publisher(self._repo, branch, maintain=self._chance.random() < 0.5) as publisher:
            for _ in range(self._chance.randrange(1, 4)):
                self.note("moving", ref)
                publisher.publish(content(state := self._state()))
                made = publisher.wait()
                assert made is not None
                self.note("moved", ref, str(made.id), state)

    def delete(self) -> None:
        """Delete a branch."""
        ref, branch = self._ref()
        self.note("deleting", ref)
        with suppress(NotFoundError):
            self._repo.delete_branch(branch)
        self.note("deleted", ref)

    def delete_tag(self) -> None:
        """Delete a tag."""
        ref, tag = self._ref("tags")
        self.note("deleting", ref)
        with suppress(NotFoundError):
            self._repo.delete_tag(tag)
        self.note("deleted", ref)

    def undelete(self) -> None:
        """Bring a branch back; which version it then names is read."""
        ref, branch = self._ref()
        self.note("moving", ref)
        with suppress(CasweightsError):  # it was not deleted, or what it named has gone
            back = self._repo.undelete(f"heads/{branch}")
            self.note("moved", ref, str(back), None)

    def branch(self) -> None:
        """Move a branch to the version of another one."""
        (ref, branch), (_, other) = self._ref(), self._ref()
        self.note("moving", ref)
        with suppress(NotFoundError):
            self.note("moved", ref, str(self._repo.branch(branch, other, force=True)), None)

    def tag(self) -> None:
        """Tag the head of a branch, or one of the versions before it."""
        (ref, tag), (_, branch) = self._ref("tags"), self._ref()
        before = self._chance.randrange(2)
        self.note("moving", ref)
        with suppress(CasweightsError):  # the tag is in use, or there is no such version
            at = self._repo.tag(tag, f"heads/{branch}~{before}")
            self.note("moved", ref, str(at), None)

    def expire(self) -> None:
        """Let all versions of its branches expire but the newest."""
        self._repo.expire(Keep(branches=f"{self._name}/*", last=1), apply=True)

    def transfer(self) -> None:
        """Push a branch to another store, or pull one from there."""
        ref, branch = self._ref()
        if self._chance.random() < 0.5:
            with suppress(NotFoundError):
                self._repo.push(self._side, [f"heads/{branch}"], force=True)
            return
        self.note("moving", ref)
        with suppress(NotFoundError):
            self._repo.pull(self._side, [f"heads/{branch}"], force=True)
            self.note("moved", ref, str(self._side.branches()[branch]), None)


def write(place: Place, name: str, seed: int) -> None:
    """Write until the process is killed."""
    os.nice(5)  # so that collections get far on a busy machine
    writer = Writer(place, name, seed)
    with packs_apart() if seed % 3 else nullcontext():  # else a version is one object
        writer.run()


def collect(place: Place, name: str, seed: int) -> None:
    """Collect, maintain, verify and repair until the process is killed."""
    chance = random.Random(f"{name} {seed}")
    with place.open() as repo:
        verbs: list[Callable[[], Any]] = [repo.maintain] + [partial(repo.gc, apply=True)] * 4
        verbs += [repo.verify, partial(repo.repair, apply=True)]
        verbs += [partial(_undelete_one, repo)]
        for verb in chain(verbs[:2], iter(lambda: chance.choice(verbs), None)):
            # Another collector may have been killed, or may have deleted what this one reads.
            with suppress(CasweightsError):
                verb()


def _undelete_one(repo: Repository) -> None:
    for pending in repo.gc().pending[:1]:
        repo.undelete_collection(pending.id)
