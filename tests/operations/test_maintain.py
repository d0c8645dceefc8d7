"""Maintenance: small packs are merged, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import StoreConfig
from casweights.errors import StoreError
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, check_versions, pack_names
from tests.large_versions import packs_apart

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore
    from casweights.testing import CountingStore

CONFIG = StoreConfig(chunk_size=CHUNK)
RECENT = 16  # packs that maintenance leaves alone

Versions = dict["SnapshotId", dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def history() -> tuple[MemoryStore, Versions]:
    """A store with one small pack for each of many versions."""
    store, state, versions = MemoryStore(), {"w": torch.arange(64.0)}, {}
    with packs_apart(), casweights.open(store, create=True, config=CONFIG) as repo:
        for n in range(RECENT + 40):
            state["w"][n % 64] += 1
            versions[repo.commit(state).id] = {"w": state["w"].clone()}
    return store, versions


@pytest.fixture
def store(history: tuple[MemoryStore, Versions]) -> ObjectStore:
    copy = MemoryStore()
    for info in history[0].list():
        copy.put(info.name, [history[0].get(info.name)])
    return copy


def test_old_small_packs_become_one(
    store: ObjectStore, history: tuple[MemoryStore, Versions]
) -> None:
    before = pack_names(store)
    with casweights.open(store) as repo:
        stats = repo.maintain()
    assert (stats.old_packs, stats.packs) == (RECENT + 40, RECENT + 1)
    assert len(pack_names(store)) == RECENT + 1
    assert len(pack_names(store) & before) == RECENT
    check_versions(store, history[1])


def test_maintaining_twice_does_nothing_the_second_time(store: ObjectStore) -> None:
    with casweights.open(store) as repo:
        repo.maintain()
        packs = pack_names(store)
        assert repo.maintain().copied_bytes == 0
    assert pack_names(store) == packs


def test_few_packs_are_left_alone(repo: Repository, objects: CountingStore) -> None:
    for n in range(5):
        repo.commit({"w": torch.full((8,), float(n))})
    packs = pack_names(objects)
    assert repo.maintain().copied_bytes == 0
    assert pack_names(objects) == packs


def test_a_handle_goes_on_after_its_own_maintenance_and_that_of_others(
    store: ObjectStore, history: tuple[MemoryStore, Versions]
) -> None:
    newest = {"w": list(history[1].values())[-1]["w"].clone()}
    with casweights.open(store) as one, casweights.open(store) as two:
        for repo in (one, two):
            assert_same_state(repo.load("main"), newest)
        one.maintain()
        versions = {}
        for n, repo in enumerate((one, two)):
            newest["w"][n] += 1
            versions[repo.commit(newest).id] = {"w": newest["w"].clone()}
    check_versions(store, history[1] | versions)


def test_a_damaged_pack_stays_as_it_is(store: ObjectStore) -> None:
    damaged = min(pack_names(store))
    flip_bit(store, damaged, 12)
    data = store.get(damaged)
    for name in sorted(pack_names(store) - {damaged}):  # so that they are newer
        copy = store.get(name)
        store.delete(name)
        store.put(name, [copy])
    with casweights.open(store) as repo:
        assert repo.maintain().packs == RECENT + 2
    assert store.get(damaged) == data


@pytest.mark.parametrize("operation", ["put", "delete"])
def test_maintenance_that_breaks_off_loses_nothing_and_can_be_repeated(
    store: ObjectStore, history: tuple[MemoryStore, Versions], operation: str
) -> None:
    faulty = FaultyStore(store, [Fault(call=1, method=operation)])
    with casweights.open(faulty) as repo, pytest.raises(StoreError):
        repo.maintain()
    check_versions(store, history[1])
    with casweights.open(store) as repo:
        repo.maintain()
    assert len(pack_names(store)) == RECENT + 1
    check_versions(store, history[1])


def test_two_maintenances_at_once_lose_nothing(
    store: ObjectStore, history: tuple[MemoryStore, Versions]
) -> None:
    """The second one merges while the first one is about to delete what it has merged."""

    class Late(FaultyStore):
        def delete_all(self, names: object) -> None:
            with casweights.open(store) as other:
                other.maintain()
            super().delete_all(names)  # type: ignore[arg-type]

    with casweights.open(Late(store, [])) as repo:
        repo.maintain()
    check_versions(store, history[1])
