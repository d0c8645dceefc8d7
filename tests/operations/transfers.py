"""Helpers for tests that transfer versions from store to store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import casweights
from casweights.config import StoreConfig
from casweights.operations.push import push
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import SnapshotId
    from casweights.database import Database
    from casweights.events import Reporter
    from casweights.results import TransferStats
    from casweights.stores.base import ObjectStore
    from casweights.testing import CountingStore

CONFIG = StoreConfig(chunk_size=CHUNK)

Versions = dict["SnapshotId", State]


def create(store: ObjectStore, config: StoreConfig = CONFIG) -> None:
    casweights.open(store, create=True, config=config).close()


def push_everything(here: Database, there: Database) -> TransferStats:
    return push(here, there, None, unnamed=True)


def send(
    source: ObjectStore,
    target: ObjectStore,
    move: Callable[[Database, Database], TransferStats] = push_everything,
    reporter: Reporter | None = None,
) -> TransferStats:
    """Open both stores with new handles, and transfer versions from one to the other."""
    with casweights.open(source) as here, casweights.open(target, reporter=reporter) as there:
        return move(here._db, there._db)


def push_all(source: ObjectStore, target: ObjectStore, *refs: str, force: bool = False) -> None:
    send(source, target, lambda here, there: push(here, there, refs or None, force=force))


def names_of(store: ObjectStore, prefix: str = "") -> set[str]:
    return {info.name for info in store.list(prefix)}


def check(store: ObjectStore, versions: Versions) -> None:
    """Check that the store is sound and contains exactly these versions, bit for bit."""
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
    for version, state in versions.items():
        with casweights.open(store) as repo:  # a new handle knows nothing from other versions
            assert repo.snapshot(version).id == version
            assert_same_state(repo.load(version), state)
    with casweights.open(store) as repo:  # some may be in archives
        assert set(repo.database.snapshots.ids()) == versions.keys()


def written(store: CountingStore, prefix: str = "") -> list[str]:
    return [name for name, _ in store.writes if name.startswith(prefix)]


def commit(store: ObjectStore, state: State, **options: str) -> SnapshotId:
    with casweights.open(store) as repo:
        return repo.commit(state, **options).id  # type: ignore[arg-type]
