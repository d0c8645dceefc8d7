"""Push and pull between stores in which versions have expired."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights import Keep
from casweights.errors import (
    NotFoundError,
)
from casweights.format import names
from casweights.ids import PackId, Suspect
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.expiring import (
    COUNT,
    KEEP,
    STAY,
    gaps,
    ids,
    numbers,
    open_store,
    remove,
    state,
    store,
    target,
)

if TYPE_CHECKING:
    from casweights import Repository
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore


__all__ = ["ids", "store", "target"]


def test_a_push_takes_records_along_and_leaves_expired_versions_out(
    store: ObjectStore, ids: list[SnapshotId], target: Repository
) -> None:
    with open_store(store) as repo:
        repo.expire(KEEP, apply=True)
        assert repo.push(target).snapshots == 4
    assert set(target.database.snapshots.ids()) == {ids[n - 1] for n in STAY}
    assert (numbers(target), gaps(target)[2:]) == (STAY, [[9, 8, 7, 6], [4, 3, 2, 1]])
    assert target.verify().problems == ()
    with pytest.raises(NotFoundError, match="expired"):
        target.resolve("main~4")
    for number in STAY:
        assert_same_state(target.load(ids[number - 1]), state(number))
    with open_store(store) as repo:
        repo.commit(state(13))
        assert repo.push(target).snapshots == 1  # its head is found in the history
        assert target.push(repo).snapshots == 0
        assert repo.push(target, [str(ids[6])]).snapshots == 1  # what is named is sent
        assert target.verify().problems == ()


@pytest.mark.usefixtures("packs_apart")
def test_a_pull_brings_back_nothing_that_this_side_has_expired(
    store: ObjectStore, ids: list[SnapshotId], target: Repository
) -> None:
    """An archive keeps what it has: a push never expires a version of the target."""
    with open_store(store) as repo:
        repo.push(target)
        repo.expire(KEEP, apply=True)
        gone = [ids[n - 1] for n in range(1, COUNT + 1) if n not in STAY]
        remove(store, gone)
    with open_store(store) as repo:
        repo.push(target)
        assert numbers(target) == list(range(COUNT, 0, -1))
        target.commit(state(13))
        assert repo.pull(target).snapshots == 1
        assert numbers(repo) == [13, *STAY]
        assert repo.verify().problems == ()
        assert repo.pull(target, unnamed=True).snapshots == 0
        assert repo.pull(target, history=False, with_expired=True).snapshots == 0
        assert repo.pull(target, with_expired=True).snapshots == len(gone)  # behind the head
        assert repo.pull(target, with_expired=True).snapshots == 0
        for number, version in enumerate(ids, 1):
            assert_same_state(repo.load(version), state(number))
        assert repo.verify().problems == ()


@pytest.mark.usefixtures("packs_apart")
def test_with_expired_a_push_sends_the_whole_history(
    store: ObjectStore, ids: list[SnapshotId], target: Repository
) -> None:
    with open_store(store) as repo:
        repo.expire(KEEP, apply=True)
        repo.database.store.delete(names.snapshot_name(ids[0]))
    with open_store(store) as repo:
        assert repo.push(target, with_expired=True).snapshots == 11
    assert numbers(target) == list(range(12, 1, -1))
    assert gaps(target)[-1] == [1]  # only its record is left
    assert target.verify().problems == ()


@pytest.mark.parametrize("history", [True, False])
def test_versions_without_history_expire_and_end_it(
    store: ObjectStore, ids: list[SnapshotId], target: Repository, history: bool
) -> None:
    """A store to which a version was copied without its history has no record of that."""
    with open_store(store) as repo:
        repo.push(target, [str(ids[3])], history=False)
        repo.push(target)
        assert numbers(target) == list(range(12, 3, -1))
        target.expire(Keep(last=2), apply=True)
        target.database.store.delete(names.snapshot_name(ids[3]))
        with open_store(MemoryStore(), create=True) as other:
            target.push(other, history=history)
            assert numbers(other) == ([12, 11] if history else [12])
            assert other.verify().problems == ()
    assert gaps(target) == [[], [10, 9, 8, 7, 6, 5, 4]]
    with pytest.raises(NotFoundError, match=r"expired.*main~1'"):
        target.resolve("main~8")
    with pytest.raises(NotFoundError, match="does not exist"):
        target.resolve("main~9")


@pytest.mark.usefixtures("packs_apart")
def test_a_branch_moves_on_from_a_head_that_has_expired_and_was_removed(
    store: ObjectStore, ids: list[SnapshotId], target: Repository
) -> None:
    with open_store(store) as repo:
        repo.push(target)
        later = [repo.commit(state(n)).id for n in range(13, 17)]
        repo.expire(Keep(last=1), apply=True)
    remove(store, [*ids, *later[:-1]])
    with open_store(store) as repo:
        assert repo.push(target).snapshots == 1
    assert target.resolve("main") == later[-1]
    assert numbers(target) == [16, *range(12, 0, -1)]
    assert gaps(target)[0] == [15, 14, 13]
    assert target.verify().problems == ()


def test_a_push_that_repairs_the_target_expires_nothing_there(
    store: ObjectStore, ids: list[SnapshotId], target: Repository
) -> None:
    """With a finding in the target, a push looks at all versions, also at those that it has."""
    with open_store(store) as repo:
        repo.push(target)
        repo.expire(KEEP, apply=True)
        target.database.findings.note({Suspect(PackId(bytes(32)), 8): "for the test"})
        repo.commit(state(13))
        repo.push(target)
    assert numbers(target) == list(range(13, 0, -1))


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("pulls", [True, False])
def test_a_transfer_says_how_many_versions_the_target_lets_go_again(
    store: ObjectStore, ids: list[SnapshotId], target: Repository, pulls: bool
) -> None:
    with open_store(store) as repo:
        repo.push(target)
        assert repo.push(target, with_expired=True).expired == 0
        repo.expire(KEEP, apply=True)
    gone = [version for number, version in enumerate(ids, 1) if number not in STAY]
    remove(store, gone)
    with open_store(store) as repo:
        if pulls:
            done = repo.pull(target, with_expired=True)
        else:
            done = target.push(repo, with_expired=True)
        assert (done.snapshots, done.expired) == (len(gone), len(gone))
        assert numbers(repo) == STAY


@pytest.mark.usefixtures("packs_apart")
def test_an_expired_version_that_a_transfer_names_is_kept(
    store: ObjectStore, ids: list[SnapshotId], target: Repository
) -> None:
    with open_store(store) as repo:
        repo.push(target)
        target.tag("wanted", ids[2])
        repo.expire(KEEP, apply=True)
    remove(store, ids[1:3])
    with open_store(store) as repo:
        done = repo.pull(target, ["wanted"])
        assert (done.snapshots, done.expired) == (1, 0)
        done = repo.pull(target, [str(ids[1])])
        assert (done.snapshots, done.expired) == (1, 1)
