"""Records of expired versions are merged, and written while others write and after crashes."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from casweights import Keep
from casweights.errors import (
    ConflictError,
    StoreError,
)
from casweights.format import names
from casweights.format.expired import encode_records
from casweights.results import ExpiredVersion
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore
from tests.copying_bucket import Bucket
from tests.expiring import (
    START,
    expire_apart,
    fill,
    numbers,
    open_store,
    recorded,
    state,
)
from tests.lengths import moments, spread
from tests.operations.turns import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights import Snapshot
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore


def test_records_are_merged_as_they_grow() -> None:
    store = MemoryStore()
    count = 75
    fill(store, count)
    for last in range(count - 1, 0, -1):
        expire_apart(store, last)
        assert len(recorded(store)) == count - last
    # Of each power of eight, fewer than eight are left.
    assert len(list(store.list(names.EXPIRED))) < 2 * 8
    with open_store(store) as repo:
        assert numbers(repo) == [count]
        [(_, gap)] = repo.history()
        assert [row.number for row in gap] == list(range(count - 1, 0, -1))
        assert {row.policy for row in gap} == {f"last {n}" for n in range(1, count)}
        assert repo.verify().problems == ()


def test_two_clients_that_merge_at_any_moment_lose_no_row() -> None:
    """The second merge runs whole before each call of the first one."""
    original = MemoryStore()
    fill(original, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casweights.database.expired._FAN_IN", 1000)
        for last in range(19, 4, -1):
            expire_apart(original, last)
    for call in range(1, 200):
        store = copy_of(original)
        happened = False

        def merge_too(number: int) -> None:
            nonlocal happened
            if number == call:  # noqa: B023
                happened = True
                expire_apart(store, 3)  # noqa: B023

        with open_store(Watched(store, before=merge_too)) as repo:
            repo.database.expired.merge()
        assert recorded(store) >= set(range(1, 16))
        with open_store(store) as repo:
            assert repo.verify().problems == ()
            assert repo.expire(Keep(last=3)).go in (0, 2)
        if not happened:
            break
    assert 10 < call < 200


def copy_of(store: MemoryStore, kind: type[MemoryStore] = MemoryStore) -> MemoryStore:
    copy = kind()
    copy._objects, copy._created = dict(store._objects), dict(store._created)
    return copy


def test_equal_records_never_delete_each_other() -> None:
    """Two clients that let the same versions go at different times: one row of each stays."""
    store = MemoryStore()
    ids = fill(store, 4)
    for n in range(8):
        rows = [
            ExpiredVersion(
                id=ids[at], number=at + 1, parents=tuple(ids[at - 1 : at]), time=when, policy="p"
            )
            for at in range(2)
            for when in [START + timedelta(hours=n)]
        ]
        [record] = encode_records(rows)
        store.put(record.name, [record.data])
    for _ in range(3):
        with open_store(store) as repo:
            repo.database.expired.merge()
        assert recorded(store) == {1, 2}
    assert len(list(store.list(names.EXPIRED))) < 8


def calls_of(operation: Callable[[ObjectStore], None], original: MemoryStore) -> int:
    """Return how many calls of the store an operation makes."""
    watched = FaultyStore(copy_of(original))
    operation(watched)
    return len(watched.calls)


def test_records_stay_if_the_merged_one_is_damaged() -> None:
    """An object with its name was there before, so that the new record was not written."""
    store = MemoryStore()
    ids = fill(store, 12)
    rows = [
        ExpiredVersion(
            id=ids[at], number=at + 1, parents=tuple(ids[at - 1 : at]), time=START, policy="p"
        )
        for at in range(8)
    ]
    [merged] = encode_records(rows)
    store.put(merged.name, [merged.data[:-1]])
    for row in rows:
        [record] = encode_records([row])
        store.put(record.name, [record.data])
    with open_store(store) as repo:
        assert repo.database.expired.merge() == 0
    assert recorded(store) == set(range(1, 9))


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_call_leaves_a_sound_store_and_the_next_run_finishes(after: bool) -> None:
    original = MemoryStore()
    fill(original, 20)
    for last in range(19, 12, -1):
        expire_apart(original, last)  # seven records: the next one merges them
    once = copy_of(original)
    expire_apart(once, 5)
    calls = calls_of(partial(expire_apart, last=5), original)
    assert calls > 20
    outcomes = Counter[int]()
    for call in spread(range(1, calls + 1), 8, after):
        store = copy_of(original)
        with pytest.raises(StoreError):
            expire_apart(FaultyStore(store, [Fault(call=call, after=after)]), 5)
        outcomes[len(recorded(store))] += 1
        with open_store(store) as repo:
            assert repo.verify().problems == ()
        expire_apart(store, 5)
        assert recorded(store) == recorded(once) == set(range(1, 16))
        with open_store(store) as repo:
            assert numbers(repo) == [20, 19, 18, 17, 16]
            assert repo.verify().problems == ()
    assert outcomes.keys() == {7, 15}  # nothing, or everything


NAMED = ["tag", "branch", "commit", "new branch"]


@pytest.mark.parametrize("kind", [MemoryStore, Bucket])
@pytest.mark.parametrize("what", NAMED)
def test_a_version_that_is_named_at_any_moment_of_expiry_stays(
    what: str, kind: type[ObjectStore]
) -> None:
    """Another client names a version before each call of the store, which would go."""
    original = kind()
    ids = fill(original, 9)
    for call in moments(3, (what, kind.__name__)):
        store = kind()
        for info in original.list():
            store.put(info.name, [original.get(info.name)])
        made: list[Snapshot | SnapshotId] = []

        def name(number: int) -> None:
            if number != call:  # noqa: B023
                return
            with open_store(store) as other:  # noqa: B023
                if what == "tag":
                    made.append(other.tag("v1", str(ids[3])))  # noqa: B023
                elif what == "branch":
                    made.append(other.branch("kept", str(ids[3])))  # noqa: B023
                elif what == "commit":
                    made.append(other.commit(state(10)))  # noqa: B023
                else:
                    parent = str(ids[3])
                    made.append(other.commit(state(11), branch="more", parent=parent))  # noqa: B023

        watched = Watched(store, before=name)
        with open_store(watched) as repo:
            done = repo.expire(Keep(last=2), apply=True)
        if not made:
            break
        with open_store(store) as repo:
            assert repo.verify().problems == ()
            stayed = {snapshot.id for snapshot in repo.log()}
            assert ids[8] in stayed
            if what in ("tag", "branch"):
                assert ids[3] in stayed
                stays = next(verdict.stays for verdict in done.verdicts if verdict.number == 4)
                assert stays == (4 not in recorded(store))
            elif what == "commit":
                assert numbers(repo) in ([10, 9], [10, 9, 8])
            else:
                assert next(repo.log("more")).number == 5
                assert repo.snapshot(ids[3]).number == 4
    assert call > 10


@pytest.mark.parametrize("branches", [30, 500])
def test_only_branches_that_are_made_all_the_time_are_a_conflict(branches: int) -> None:
    store = MemoryStore()
    ids = fill(store, 5)
    made: list[str] = []

    class Busy(MemoryStore):
        def list(self, prefix: str = "") -> Iterator[object]:  # type: ignore[override]
            if prefix == names.HEADS and len(made) < branches:
                made.append(f"b{len(made)}")
                with open_store(store) as other:
                    other.branch(made[-1], str(ids[1]))
            return store.list(prefix)

    busy = copy_of(store, Busy)
    busy._objects, busy._created = store._objects, store._created
    with open_store(busy) as repo:
        expire = partial(repo.expire, Keep(branches="main", last=1), apply=True)
        if branches == 500:
            with pytest.raises(ConflictError, match="all the time"):
                expire()
        else:
            assert expire().go
    assert bool(recorded(store)) == (branches == 30)
