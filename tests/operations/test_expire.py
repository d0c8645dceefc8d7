"""Expiry: what a policy lets go is recorded, left out, and explained; nothing is lost."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from casweights import Keep
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.format import names
from casweights.operations.expire import expire
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.expiring import (
    COUNT,
    KEEP,
    STAY,
    TAGGED,
    expire_apart,
    fill,
    gaps,
    ids,
    numbers,
    open_store,
    recorded,
    remove,
    state,
    store,
)
from tests.findings import ReadOnly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore


__all__ = ["ids", "store"]


@pytest.mark.usefixtures("both_forms")
def test_a_policy_keeps_what_its_rules_say_and_records_the_rest(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        repo.tag("v1", str(ids[TAGGED - 1]))
        plan = repo.expire(KEEP)
        assert not plan.applied
        assert recorded(store) == set()
        assert numbers(repo) == list(range(COUNT, 0, -1))
        done = repo.expire(KEEP, apply=True)
        assert done.applied
        assert done.verdicts == plan.verdicts
        assert [(v.number, v.reasons) for v in done.verdicts if v.stays] == [
            (12, ("head of main", "last 2")),
            (11, ("last 2",)),
            (10, ("every 5",)),
            (7, ("tag v1",)),
            (5, ("every 5",)),
        ]
        assert {v.policy for v in done.verdicts} == {"", "last 2, every 5"}
        assert (done.stay, done.go, done.policy) == (5, 7, (KEEP,))
    with open_store(store) as repo:
        assert numbers(repo) == [12, 11, 10, 7, 5]
        assert gaps(repo) == [[], [], [9, 8], [6], [4, 3, 2, 1]]
        for number, snapshot in enumerate(ids, 1):  # nothing was deleted
            assert_same_state(repo.load(snapshot), state(number))
        assert repo.verify().problems == ()
        again = repo.expire(KEEP, apply=True)
        assert (again.stay, again.go) == (5, 0)


@pytest.mark.usefixtures("packs_apart")
def test_history_is_read_past_versions_that_were_removed(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        repo.expire(KEEP, apply=True)
    gone = [ids[n - 1] for n in range(1, COUNT + 1) if n not in STAY]
    remove(store, gone)
    with open_store(store) as repo:
        assert numbers(repo) == STAY
        assert gaps(repo) == [[], [], [9, 8, 7, 6], [4, 3, 2, 1]]
        assert repo.verify().problems == ()
        assert repo.expire(KEEP, apply=True).go == 0
        assert repo.resolve("main~7") == ids[4]
        for ref in (str(gone[0]), str(gone[0])[:12]):
            with pytest.raises(NotFoundError, match=r"\(number 1\) expired on .*last 2, every 5"):
                repo.snapshot(ref)
        with pytest.raises(NotFoundError) as caught:
            list(repo.log(str(gone[0])))
        assert caught.value.code is ErrorCode.EXPIRED
        head = repo.commit(state(13)).id
        assert numbers(repo) == [13, *STAY]
        assert repo.expire(Keep(every=5), apply=True).go == 2  # 12 and 11
        assert numbers(repo) == [13, 10, 5]
        assert repo.snapshot("main").id == head


def test_a_step_back_means_the_same_number_before_and_after(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        before = [repo.resolve(f"main~{n}") for n in range(COUNT)]
        assert before == ids[::-1]
        repo.expire(KEEP, apply=True)
        for back, snapshot in enumerate(before):
            if COUNT - back in STAY:
                assert repo.resolve(f"main~{back}") == snapshot
                continue
            with pytest.raises(NotFoundError) as caught:
                repo.resolve(f"main~{back}")
            assert caught.value.code is ErrorCode.EXPIRED
            nearest = min(STAY, key=lambda number: abs(number - (COUNT - back)))
            assert f"version {COUNT - back}, which expired on 20" in caught.value.message
            assert f"stayed is 'main~{COUNT - nearest}'" in caught.value.message
            assert str(snapshot) in caught.value.__notes__[0]
        with pytest.raises(NotFoundError, match="12 versions") as caught:
            repo.resolve(f"main~{COUNT}")
        assert caught.value.code is ErrorCode.REF_NOT_FOUND


def test_a_branch_or_tag_at_an_expired_version_brings_it_back(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        repo.expire(KEEP, apply=True)
        repo.branch("again", str(ids[7]))
        repo.tag("kept", str(ids[2]))
        assert numbers(repo) == [12, 11, 10, 8, 5, 3]
        assert numbers(repo, "again") == [8, 5, 3]
        assert repo.resolve("main~4") == ids[7]
        assert repo.expire(KEEP, apply=True).go == 0
        repo.delete_tag("kept")
        assert numbers(repo) == [12, 11, 10, 8, 5]


def test_each_branch_has_the_rules_of_the_first_pattern_that_matches(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        for name in ("run-1", "notes"):
            for n in range(4):
                repo.commit(state(100 + n), branch=name, parent=None if n else str(ids[9]))
        policy = [Keep(branches="run-*", last=1), Keep(branches="r*", last=3), Keep(last=4)]
        found = repo.expire(policy[:2])
        assert {v.number for v in found.verdicts if not v.stays} == {11, 12, 13}
        kept = {v.number: v.reasons for v in found.verdicts if v.stays}
        assert kept[9] == ("main has no policy", "notes has no policy")
        repo.expire(policy, apply=True)
        assert numbers(repo) == [12, 11, 10, 9]
        assert numbers(repo, "run-1") == [14, 10, 9]  # those that another branch keeps
        assert numbers(repo, "notes") == [14, 13, 12, 11, 10, 9]


def test_rules_about_time_and_metadata_look_at_each_version(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        keep = Keep(within=timedelta(days=1), weekly=2, where="eval < 0.2 and not draft")
        found = repo.expire(keep)
        assert {v.number: v.reasons[-1] for v in found.verdicts if v.stays} == {
            12: "weekly 2026-01-12",
            11: "within 1d",
            10: "weekly 2026-01-05",
            2: "where eval < 0.2 and not draft",
            1: "where eval < 0.2 and not draft",
        }


@pytest.mark.parametrize("where", ["eval >=", "__import__('os')"])
def test_a_condition_that_cannot_be_read_changes_nothing(
    store: ObjectStore, ids: list[SnapshotId], where: str
) -> None:
    with open_store(store) as repo:
        for call in (partial(repo.expire, apply=True), repo.set_policy):
            with pytest.raises(InvalidInputError, match="is not a condition"):
                call(Keep(where=where))
        assert repo.policy() == ()
        assert numbers(repo) == list(range(COUNT, 0, -1))


def test_a_policy_is_kept_in_the_store_and_applied_by_maintain(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        with pytest.raises(InvalidInputError, match="has no policy"):
            repo.expire()
        with pytest.raises(InvalidInputError, match="empty"):
            repo.expire([])
        assert repo.maintain().expired == 0
        repo.set_policy(Keep(last=1))
        repo.set_policy([KEEP])
        assert repo.policy() == (KEEP,)
        assert len(list(store.list(names.POLICIES))) == 1
    with open_store(store) as repo:
        assert repo.expire().go == 8
        assert repo.maintain().expired == 8
        assert numbers(repo) == STAY
        repo.set_policy([])
        assert repo.policy() == ()
        repo.commit(state(13))
        assert repo.maintain().expired == 0
        assert repo.verify().problems == ()


def test_a_policy_can_be_replaced_without_the_right_to_delete() -> None:
    class AddOnly(ReadOnly):
        def put(self, name: str, parts: Sequence[bytes]) -> bool:  # type: ignore[override]
            return self.inner.put(name, parts)

    objects = MemoryStore()
    fill(objects)
    with open_store(AddOnly(objects)) as repo:
        for last in (5, 3, 4):
            repo.set_policy(Keep(last=last))
        assert repo.policy() == (Keep(last=4),)
        assert len(list(objects.list(names.POLICIES))) == 3
        assert repo.expire(apply=True).go == 8


@pytest.mark.usefixtures("packs_apart")
def test_a_parent_that_is_missing_without_a_record_is_a_problem(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        repo.expire(Keep(last=3), apply=True)
    remove(store, ids[9:10])
    with open_store(store) as repo:
        problems = repo.verify().problems
        assert {problem.code for problem in problems} == {ErrorCode.MISSING_CHUNK}
        assert sum(f"its parent {ids[9]}" in problem.message for problem in problems) == 1
        for call in (partial(repo.expire, Keep(last=2)), lambda: numbers(repo)):
            with pytest.raises(NotFoundError):
                call()


def test_a_damaged_version_stops_expiry(store: ObjectStore, ids: list[SnapshotId]) -> None:
    with open_store(store) as repo:
        at = repo.database.store
        data = bytearray(at.get(name := names.snapshot_name(ids[4])))
        data[-40] ^= 1
        at.delete(name)
        at.put(name, [data])
    with open_store(store) as repo, pytest.raises(IntegrityError):
        repo.expire(KEEP, apply=True)
    assert recorded(store) == set()


def test_records_cost_nothing_to_those_who_do_not_ask() -> None:
    objects = MemoryStore()
    fill(objects)
    expire_apart(objects, 3)
    store = CountingStore(objects)
    with open_store(store) as repo:
        repo.load("main")
        repo.commit(state(20))
        repo.branches()
        assert not [name for name, _ in store.reads if name.startswith(names.EXPIRED)]
        for _ in range(3):  # each record is read once
            assert numbers(repo) == [13, 12, 11, 10]
        assert len([name for name, _ in store.reads if name.startswith(names.EXPIRED)]) == 1


def test_each_version_is_read_once_however_many_branches_have_it() -> None:
    objects = MemoryStore()
    ids = fill(objects)
    with open_store(objects) as repo:
        for n in range(10):
            repo.branch(f"b{n}", str(ids[-1]))
    store = CountingStore(objects)
    with open_store(store) as repo:
        repo.expire(Keep(last=3))
    reads = Counter(name for name, _ in store.reads if name.startswith(names.SNAPSHOTS))
    assert max(reads.values()) <= 2  # the end of an object, and its first bytes


def test_the_clock_of_a_run_is_in_its_records(store: ObjectStore, ids: list[SnapshotId]) -> None:
    when = datetime(2027, 5, 6, 7, 8, tzinfo=UTC)
    with open_store(store) as repo:
        expire(repo.database, [KEEP], apply=True, clock=lambda: when)
        assert {row.time for row in repo.database.expired.load()} == {when}
        with pytest.raises(NotFoundError, match=r"2027-05-06 07:08 UTC \(last 2, every 5\)"):
            repo.resolve("main~3")
