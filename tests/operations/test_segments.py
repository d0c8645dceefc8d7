"""Segments under commits, maintenance, repacks, losses, and kills at any moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import casweights
from casweights.config import StoreConfig
from casweights.database import pack_indexes, segment_writer, segments
from casweights.database.index import ChunkIndex
from casweights.database.segments import list_segments
from casweights.errors import ErrorCode, StoreError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE
from casweights.ids import ChunkId
from casweights.operations import maintain as maintain_module
from casweights.operations import merging
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.faults import flip_bit
from tests.histories import CHUNK, check_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore, Parts

CONFIG = StoreConfig(chunk_size=CHUNK)
SEEDS = range(12)
STEPS = 14

Versions = dict["SnapshotId", dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge two of a kind, keep two recent packs, and read everything like large objects."""
    monkeypatch.setattr(merging, "FAN_IN", 2)
    monkeypatch.setattr(maintain_module, "_RECENT_PACKS", 2)
    monkeypatch.setattr(segment_writer, "_FAN_IN", 2)
    monkeypatch.setattr(segments, "_SMALL_BYTES", 64)
    monkeypatch.setattr(pack_indexes, "_WHOLE_FRAMES", 0)


class Run:
    """A store, and the versions that were committed to it."""

    def __init__(self, seed: int) -> None:
        self.store = MemoryStore()
        self.versions: Versions = {}
        self.random = np.random.default_rng(seed)
        self.state = {name: torch.arange(64.0) + n for n, name in enumerate("abc")}
        casweights.open(self.store, create=True, config=CONFIG).close()
        self.repo = casweights.open(self.store)  # one that knows what others have changed since

    def commit(self, repo: Repository) -> None:
        self.state[str(self.random.choice(list("abc")))][int(self.random.integers(64))] += 1
        branch = str(self.random.choice(["main", "side"]))
        version = repo.commit(self.state, branch=branch).id
        self.versions[version] = {name: value.clone() for name, value in self.state.items()}

    def chunks(self) -> list[ChunkId]:
        """All chunks of all versions, and one that no version has."""
        with casweights.open(self.store) as repo:
            found = {c for v in self.versions for c in repo.database.snapshots.load(v).chunks()}
        return [*sorted(found), ChunkId(bytes(32))]

    def check(self) -> None:
        """Compare searches of a new handle and of an old one with what all indexes show."""
        chunks, loaded = self.chunks(), ChunkIndex(self.store)
        loaded.load()
        with casweights.open(self.store) as new:
            for index in (new.database.index, self.repo.database.index):
                index.search(chunks)
                assert index.having(chunks) == loaded.having(chunks)
        assert loaded.having(chunks)[:-1] == chunks[:-1]


def _damage(run: Run) -> None:
    for info in list_segments(run.store):  # damage before the rows is for `verify` to notice
        flip_bit(run.store, info.name, int(run.random.integers(PREFIX_SIZE, info.size)))


def _lose(run: Run) -> None:
    infos = list_segments(run.store)
    for n in run.random.permutation(len(infos))[: len(infos) // 2 + 1]:
        run.store.delete(infos[n].name)


def _repack(run: Run) -> None:
    with casweights.open(run.store) as repo:
        repo.repack()


def _maintain(run: Run) -> None:
    with casweights.open(run.store) as repo:
        repo.maintain()


def _commit_by_another(run: Run) -> None:
    with casweights.open(run.store) as repo:
        run.commit(repo)


ACTIONS: list[Callable[[Run], None]] = [
    *(lambda run: run.commit(run.repo), _commit_by_another, _commit_by_another),
    *(_maintain, _maintain, lambda run: run.repo.maintain() and None),
    *(_repack, _lose, _damage),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("packs", ["apart", "carried"])
def test_a_search_finds_what_a_load_finds_after_anything(
    seed: int, packs: str, request: pytest.FixtureRequest
) -> None:
    if packs == "apart":
        request.getfixturevalue("packs_apart")
    run = Run(seed)
    with run.repo:
        for _ in range(STEPS):
            ACTIONS[int(run.random.integers(len(ACTIONS)))](run)
            run.check()
        run.repo.maintain()
        run.check()
    check_versions(run.store, run.versions)


class Dying(WrapperStore):
    """A store whose client dies after some writes."""

    def __init__(self, inner: ObjectStore, writes: int) -> None:
        super().__init__(inner)
        self.left = writes

    def put(self, name: str, parts: Parts) -> bool:
        self._spend()
        return super().put(name, parts)

    def delete(self, name: str) -> None:
        self._spend()
        super().delete(name)

    def delete_all(self, names: Sequence[str]) -> None:
        for name in names:
            self.delete(name)

    def _spend(self) -> None:
        if self.left == 0:
            raise StoreError(ErrorCode.IO_FAILED, "the client died")
        self.left -= 1


@pytest.mark.usefixtures("packs_apart")
def test_maintenance_may_die_after_any_write() -> None:
    """Segments of several levels are written and merged, and packs as well."""
    run = Run(0)
    with run.repo:
        for n in range(22):
            run.commit(run.repo)
            if n in (5, 11, 14):
                run.repo.maintain()
        base = {info.name: run.store.get(info.name) for info in run.store.list()}
        writes, done = 0, False
        while not done:
            run.store = MemoryStore()
            for name, data in base.items():
                run.store.put(name, [data])
            run.repo = casweights.open(run.store)
            with run.repo:
                done = _dies_after(run.store, writes)
                run.check()
                run.repo.maintain()
                run.check()
            check_versions(run.store, run.versions)
            assert list_segments(run.store)
            writes += 1
    assert writes > 8


def _dies_after(store: ObjectStore, writes: int) -> bool:
    """Maintain a store with this number of writes; return whether that was enough."""
    with casweights.open(Dying(store, writes)) as repo:
        try:
            repo.maintain()
        except StoreError:
            return False
    return True


@pytest.mark.usefixtures("packs_apart")
def test_two_maintenances_at_once_lose_no_coverage_for_long() -> None:
    """The second one runs between the writes and the deletions of the first one."""
    run = Run(1)

    class Late(WrapperStore):
        def delete_all(self, doomed: Sequence[str]) -> None:
            with casweights.open(run.store) as other:
                other.maintain()
            super().delete_all(doomed)

    with run.repo:
        for _ in range(12):
            run.commit(run.repo)
        with casweights.open(Late(run.store)) as repo:
            repo.maintain()
        run.check()
        with casweights.open(run.store) as repo:
            repo.maintain()
            covered = {p.pack for s in _opened(run.store) for p in s.index.packs}
            packs = [names.pack_of(info.name) for info in run.store.list(names.PACKS)]
            assert len([pack for pack in packs if pack not in covered]) <= 2
    check_versions(run.store, run.versions)


def _opened(store: ObjectStore) -> list[segments.Segment]:
    return [segments.Segment.open(store, info) for info in list_segments(store)]
