"""Helpers for tests of archives: a store with many versions, and what maintenance made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import REPLACED_GRACE, StoreConfig
from casweights.database.reflog import RECENT_MOVES
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.operations import archiving, merging
from casweights.stores.memory import MemoryStore
from tests.histories import CHUNK

if TYPE_CHECKING:
    from datetime import timedelta

    from casweights import Repository
    from casweights.stores.base import ObjectStore

CONFIG = StoreConfig(chunk_size=CHUNK)
OLD = 40  # versions behind the newest ones

Versions = dict[SnapshotId, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def history() -> tuple[MemoryStore, Versions]:
    """A store with many versions of one branch, and a tag at an old one."""
    store, state, versions = MemoryStore(), {"w": torch.arange(64.0)}, {}
    with casweights.open(store, create=True, config=CONFIG) as repo:
        for n in range(RECENT_MOVES + OLD):
            state["w"][n % 64] += 1
            versions[repo.commit(state, message=f"step {n}").id] = {"w": state["w"].clone()}
        repo.tag("first", list(versions)[3])
    return store, versions


@pytest.fixture
def store(history: tuple[MemoryStore, Versions]) -> MemoryStore:
    return copy_of(history[0])


@pytest.fixture
def versions(history: tuple[MemoryStore, Versions]) -> Versions:
    return dict(history[1])


def oldest(versions: Versions) -> SnapshotId:
    return next(iter(versions))


def copy_of(store: ObjectStore) -> MemoryStore:
    copy = MemoryStore()
    for info in store.list():
        copy.put(info.name, [store.get(info.name)])
    return copy


def names_in(store: ObjectStore, folder: str) -> set[str]:
    return {info.name for info in store.list(folder)}


def own(store: ObjectStore) -> set[str]:
    return names_in(store, names.SNAPSHOTS)


def archives(store: ObjectStore) -> set[str]:
    return names_in(store, names.ARCHIVES)


def maintain(
    store: ObjectStore, grace: timedelta = REPLACED_GRACE
) -> casweights.results.MaintainStats:
    with casweights.open(store) as repo:
        return repo.maintain(grace=grace)


def merge_archives(repo: Repository) -> None:
    for _ in archiving.merge_archives(repo.database, merging.Budget()):
        pass


def keep_few(monkeypatch: pytest.MonkeyPatch, fan_in: int = 2) -> None:
    """Let maintenance leave only the last version alone, and merge objects from `fan_in` on."""
    monkeypatch.setattr("casweights.database.reflog.RECENT_MOVES", 1)
    monkeypatch.setattr(merging, "FAN_IN", fan_in)
