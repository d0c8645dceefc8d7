"""Helpers for tests of expiry: a store with a history of one version a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import Keep
from casweights.config import StoreConfig
from casweights.format import names
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from tests.copying_bucket import Bucket
from tests.findings import Remote
from tests.histories import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights import Repository
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore

CONFIG = StoreConfig(chunk_size=CHUNK)
START = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 12
KEEP = Keep(last=2, every=5)
STAY = [12, 11, 10, 5]
TAGGED = 7


def open_store(store: ObjectStore, **options: bool) -> Repository:
    return casweights.open(store, config=CONFIG, workers=1, **options)  # type: ignore[arg-type]


def state(number: int) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(64.0) + number}


def fill(store: ObjectStore, count: int = COUNT) -> list[SnapshotId]:
    """Make a store with a branch of versions, one a day; return their IDs by number minus 1."""
    with open_store(store, create=True) as repo:
        return [
            repo.commit(state(n), metadata={"eval": n / count}, time=START + timedelta(days=n)).id
            for n in range(1, count + 1)
        ]


@pytest.fixture(params=["directory", "memory", "remote", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    kinds: dict[str, Callable[[], ObjectStore]] = {
        "directory": partial(LocalStore, tmp_path / "store"),
        "memory": MemoryStore,
        "remote": lambda: Remote(MemoryStore()),
        "bucket": Bucket,
    }
    return kinds[request.param]()


@pytest.fixture
def ids(store: ObjectStore) -> list[SnapshotId]:
    return fill(store)


def numbers(repo: Repository, ref: str = "main") -> list[int]:
    return [snapshot.number for snapshot in repo.log(ref)]


def gaps(repo: Repository, ref: str = "main") -> list[list[int]]:
    return [[row.number for row in expired] for _, expired in repo.history(ref)]


def recorded(store: ObjectStore) -> set[int]:
    with open_store(store) as repo:
        return {row.number for row in repo.database.expired.load()}


def remove(store: ObjectStore, ids: Sequence[SnapshotId]) -> None:
    """Remove versions that carry no frames, as a collection would."""
    with open_store(store) as repo:
        for snapshot in ids:
            repo.database.store.delete(names.snapshot_name(snapshot))


def expire_apart(store: ObjectStore, last: int) -> None:
    with open_store(store) as repo:
        repo.expire(Keep(last=last), apply=True)


@pytest.fixture
def target() -> Iterator[Repository]:
    with open_store(MemoryStore(), create=True) as repo:
        yield repo
