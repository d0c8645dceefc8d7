"""What holds the bytes of a store, and that `gc` frees what it is said to free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights.config import Keep
from casweights.database import reflog
from casweights.format import names
from casweights.stores.memory import MemoryStore
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import history, weights
from tests.operations.collecting import LONG, open_repo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights import Repository
    from casweights.results import SpaceUse
    from casweights.stores.base import ObjectStore


@pytest.fixture
def objects() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repo(objects: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 1)
    with open_repo(objects, create=True) as repository:
        yield repository


def checked(repo: Repository, objects: ObjectStore) -> SpaceUse:
    """Return what holds the bytes; the parts must add up to what lies in the folders."""
    use = checked_all(repo)
    folders = (names.PACKS, names.SNAPSHOTS, names.ARCHIVES)
    assert use.total == sum(info.size for f in folders for info in objects.list(f))
    return use


def checked_all(repo: Repository) -> SpaceUse:
    """Return what holds the bytes; the parts must add up, and none may be negative."""
    use = repo.space()
    parts = (use.branches, use.tags, use.bases, use.moves, use.young, use.unused, use.free)
    assert sum(parts) == use.total
    assert min(parts) >= 0
    return use


def test_each_byte_is_held_by_one_thing(repo: Repository, objects: MemoryStore) -> None:
    repo.commit({"w": weights(2, seed=1)}, branch="main")
    alone = checked(repo, objects)
    assert (alone.branches, alone.free, alone.young) == (alone.total, 0, 0)
    repo.tag("paper", repo.commit({"w": weights(2, seed=2)}, branch="draft"))
    repo.delete_branch("draft")
    tagged = checked(repo, objects)
    assert tagged.tags == tagged.total - alone.total > 0
    assert tagged.branches == alone.branches
    repo.commit({"w": weights(2, seed=3)}, branch="lost")
    repo.delete_branch("lost")
    young = checked(repo, objects)
    assert young.young == young.total - tagged.total > 0
    assert young.free == 0
    repo.maintain()
    age(objects, LONG)
    old = checked(repo, objects)
    assert (old.free, old.young) == (young.young, 0)
    done = repo.gc(apply=True)
    assert done.nbytes == old.free
    after = checked(repo, objects)
    assert (after.free, after.total) == (0, tagged.total)
    [pending] = after.aside
    assert pending.nbytes == old.free


def test_expired_versions_are_bases_until_they_are_folded(
    repo: Repository, objects: MemoryStore
) -> None:
    for state in history(30, 0.02):
        repo.commit(state, branch="main")
    repo.expire(Keep(every=10), apply=True)
    repo.maintain()
    age(objects, LONG)
    before = checked(repo, objects)
    assert before.bases > 0
    assert before.unused > 0
    for _ in range(3):
        repo.gc(apply=True)
        age(objects, LONG)
    after = checked(repo, objects)
    assert (after.bases, after.free) == (0, 0)
    assert after.unused < 0.05 * after.total
    assert after.total < 0.6 * before.total


def test_what_the_log_of_a_branch_holds_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket, a version is a move of its branch, and the last moves stay."""
    monkeypatch.setattr(reflog, "RECENT_MOVES", 64)
    bucket = Bucket()
    with open_repo(bucket, create=True) as repo:
        for state in history(4, 0.02):
            repo.commit(state, branch="main")
        assert checked_all(repo).moves == 0
        repo.expire(Keep(last=1), apply=True)
        age(bucket, LONG)
        held = checked_all(repo)
        assert held.moves > 0
        assert held.unused < held.moves
        assert (held.free, held.young) == (0, 0)
        repo.delete_branch("main")
        age(bucket, LONG)
        assert checked_all(repo).moves > held.moves
        for _ in repo.database.refs.trim():
            pass
        assert checked_all(repo).moves == 0
