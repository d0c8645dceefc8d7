"""Snapshots that carry frames: one object is a version and a pack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import KiB, StoreConfig
from casweights.database import writer
from casweights.database.packs import read_pack
from casweights.errors import ErrorCode, IntegrityError
from casweights.format import names
from casweights.ids import CarriedPackId
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.findings import replace
from tests.histories import check_versions, history, pack_names, step, weights
from tests.large_versions import packs_apart

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId
    from casweights.format.pack import Location
    from casweights.stores.base import ObjectStore
    from casweights.testing import CountingStore
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=64 * KiB)


def frames_of(store: ObjectStore, version: SnapshotId) -> list[Location]:
    """Return the frames that the object of a version carries."""
    name = names.snapshot_name(version)
    return list(read_pack(store, next(store.list(name))).locations)


def fill(store: ObjectStore, count: int = 3) -> dict[SnapshotId, State]:
    with casweights.open(store, create=True, config=CONFIG) as repo:
        return {repo.commit(state).id: state for state in history(count, 0.01, chunks=3)}


def test_a_small_version_is_one_object(objects: CountingStore) -> None:
    versions = fill(objects)
    assert pack_names(objects) == set()
    assert all(frames_of(objects, version) for version in versions)
    check_versions(objects, versions)


def test_a_version_without_new_chunks_is_bare(repo: Repository, objects: CountingStore) -> None:
    state = {"w": weights(2)}
    repo.commit(state)
    again = repo.commit(state, message="again")
    assert not frames_of(objects, again.id)
    check_versions(objects, {again.id: state})


def test_a_large_version_is_packs_and_a_bare_snapshot(
    objects: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PACK_TARGET", 100 * KiB)
    versions = fill(objects, 1)
    assert len(pack_names(objects)) > 1
    assert [frames_of(objects, version) for version in versions] == [[]]
    check_versions(objects, versions)


def test_the_pack_table_lists_packs_that_other_snapshots_carry(objects: CountingStore) -> None:
    first, *_, last = fill(objects)
    with casweights.open(objects) as repo:
        table = repo.database.snapshots.load_stored(last).table
    assert table.packs[0] == CarriedPackId(last)
    assert CarriedPackId(first) in table.packs
    assert {type(pack) for pack in table.packs} == {CarriedPackId}


@pytest.mark.parametrize("cheap", [False, True])
def test_reading_a_snapshot_reads_no_frames(objects: CountingStore, cheap: bool) -> None:
    objects.capabilities = Capabilities(exclusive_create=True, cheap_reads=cheap)
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        version = repo.commit({"w": weights(20)}, compression="fast").id
    with casweights.open(objects) as repo:
        objects.reset()
        assert repo.snapshot(version).files[0].size > 20 * 64 * KiB
        reads = [nbytes for name, nbytes in objects.reads if name == names.snapshot_name(version)]
    assert sum(reads) < 300 * KiB
    assert len(reads) == 1 or cheap


def test_a_small_version_is_read_over_a_network_at_once(objects: CountingStore) -> None:
    """Headers, lists of chunks and chunks all come with the end of the object."""
    versions = fill(objects, 1)
    [(version, state)] = versions.items()
    objects.capabilities = Capabilities(exclusive_create=True, cheap_reads=False)
    with casweights.open(objects) as repo:
        objects.reset()
        assert_same_state(repo.load(version), state)
        [read] = [nbytes for name, nbytes in objects.reads if name.startswith(names.SNAPSHOTS)]
    assert read == objects.size(names.snapshot_name(version)) < 256 * KiB


def test_damage_to_a_carried_frame_is_found_and_healed(objects: CountingStore) -> None:
    versions = fill(objects)
    first, state = next(iter(versions.items()))
    damaged = frames_of(objects, first)[0]
    flip_bit(objects, names.snapshot_name(first), damaged.frame.offset + 5)
    with casweights.open(objects) as repo:
        found = repo.verify()
        assert (found.damaged, found.noted) == (1, objects.url)
        assert names.snapshot_name(first) in str(found.problems[0])
    [finding] = [info.name for info in objects.list(names.DAMAGED)]
    assert finding == f"{names.DAMAGED}{first}-{damaged.frame.offset}"
    with casweights.open(objects) as repo:
        healed = repo.commit(state, branch="again", parent=None)
        assert damaged.frame.chunk in {at.frame.chunk for at in frames_of(objects, healed.id)}
        for version, expected in versions.items():
            assert_same_state(repo.load(version), expected)


def test_a_finding_about_a_sound_snapshot_is_withdrawn(objects: CountingStore) -> None:
    first, *_ = fill(objects)
    place = frames_of(objects, first)[0].frame.offset + 5
    flip_bit(objects, names.snapshot_name(first), place)
    with casweights.open(objects) as repo:
        assert repo.verify().damaged == 1
    flip_bit(objects, names.snapshot_name(first), place)
    with casweights.open(objects) as repo:
        assert repo.verify().problems == ()
    assert list(objects.list(names.DAMAGED)) == []


def test_a_finding_about_a_snapshot_goes_with_it(objects: CountingStore) -> None:
    *_, last = fill(objects)
    flip_bit(objects, names.snapshot_name(last), frames_of(objects, last)[0].frame.offset + 5)
    with casweights.open(objects) as repo:
        repo.verify()
        repo.database.findings.answer_gone()
        assert list(objects.list(names.DAMAGED))
        objects.delete(names.snapshot_name(last))
        repo.database.findings.answer_gone()
    assert list(objects.list(names.DAMAGED)) == []


@pytest.mark.parametrize("place", [0, 4, 5, 6, 7, -1, -5, -8, -12, -16, -20, -200])
def test_damage_outside_the_frames_makes_the_version_unreadable(
    objects: CountingStore, place: int
) -> None:
    *_, last = fill(objects)
    flip_bit(objects, names.snapshot_name(last), place)
    with casweights.open(objects) as repo:
        with pytest.raises(IntegrityError, match=str(last)) as caught:
            repo.load(last)
        assert caught.value.code is ErrorCode.CORRUPT_OBJECT
        problems = [str(problem) for problem in repo.verify().problems]
    assert len([problem for problem in problems if f"snapshots/{last} is damaged" in problem]) == 1


def test_the_index_is_read_without_the_manifests(objects: CountingStore) -> None:
    versions = fill(objects)
    with casweights.open(objects) as repo:
        repo.database.index.load()
        chunks = {at.frame.chunk for v in versions for at in frames_of(objects, v)}
        assert all(chunk in repo.database.index for chunk in chunks)


def test_maintenance_leaves_recent_carrying_snapshots_alone(objects: CountingStore) -> None:
    versions = fill(objects, 12)
    before = {info.name: objects.get(info.name) for info in objects.list()}
    with casweights.open(objects) as repo:
        repo.maintain()
    assert {info.name: objects.get(info.name) for info in objects.list()} == before
    check_versions(objects, versions)


def test_a_repack_rewrites_packs_next_to_carrying_snapshots(objects: CountingStore) -> None:
    with packs_apart():
        versions = fill(objects, 3)
    old = pack_names(objects)
    with casweights.open(objects) as repo:
        state = {"w": step(list(versions.values())[-1]["w"], 0.01, 77)}
        versions[repo.commit(state).id] = state
        repo.repack()
        packs = pack_names(objects)
        assert not packs & old
        repo.repack()
        assert pack_names(objects) == packs
    check_versions(objects, versions)


@pytest.mark.parametrize("history", [True, False])
def test_a_push_copies_carrying_snapshots(objects: CountingStore, history: bool) -> None:
    versions = fill(objects)
    target = MemoryStore()
    with (
        casweights.open(objects) as here,
        casweights.open(target, create=True, config=CONFIG) as there,
    ):
        here.push(there, history=history)
        tip = there.resolve("main")
    if history:
        for version in versions:
            name = names.snapshot_name(version)
            assert target.get(name) == objects.get(name)
        check_versions(target, versions)
    check_versions(target, {tip: versions[tip]})


def test_a_push_takes_what_it_needs_from_snapshots_that_are_not_pushed(
    objects: CountingStore,
) -> None:
    """The other version must not appear in the target without its parents."""
    versions = fill(objects)
    with casweights.open(objects) as repo:
        alike = {"w": step(next(iter(versions.values()))["w"], 0.01, 70), "more": weights(1, 71)}
        variant = repo.commit(alike, branch="variant").id
        assert set(repo.database.snapshots.load_stored(variant).packs) & set(versions)
    target = MemoryStore()
    with (
        casweights.open(objects) as here,
        casweights.open(target, create=True, config=CONFIG) as there,
    ):
        here.push(there, ["variant"])
    assert {info.name for info in target.list(names.SNAPSHOTS)} == {names.snapshot_name(variant)}
    assert pack_names(target)
    check_versions(target, {variant: alike})
    with casweights.open(target) as repo:
        table = repo.database.snapshots.load_stored(variant).table
        assert set(map(names.pack_name, table.packs)) <= {info.name for info in target.list()}


@pytest.mark.parametrize("branch", ["main", "again"])
def test_a_writer_that_knows_a_snapshot_stores_again_what_it_carried_once_it_is_damaged(
    branch: str,
) -> None:
    objects, state = MemoryStore(), {"w": weights(2, seed=1)}
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        name = names.snapshot_name(repo.commit(state).id)
        replace(objects, name, objects.get(name)[:-1])
        with casweights.open(objects) as other:
            assert other.verify().noted
        again = repo.commit(state, branch=branch).id
    with casweights.open(objects) as fresh:
        assert_same_state(fresh.load(again), state)


def test_a_push_finds_frames_of_the_versions_that_it_has_just_copied(
    objects: CountingStore,
) -> None:
    """Each version needs a frame of another branch's version, which is not pushed, and its own."""
    target = MemoryStore()
    shared, own = weights(1, seed=1), weights(1, seed=2)
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        for number in range(6):
            shared, own = step(shared, 0.01, seed=number), step(own, 0.01, seed=number)
            repo.commit({"a": shared}, branch="other")
            repo.commit({"a": shared, "b": own})
        with casweights.open(target, create=True, config=CONFIG) as there:
            repo.push(there, "main")
            assert_same_state(there.load("main"), {"a": shared, "b": own})
            assert there.verify().problems == ()
