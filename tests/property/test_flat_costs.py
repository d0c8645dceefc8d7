"""What one more version costs does not depend on how many there are.

A history grows, and at two lengths of it every verb is counted: objects listed, objects looked up,
objects read, and frames that a handle remembers. Logs of moves are left out: they are cut short at
200 moves.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import casweights
from casweights import Publisher, Subscriber
from casweights.config import KiB, StoreConfig
from casweights.database import index
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests.findings import Remote
from tests.histories import step, weights
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from casweights.stores.base import ObjectInfo, ObjectStore
    from tests.histories import State

CHUNK = 64 * KiB
SHORT, LONG = 24, 80  # versions: the first whole chunks are replaced long before
LOOKS = 4  # versions at which costs are counted, at each length; chains differ in length
SPARE = 16  # frames


class Counted(CountingStore):
    """Also counts what is listed and looked up, except for moves."""

    def reset(self) -> None:
        super().reset()
        self.touched = 0
        self._counting = threading.Lock()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in self.inner.list(prefix):
            self._count([info.name])
            yield info

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        self._count(wanted)
        return self.inner.sizes(wanted)

    def present(self, names: Iterable[str]) -> set[str]:
        wanted = list(names)
        self._count(wanted)
        return self.inner.present(wanted)

    def size(self, name: str) -> int:
        self._count([name])
        return self.inner.size(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        self._count([name])
        super().readinto(name, start, out)

    def _count(self, names: Sequence[str]) -> None:
        with self._counting:
            self.touched += sum(not name.startswith("refs/") for name in names)


class Run(NamedTuple):
    """A run of training."""

    density: float
    small: int  # elements of a tensor of which differences are costly
    seed: int


runs = st.builds(
    Run,
    density=st.sampled_from([0.05, 0.1, 0.3]),
    small=st.sampled_from([0, 100, 3000]),
    seed=st.integers(0, 1000),
)


def states(run: Run) -> Iterator[State]:
    tensor, seed = weights(2, run.seed), run.seed
    while True:
        small = torch.randn(run.small, generator=torch.Generator().manual_seed(seed))
        yield {"w": tensor, "small": small}
        seed += 1
        tensor = step(tensor, run.density, seed)


def frames(repo: casweights.Repository) -> int:
    known = repo.database.index
    return sum(len(known.frames(chunk)) for chunk in known)


class Costs(NamedTuple):
    """The largest numbers of objects that one call touched, and of frames that were remembered."""

    commit: int
    commit_in_open_handle: int
    publish: int
    sync: int
    checkout: int
    frames: int


class History:
    """A branch that grows, with a trainer, a replica, and a folder of files."""

    def __init__(self, objects: ObjectStore, run: Run, folder: Path) -> None:
        self.objects, self.folder, self.states = objects, folder, states(run)
        config = StoreConfig(chunk_size=CHUNK)
        casweights.open(objects, create=True, config=config).close()
        self.stores = [Counted(objects) for _ in range(3)]
        self.repos = [casweights.open(store, workers=1) for store in self.stores]
        self.publisher = Publisher(self.repos[0], "run")
        self.subscriber = Subscriber(self.repos[1], "run")
        self.live: State = {}
        self.length = 0

    def close(self) -> None:
        self.publisher.close()
        self.subscriber.close()
        for repo in self.repos:
            repo.close()

    def grow(self, length: int) -> None:
        while self.length < length:
            self.one_more()

    def one_more(self) -> Costs:
        """One version more on each of two branches."""
        state, name = next(self.states), f"{self.length}.json"
        self.length += 1
        self.live = self.live or {key: torch.zeros_like(value) for key, value in state.items()}
        for store in self.stores:
            store.reset()
        self.publisher.publish(state)
        self.publisher.wait()
        publish = self.stores[0].touched
        self.subscriber.sync(self.live)
        sync = self.stores[1].touched
        assert all(self.live[key].equal(value) for key, value in state.items())
        self.repos[2].commit(state | {"text": name}, branch="by-hand")
        commit, checkout = self.fresh(state)
        return Costs(
            commit, self.stores[2].touched, publish, sync, checkout, max(map(frames, self.repos))
        )

    def fresh(self, state: State) -> tuple[int, int]:
        """What a new process needs for a commit, and for a checkout."""
        if self.length % LOOKS:
            self.repos[2].commit(state, branch="fresh")
            return 0, 0
        store = Counted(self.objects)
        with casweights.open(store, workers=1) as repo:
            store.reset()
            repo.commit(state, branch="fresh", message=json.dumps(self.length))
            commit = store.touched
        with casweights.open(store, workers=1) as repo:
            store.reset()
            repo.checkout("fresh", self.folder, overwrite=True)
            return commit, store.touched

    def costs(self) -> Costs:
        """The most that any of the next few versions costs."""
        return Costs(*map(max, *(self.one_more() for _ in range(3 * LOOKS))))


@pytest.mark.parametrize("remote", [False, True], ids=["directory", "bucket"])
@settings(max_examples=examples(2))
@given(run=runs)
def test_a_version_costs_the_same_however_many_there_are(
    tmp_path_factory: pytest.TempPathFactory, run: Run, remote: bool
) -> None:
    folder = tmp_path_factory.mktemp("flat")
    objects = MemoryStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_SPARE_FRAMES", SPARE)
        history = History(Remote(objects) if remote else objects, run, folder / "out")
        history.grow(SHORT)
        short = history.costs()
        history.grow(LONG)
        long = history.costs()
        history.close()
    for name, before, after in zip(Costs._fields, short, long, strict=True):
        assert after <= 1.5 * before + 8, (name, short, long)
