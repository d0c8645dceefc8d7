"""What collections leave, cost, and read; and writers that work for as long as the grace time."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import Mock, patch

import pytest

import casweights
from casweights.errors import StoreError
from casweights.format import names
from casweights.operations import archiving, collections
from casweights.operations import collect as collect_module
from casweights.stores import memory
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests.ages import DAY, GRACE, age
from tests.copying_bucket import Bucket
from tests.histories import check_versions, step
from tests.large_versions import packs_apart
from tests.operations.collecting import (
    LONG,
    InPlace,
    abandon,
    apply,
    collect,
    commit_all,
    finish,
    open_repo,
    stored,
    undelete_all,
)
from tests.operations.turns import Watched
from tools.spec.reader import check_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository
    from tests.operations.collecting import Versions

    Verb = Callable[[Repository], object]


@pytest.fixture(params=["memory", "bucket"])
def objects(request: pytest.FixtureRequest) -> MemoryStore:
    return Bucket() if request.param == "bucket" else MemoryStore()


@pytest.fixture
def repo(objects: MemoryStore) -> Iterator[Repository]:
    with open_repo(objects, create=True) as repository:
        yield repository


def test_a_plan_that_is_out_of_date_touches_only_what_is_still_dead(
    repo: Repository, objects: MemoryStore
) -> None:
    one, other = (abandon(repo, objects, seed, 2) for seed in (50, 70))
    plan = [found.name for found in repo.gc().objects]
    repo.branch("back", list(one)[-1])
    more = abandon(repo, objects, 90, 2)
    done = repo.gc(apply=True, only=plan)
    assert {found.name for found in done.objects} < set(plan)
    check_versions(objects, one | more)
    finish(repo, objects)
    check_versions(objects, one | more)
    with open_repo(objects) as reader, pytest.raises(casweights.NotFoundError):
        reader.load(next(iter(other)))


@pytest.mark.parametrize("part", [names.PACKS, names.SNAPSHOTS])
def test_a_plan_of_parts_leaves_no_version_without_its_bytes(
    repo: Repository, objects: MemoryStore, part: str
) -> None:
    with packs_apart():
        kept = commit_all(repo, "main") | abandon(repo, objects)
    plan = [found.name for found in repo.gc().objects if found.name.startswith(part)]
    assert plan
    done = repo.gc(apply=True, only=plan)
    assert [found.name for found in done.objects] == (plan if part == names.SNAPSHOTS else [])
    if part == names.PACKS:
        check_versions(objects, kept)
    finish(repo, objects)
    with open_repo(objects) as reader:
        assert reader.verify().problems == ()


def test_a_run_that_took_hours_deletes_nothing(repo: Repository, objects: MemoryStore) -> None:
    abandon(repo, objects)
    before = stored(objects)
    with (
        patch.object(collect_module, "RELIANCE_SECONDS", -1.0),
        pytest.raises(StoreError, match="6 hours"),
    ):
        repo.gc(apply=True)
    assert before <= stored(objects)


def test_a_publisher_that_stays_open_through_the_grace_time_goes_on(
    repo: Repository, objects: MemoryStore
) -> None:
    state = next(iter(abandon(repo, objects).values()))
    versions: Versions = {}
    with (
        open_repo(objects) as own,
        packs_apart(),
        casweights.Publisher(own, "run", maintain=False) as publisher,
    ):
        for number in range(6):
            state = {"w": step(state["w"], 0.01, number)}
            publisher.publish(state)
            version = publisher.wait()
            assert version is not None
            versions[version.id] = state
            with open_repo(objects) as other:
                other.gc(apply=True)
            age(objects, LONG)
            with open_repo(objects) as other:
                other.gc(apply=True)
    check_versions(objects, versions)
    assert not list(objects.list(names.ASIDE))


def test_maintenance_after_a_deleted_branch_has_gone_stops_no_collection(
    repo: Repository, objects: MemoryStore
) -> None:
    """The mark that it writes is young, and names a version that is no longer there."""
    kept = commit_all(repo, "main")
    commit_all(repo, "lost", seed=50)
    repo.delete_branch("lost")
    for _ in range(2):
        age(objects, LONG)
        repo.gc(apply=True)
    repo.maintain()
    assert repo.gc(apply=True).kept
    check_versions(objects, kept)


@pytest.mark.parametrize("is_archived", [False, True])
def test_what_a_young_mark_of_a_deletion_names_comes_back_from_aside(is_archived: bool) -> None:
    """Maintenance writes the mark after the version was set aside."""
    objects = MemoryStore()
    with open_repo(objects, create=True) as repo:
        kept = commit_all(repo, "main")
        others = {info.name for info in objects.list(names.SNAPSHOTS)}
        lost = commit_all(repo, "lost", seed=50)
        if is_archived:
            own = [info for info in objects.list(names.SNAPSHOTS) if info.name not in others]
            archiving.archive(repo.database, own)
        repo.delete_branch("lost")
        age(objects, LONG)
        assert repo.gc(apply=True).objects
        repo.maintain()
        assert repo.gc(apply=True).restored
        repo.undelete("lost")
    check_versions(objects, kept | lost)


def test_nothing_new_costs_no_reads_and_the_same_number_of_calls(
    repo: Repository, objects: MemoryStore
) -> None:
    calls = []
    for versions in (2, 12):
        commit_all(repo, f"b{versions}", versions)
        age(objects, LONG)
        repo.gc(apply=True)
        with open_repo(counting := CountingStore(objects)) as reader:
            watched = Watched(objects)
            counting.inner = watched
            counting.reset()
            seen: list[int] = []
            watched.before = seen.append
            assert reader.gc(apply=True).objects == ()
            assert counting.reads == []
            calls.append(len(seen))
    assert calls[0] == calls[1] < 30
    lost = abandon(repo, objects)  # and the note hides nothing
    assert len(repo.gc(apply=True).objects) == len(lost)


def test_a_note_is_no_reason_to_leave_what_has_grown_old(
    repo: Repository, objects: MemoryStore
) -> None:
    commit_all(repo, "main")
    commit_all(repo, "lost", seed=50)
    repo.delete_branch("lost")
    repo.maintain()
    # The clock goes on, and the times of the objects stay.
    for passed, is_due in ((GRACE - timedelta(hours=1), False), (GRACE + DAY, True)):
        now = time.time() + passed.total_seconds()
        with (
            patch.object(memory, "time", Mock(time_ns=lambda now=now: int(now * 1e9))),
            patch.object(collections, "machine_time", return_value=now),
        ):
            for _ in range(2):
                assert bool(repo.gc(apply=True).objects) == is_due
                is_due = False


@pytest.mark.parametrize("verb", [apply, undelete_all])
def test_no_version_is_in_its_place_without_its_bytes(
    repo: Repository, objects: MemoryStore, verb: Verb
) -> None:
    commit_all(repo, "main", 2)
    with packs_apart():
        abandon(repo, objects)
    if verb is undelete_all:
        collect(repo)
    seen = set()

    def look(_: int) -> None:
        with open_repo(InPlace(objects)) as reader:
            there = list(reader.database.snapshots.ids())
            for version in there:
                reader.load(version)
            seen.add(len(there))

    with open_repo(Watched(objects, after=look)) as changing:
        verb(changing)
    assert seen == {2, 3, 4, 5}


def test_a_push_copies_nothing_that_was_set_aside(repo: Repository, objects: MemoryStore) -> None:
    kept = commit_all(repo, "main")
    abandon(repo, objects)
    collect(repo)
    target = MemoryStore()
    with open_repo(target, create=True) as there:
        repo.push(there, unnamed=True)
    check_versions(target, kept)
    assert not [name for name in stored(target) if name.startswith(names.ASIDE)]
    assert not list(target.list(names.COLLECTIONS))


def test_an_independent_reader_passes_over_collections(tmp_path: Path) -> None:
    objects = LocalStore(tmp_path / "store")
    with open_repo(objects, create=True) as repo:
        kept = commit_all(repo, "main")
        abandon(repo, objects)
        collect(repo)
    for version in kept:
        check_out(tmp_path / "store", str(version), tmp_path / str(version))


def test_in_a_directory_no_byte_is_copied(tmp_path: Path) -> None:
    objects = LocalStore(tmp_path / "store")
    with open_repo(objects, create=True) as repo:
        lost = abandon(repo, objects)
        before = {(tmp_path / "store" / i.name).stat().st_ino for i in objects.list("snapshots/")}
        digits = collect(repo)
        aside = {(tmp_path / "store" / i.name).stat().st_ino for i in objects.list(names.ASIDE)}
        assert before == aside
        repo.undelete_collection(digits)
        after = {(tmp_path / "store" / i.name).stat().st_ino for i in objects.list("snapshots/")}
        assert before == after
        assert repo.gc().objects == ()  # the time of the files is new
    check_versions(objects, lost)
