"""Maintenance: small packs are merged, and nothing else changes."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import StoreConfig
from casweights.database import pack_indexes
from casweights.database.packs import try_read_pack
from casweights.errors import StoreError
from casweights.operations import maintain as module
from casweights.operations import merging
from casweights.operations.maintain import Maintenance
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from casweights.testing.states import assert_same_state
from tests.archived import archives, keep_few, own
from tests.histories import CHUNK, check_versions, pack_names
from tests.large_versions import packs_apart
from tests.lengths import moments

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId
    from casweights.database.packs import PackContents
    from casweights.errors import CasweightsError
    from casweights.stores.base import ObjectInfo, ObjectStore

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


@pytest.fixture
def _merges_early(monkeypatch: pytest.MonkeyPatch, packs_apart: None) -> None:
    monkeypatch.setattr(module, "_RECENT_PACKS", 2)
    monkeypatch.setattr(merging, "FAN_IN", 2)
    monkeypatch.setattr(merging, "LEVELS", (1 << 30,))


@pytest.fixture(params=["carried", "apart"])
def _all_is_old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let maintenance archive all versions but the head, and merge all packs but two."""
    keep_few(monkeypatch)
    monkeypatch.setattr(module, "_RECENT_PACKS", 2)
    monkeypatch.setattr(merging, "LEVELS", (1 << 30,))
    if request.param == "apart":
        request.getfixturevalue("packs_apart")


def run_of(repo: Repository, versions: int) -> Versions:
    """Commit some versions, of which each has a pack."""
    made: Versions = {}
    for n in range(versions):
        state = {"w": torch.arange(64.0) + n}
        made[repo.commit(state).id] = state
    return made


@pytest.mark.usefixtures("_all_is_old")
def test_commits_of_the_same_handle_between_any_two_slices_find_everything() -> None:
    for place in count():
        store = MemoryStore()
        with casweights.open(store, create=True, config=CONFIG) as repo:
            made = run_of(repo, 6)
            apart = repo.database.apart()
            work = Maintenance(apart, merged=repo.database.learn_merged)
            slices = work.slices()
            done = len(list(islice(slices, place)))
            made |= run_of(repo, 2)
            for _ in slices:
                pass
            apart.close()
            made |= run_of(repo, 2)
            assert repo.verify().problems == ()
        check_versions(store, made)
        if done < place:
            break
    assert place > 6, "a slice for each pack, and some more"


@pytest.mark.usefixtures("_all_is_old")
def test_maintenance_can_stop_after_any_slice() -> None:
    for place in moments(4):
        store = MemoryStore()
        with casweights.open(store, create=True, config=CONFIG) as repo:
            made = run_of(repo, 6)
            slices = Maintenance(repo.database, merged=repo.database.learn_merged).slices()
            done = len(list(islice(slices, place)))
            slices.close()
            check_versions(store, made)
            made |= run_of(repo, 1)
            repo.maintain()
            assert len(pack_names(store)) <= 3
            assert len(archives(store)) <= 2
            assert len(own(store)) <= 2
        check_versions(store, made)
        if done < place:
            break


@pytest.mark.usefixtures("_merges_early")
def test_a_handle_that_has_learnt_of_a_merge_reads_no_index_for_the_next_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, read = MemoryStore(), []

    def note(store: ObjectStore, info: ObjectInfo) -> PackContents | CasweightsError:
        read.append(info.name)
        return try_read_pack(store, info)

    monkeypatch.setattr(pack_indexes, "try_read_pack", note)
    with casweights.open(store, create=True, config=CONFIG) as repo:
        made = run_of(repo, 6)
        repo.maintain()
        made[repo.commit({"w": torch.arange(64.0) + 6}).id] = {"w": torch.arange(64.0) + 6}
        assert read == []
        chunks = [chunk for file in repo.snapshot("main").files for chunk in file.chunks]
        assert repo.database.index.unread_packs(chunks) == ([], [])
        assert_same_state(repo.load("main"), {"w": torch.arange(64.0) + 6})
        assert read == [], "nor for the newest version"
        check_versions(store, made)


@pytest.mark.usefixtures("_merges_early")
def test_a_budget_bounds_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    with casweights.open(store, create=True, config=CONFIG) as repo:
        made = run_of(repo, 12)
        sizes = {info.name: info.size for info in store.list("packs/")}
        budget = sum(sizes.values()) // 2
        monkeypatch.setattr(merging, "PACK_TARGET", budget // 2)  # of a group
        for _ in Maintenance(repo.database, merged=lambda _: None, budget=budget).slices():
            pass
        read = sizes.keys() - pack_names(store)
    assert budget // 4 < sum(sizes[name] for name in read) <= budget
    check_versions(store, made)


@pytest.mark.usefixtures("_merges_early")
def test_packs_with_many_frames_are_not_merged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MAX_FRAMES", 10)
    monkeypatch.setattr(module, "_FULL_FRAMES", 5)
    store = CountingStore(MemoryStore())
    full: set[str] = set()
    with casweights.open(store, create=True, config=CONFIG) as repo:
        made = run_of(repo, 14)
        for _ in range(3):
            store.reset()
            known = set(full)
            for _ in Maintenance(repo.database, merged=lambda _: None, full=full).slices():
                pass
            assert known.isdisjoint(name for name, _ in store.reads)
            assert known <= pack_names(store)
        assert known
    check_versions(store, made)


@pytest.mark.usefixtures("_merges_early")
def test_nothing_is_deleted_in_favour_of_a_damaged_pack_that_was_there_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    with casweights.open(store, create=True, config=CONFIG) as repo:
        made = run_of(repo, 6)
    before = pack_names(store)
    faulty = FaultyStore(store, [Fault(call=1, method="put")])
    with casweights.open(faulty) as repo, pytest.raises(StoreError):
        repo.maintain()
    (merged,) = (name for method, name in faulty.calls if method == "put")
    store.put(merged, [b"cut short"])
    monkeypatch.setattr(module, "_RECENT_PACKS", 3)  # the damaged pack is the newest one
    with casweights.open(store) as repo:
        repo.maintain()
        assert pack_names(store) == before | {merged}
        for version, state in made.items():
            assert_same_state(repo.load(version), state)


@pytest.mark.usefixtures("_merges_early")
def test_packs_that_were_merged_are_not_looked_for_again() -> None:
    store = MemoryStore()
    with casweights.open(store, create=True, config=CONFIG) as repo:
        run_of(repo, 6)
    with casweights.open(store) as repo:
        repo.load("main")  # learns from the version which packs it needs
        repo.maintain()
        chunks = [chunk for file in repo.snapshot("main").files for chunk in file.chunks]
        assert repo.database.index.unread_packs(chunks) == ([], [])
