"""What `maintain` and `repack` replace is set aside, and deleted once what replaces it is sound."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch

from casweights.database import reflog
from casweights.errors import StoreError
from casweights.format import names
from casweights.format.collection import Part, Plan, PlannedObject, encode_plan, part_name
from casweights.operations import maintain, merging
from casweights.stores.base import ObjectInfo
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.add_only import AddOnly
from tests.ages import DAY, age
from tests.findings import Remote
from tests.histories import check_versions
from tests.large_versions import packs_apart
from tests.lengths import moments
from tests.operations.collecting import (
    KINDS,
    LONG,
    abandon,
    collect,
    commit_all,
    make_objects,
    open_repo,
)
from tests.operations.damage import copy_of, flip
from tests.operations.troubles import Crashing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from casweights import SnapshotId
    from casweights.stores.base import ObjectStore
    from tests.histories import State

    Versions = dict[SnapshotId, State]

VERBS = ("maintain", "repack")
FOLDERS = (names.PACKS, names.SNAPSHOTS, names.ARCHIVES)
HOUR, AT_ONCE = timedelta(hours=1), timedelta(0)


@pytest.fixture(autouse=True)
def _merges_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FAN_IN", 2)
    monkeypatch.setattr(maintain, "_RECENT_PACKS", 0)
    monkeypatch.setattr(reflog, "RECENT_MOVES", 2)


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    return make_objects(request.param, tmp_path)


def filled(objects: ObjectStore) -> Versions:
    """Make versions with packs of their own, and others that carry their frames."""
    with open_repo(objects, create=True) as repo:
        with packs_apart():
            made = commit_all(repo, "main", 4)
        return made | commit_all(repo, "main", 3, seed=7)


def in_place(objects: ObjectStore) -> set[str]:
    return {info.name for folder in FOLDERS for info in objects.list(folder)}


def aside(objects: ObjectStore) -> dict[str, str]:
    """Return what lies aside: the present names, by the names that it had."""
    found = {}
    for info in objects.list(names.ASIDE):
        _, _, former = info.name.removeprefix(names.ASIDE).partition("/")
        found[former] = info.name
    return found


def collections(objects: ObjectStore) -> set[str]:
    return {info.name for info in objects.list(names.COLLECTIONS)}


def run(objects: ObjectStore, verb: str, **options: Any) -> None:
    with open_repo(objects) as repo:
        getattr(repo, verb)(**options)


def settle(objects: ObjectStore) -> None:
    """Let time pass until maintenance has nothing left to do."""
    before: set[str] = set()
    while before != (now := {info.name for info in objects.list()}):
        before = now
        age(objects, LONG)
        run(objects, "maintain")


def check_reads(objects: ObjectStore, made: Versions) -> None:
    """Check that all versions can be read, also if something is damaged."""
    with open_repo(objects) as repo:
        for version, state in made.items():
            assert_same_state(repo.load(version), state)


@pytest.mark.parametrize("verb", VERBS)
def test_what_was_replaced_lies_aside_for_a_day(objects: ObjectStore, verb: str) -> None:
    made = filled(objects)
    before = in_place(objects)
    run(objects, verb)
    gone = before - in_place(objects)
    assert len(gone) >= 4
    assert gone <= aside(objects).keys()
    assert all(n.startswith(f"{names.ASIDE}replaced-") for n in aside(objects).values())
    age(objects, DAY - HOUR)
    run(objects, "maintain")
    assert gone <= aside(objects).keys()
    age(objects, 2 * HOUR)
    run(objects, "maintain")
    assert aside(objects).keys().isdisjoint(gone)
    settle(objects)
    assert aside(objects) == {}
    assert collections(objects) == set()
    check_versions(objects, made)


@pytest.mark.parametrize("verb", VERBS)
def test_a_collection_deletes_it_after_the_same_time(objects: ObjectStore, verb: str) -> None:
    """What `gc` itself has set aside lies there for a week."""
    made = filled(objects)
    run(objects, verb)
    gone = aside(objects).keys()
    assert gone
    for hours in (1, 22):  # the first run notes that there is nothing to do until then
        age(objects, hours * HOUR)
        run(objects, "gc", apply=True)
        assert aside(objects).keys() == gone
    age(objects, 2 * HOUR)
    run(objects, "gc", apply=True)
    assert aside(objects) == {}
    check_versions(objects, made)


class Guarded(WrapperStore):
    """A store that refuses to delete data of which nothing lies aside, nor has for a day."""

    def delete(self, name: str) -> None:
        self.delete_all([name])

    def delete_all(self, names_: Sequence[str]) -> None:
        copies = aside(self.inner)
        for name in names_:
            if name.startswith(FOLDERS) and self.inner.present([name]):
                assert name in copies, f"{name} is deleted, and no copy of it lies aside"
            if name.startswith(names.ASIDE):
                _, digits, _ = name.split("/", 2)
                end = part_name(digits, Part.END)
                (info,) = self.inner.list(end)
                assert info.created < (time.time() - DAY.total_seconds()) * 10**6, name
        self.inner.delete_all(names_)


def test_data_leaves_a_store_in_two_steps_alone() -> None:
    """There is one way out, for each verb that deletes."""
    objects = MemoryStore()
    made = filled(objects)
    guarded = Guarded(objects)
    for verb, options in [("maintain", {}), ("repack", {}), ("gc", {"apply": True})] * 2:
        run(guarded, verb, **options)
        age(objects, LONG)
    with open_repo(guarded) as repo:
        abandon(repo, objects)
        for _ in range(3):
            repo.gc(apply=True)
            age(objects, LONG)
    assert aside(objects) == {}
    check_versions(objects, made)


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_grace_time_it_is_gone_at_once(objects: ObjectStore, verb: str) -> None:
    made = filled(objects)
    run(objects, verb, grace=AT_ONCE)
    assert aside(objects) == {}
    assert collections(objects) == set()
    check_versions(objects, made)


class Ahead(MemoryStore):
    """A store whose clock is ahead of this machine's."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            yield replace(info, created=info.created + 3600 * 10**6)


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_grace_time_no_clock_matters(verb: str) -> None:
    objects = Ahead()
    made, before = filled(objects), in_place(objects)
    run(objects, verb, grace=AT_ONCE)
    assert before - in_place(objects)
    assert aside(objects) == {}
    check_versions(objects, made)


class Timeless(MemoryStore):
    """A store that does not know when objects were written."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (ObjectInfo(info.name, info.size) for info in super().list(prefix))


@pytest.mark.parametrize("verb", VERBS)
def test_where_no_time_is_known_it_is_gone_at_once(verb: str) -> None:
    objects = Timeless()
    made, before = filled(objects), in_place(objects)
    run(objects, verb)
    assert before - in_place(objects)
    assert aside(objects) == {}
    check_versions(objects, made)


def test_who_may_not_delete_sets_nothing_aside() -> None:
    objects = AddOnly(MemoryStore())
    made, before = filled(objects), in_place(objects)
    with open_repo(objects) as repo:
        assert not repo.maintain().may_delete
        with pytest.raises(StoreError):
            repo.repack()
    assert before <= in_place(objects)
    assert aside(objects) == {}
    assert collections(objects) == set()
    check_versions(objects, made)


@pytest.mark.parametrize("verb", VERBS)
def test_a_reader_that_has_located_a_pack_still_reads_it(objects: ObjectStore, verb: str) -> None:
    """Nothing but the old packs has the frames by the time at which they are read."""
    made = filled(objects)
    with open_repo(objects) as reader:
        reader.database.index.load()
        old = {pack.info.name for pack in reader.database.index.contents()}
        run(objects, verb)
        for name in in_place(objects) - old:
            if name.startswith(names.PACKS):
                objects.delete(name)
        for version, state in made.items():
            assert_same_state(reader.load(version), state)


def test_what_lies_aside_is_found_again_after_a_listing(objects: ObjectStore) -> None:
    """A listing of the packs does not show it, and makes a reader forget it."""
    made, old = filled(objects), in_place(objects)
    run(objects, "repack")
    for name in in_place(objects) - old:
        if name.startswith(names.PACKS):
            objects.delete(name)
    with open_repo(objects) as repo:
        chunks = [c for v in made for c in repo.snapshot(v).stored_chunks()]
        index = repo.database.index
        assert all(index.find_chain(chunk) for chunk in chunks)
        index.load()
        assert all(index.find_chain(chunk) for chunk in chunks)


def lives(objects: ObjectStore, before: set[str], made: Versions) -> None:
    """Check a store in which a run was killed, and that later runs end what it began."""
    check_versions(objects, made)
    assert before <= in_place(objects) | aside(objects).keys() | {
        info.name for info in objects.list(names.HEADS)
    }
    settle(objects)
    assert aside(objects) == {}
    assert collections(objects) == set()
    check_versions(objects, made)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_is_killed_at_any_call_loses_nothing(verb: str, done: bool) -> None:
    whole = MemoryStore()
    made, before = filled(whole), in_place(whole)
    for call in moments(6):
        objects = copy_of(whole)
        try:
            run(Crashing(objects, call, done=done), verb)
        except StoreError:
            lives(objects, before, made)
        else:
            break


@pytest.mark.parametrize("done", [False, True])
def test_the_second_step_can_be_killed_at_any_call(done: bool) -> None:
    whole = MemoryStore()
    made = filled(whole)
    run(whole, "repack")
    age(whole, 2 * DAY)
    for call in moments(6):
        objects = copy_of(whole)
        try:
            run(Crashing(objects, call, done=done), "maintain")
        except StoreError:
            lives(objects, set(), made)
        else:
            break


def harm(objects: ObjectStore, name: str, how: str) -> None:
    if how == "delete":
        objects.delete(name)
    else:
        flip(objects, name, 100)


@pytest.mark.parametrize("first", ["maintain", "gc"])
@pytest.mark.parametrize("how", ["flip", "delete"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_was_replaced_comes_back_if_a_new_pack_is_damaged(
    objects: ObjectStore, verb: str, how: str, first: str
) -> None:
    """Nobody has noticed the damage before the grace time is over."""
    made = filled(objects)
    old = in_place(objects)
    run(objects, verb)
    new = [n for n in in_place(objects) - old if n.startswith(names.PACKS)]
    assert new
    for name in new:
        harm(objects, name, how)
    age(objects, LONG)
    if first == "maintain":
        run(objects, "maintain")  # deletes nothing in favour of what is damaged
        check_reads(objects, made)
    run(objects, "gc", apply=True)
    check_reads(objects, made)
    for name in aside(objects).values():
        objects.delete(name)
    check_reads(objects, made)


@pytest.mark.parametrize("how", ["flip", "delete"])
def test_versions_come_back_if_their_archive_is_damaged(objects: ObjectStore, how: str) -> None:
    made = filled(objects)
    run(objects, "maintain")
    archives = [n for n in in_place(objects) if n.startswith(names.ARCHIVES)]
    assert archives
    for name in archives:
        harm(objects, name, how)
    age(objects, LONG)
    run(objects, "maintain")  # deletes nothing in favour of what is damaged
    run(objects, "gc", apply=True)
    for name in aside(objects).values():
        objects.delete(name)
    check_reads(objects, made)


@pytest.mark.parametrize("verb", VERBS)
def test_undelete_brings_back_what_was_replaced(objects: ObjectStore, verb: str) -> None:
    made, old = filled(objects), in_place(objects)
    run(objects, verb)
    with open_repo(objects) as repo:
        while found := repo.gc().pending:
            repo.undelete_collection(found[0].id)
        assert repo.verify().problems == ()
    assert old <= in_place(objects)
    assert aside(objects) == {}
    run(objects, verb, grace=AT_ONCE)
    assert old - in_place(objects)
    check_versions(objects, made)


def test_maintenance_leaves_alone_what_a_collection_has_set_aside(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever anybody writes about it: nothing marks what is needed of it here."""
    monkeypatch.setattr(merging, "FAN_IN", 8)
    with open_repo(objects, create=True) as repo:
        commit_all(repo, "main")
        lost = abandon(repo, objects)
        age(objects, LONG)
        repo.maintain(grace=AT_ONCE)
        digits = collect(repo)
        with packs_apart():
            repo.commit({"w": torch.arange(100.0)}, branch="main")
        new = min(info.name for info in objects.list(names.PACKS))
        rows = [PlannedObject(former, 1, 1) for former in aside(objects)]
        plan = encode_plan(Plan(now=0, grace=0, objects=rows, by=[new]))
        forged = f"replaced-{digits}"
        objects.put(part_name(forged, Part.PLAN), [plan])
        objects.put(part_name(forged, Part.END), [plan])
        age(objects, LONG)
        before = aside(objects)
        repo.maintain(grace=AT_ONCE)
        assert before.items() <= aside(objects).items()
    check_reads(objects, lost)


def test_a_maintenance_at_work_does_not_stop_a_collection(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FAN_IN", 8)
    with open_repo(objects, create=True) as repo:
        commit_all(repo, "main")
        abandon(repo, objects)
        plan = encode_plan(Plan(now=0, grace=0, objects=[], by=[]))
        objects.put(part_name("replaced-" + "0" * 16, Part.PLAN), [plan])
        assert repo.gc(apply=True).objects


def test_behind_a_network_only_the_indexes_of_packs_are_read_again() -> None:
    objects = CountingStore(Remote(MemoryStore()))
    made = filled(objects)
    run(objects, "repack")
    age(objects, 2 * DAY)
    new = {info.name: info.size for info in objects.list(names.PACKS)}
    objects.reset()
    with open_repo(objects) as repo:
        assert repo.maintain().freed_bytes
    read = sum(nbytes for name, nbytes in objects.reads if name in new)
    assert 0 < read < sum(new.values()) / 2
    check_versions(objects, made)
