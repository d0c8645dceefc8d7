"""Collections of versions that have expired, and of those below a deletion in a log."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import Keep
from casweights.database import reflog
from casweights.database.moves import GONE, encode_move
from casweights.errors import NotFoundError
from casweights.format import names
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import check_versions, weights
from tests.operations.collecting import LONG, collect, commit_all, finish, open_repo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.stores.base import ObjectStore

STEPS = 12
EVERY = 4


@pytest.fixture(params=["memory", "bucket"])
def objects(request: pytest.FixtureRequest) -> MemoryStore:
    return Bucket() if request.param == "bucket" else MemoryStore()


@pytest.fixture
def repo(objects: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 1)
    with open_repo(objects, create=True) as repository:
        yield repository


def versions_in(objects: ObjectStore) -> set[str]:
    """Return the IDs of the versions that have an object of their own in its place."""
    return {info.name.removeprefix(names.SNAPSHOTS) for info in objects.list(names.SNAPSHOTS)}


def trim(repo: Repository) -> None:
    """Shorten the logs: old moves name versions, too. Archives would keep them together."""
    for _ in repo.database.refs.trim():
        pass


@pytest.mark.usefixtures("packs_apart")
def test_versions_that_expired_go_and_histories_stay(
    repo: Repository, objects: MemoryStore
) -> None:
    states = [{"w": weights(2, seed)} for seed in range(STEPS)]  # no chunk builds on another
    versions = {repo.commit(state, branch="main").id: state for state in states}
    assert repo.expire(Keep(every=EVERY), apply=True).go == STEPS - STEPS // EVERY
    if isinstance(objects, Bucket):  # there the moves are the versions
        trim(repo)
    kept = {version.id: versions[version.id] for version in repo.log()}
    assert [version.number for version in repo.log()] == [12, 8, 4]
    age(objects, LONG)
    before = sum(info.size for info in objects.list())
    collection = collect(repo)
    for _ in range(2):
        check_versions(objects, kept)
        with open_repo(objects) as reader:
            assert [version.number for version in reader.log()] == [12, 8, 4]
            assert reader.verify().problems == ()
        assert versions_in(objects) <= set(map(str, kept))
        finish(repo, objects)
    assert not list(objects.list(names.ASIDE)), collection
    assert sum(info.size for info in objects.list()) < before / 2
    gone = next(version for version in versions if version not in kept)
    with open_repo(objects) as reader:
        for read in (reader.load, reader.snapshot, lambda ref: reader.tensor(ref, "w")):
            for ref in (gone, str(gone)):
                with pytest.raises(NotFoundError, match="expired"):
                    read(ref)


def test_a_version_that_expired_stays_if_something_names_it(
    repo: Repository, objects: MemoryStore
) -> None:
    versions = commit_all(repo, "main", 6, seed=2)
    repo.expire(Keep(last=1), apply=True)
    trim(repo)
    named = list(versions)[2]
    repo.tag("paper", named)
    age(objects, LONG)
    for _ in range(3):
        repo.gc(apply=True)
        age(objects, LONG)
    check_versions(objects, {named: versions[named], list(versions)[-1]: [*versions.values()][-1]})
    with open_repo(objects) as reader:
        assert reader.verify().problems == ()


def test_what_a_branch_named_before_it_was_deleted_goes_from_one_that_was_made_again(
    repo: Repository, objects: MemoryStore
) -> None:
    old = commit_all(repo, "b", 2, seed=3)
    repo.delete_branch("b")
    new = commit_all(repo, "b", 2, seed=4)
    age(objects, LONG)
    if isinstance(objects, Bucket):  # there the moves are the versions
        trim(repo)
        age(objects, LONG)
    collect(repo)
    for _ in range(2):
        check_versions(objects, new)
        with open_repo(objects) as reader:
            assert reader.verify().problems == ()
        finish(repo, objects)
    with open_repo(objects) as reader, pytest.raises(casweights.NotFoundError):
        reader.load(list(old)[-1])  # the first has the header that all need


def test_a_deletion_that_lost_a_race_ends_nothing_for_checks_and_collections() -> None:
    """The version that the branch names is needed, and reported once it is missing."""
    objects = Bucket()
    with open_repo(objects, create=True) as repo:
        old, new = commit_all(repo, "main", 2)
        repo.branch("b", old)
        repo.branch("b", new, force=True)
        late = names.move_name(names.HEADS, "b", 2, GONE, old, "f" * names.WRITER_DIGITS)
        objects.put(late, [encode_move(GONE, old)])
        assert repo.branches()["b"] == new
        assert repo.database.refs.ends_of_logs(repo.database.refs.objects()) == {}
        repo.delete_branch("main")
        repo.maintain()
        age(objects, LONG)
        assert repo.gc(apply=True).objects == ()
        objects.delete(names.snapshot_name(new))
    with open_repo(objects) as repo:
        problems = [str(problem) for problem in repo.verify().problems]
        assert any(f"points to {new}" in problem for problem in problems)


@pytest.mark.parametrize("marked", [False, True])
def test_checks_and_collections_need_nothing_below_a_deletion(
    repo: Repository, objects: MemoryStore, marked: bool
) -> None:
    old = commit_all(repo, "b", 2, seed=3)
    repo.delete_branch("b")
    if marked:
        trim(repo)
    log = f"{names.HEADS}b"
    listed = repo.database.refs.objects()
    assert repo.database.refs.ends_of_logs(listed) == {log: 3}
    assert repo.database.refs.ends_of_logs(listed, lambda info: info.created == 0) == {}
    for version in old:
        repo.database.store.delete(names.snapshot_name(version))
    with open_repo(objects) as reader:
        assert reader.verify().problems == ()


def test_a_run_with_a_longer_grace_time_follows_one_with_a_shorter_one(
    tmp_path: Path,
) -> None:
    """The young moves of a log name expired versions that the shorter one has removed."""
    objects = LocalStore(tmp_path / "store")
    with open_repo(objects, create=True) as repo:
        versions = commit_all(repo, "main", 12)
        repo.expire(Keep(last=2), apply=True)
        for _ in range(4):
            repo.gc(apply=True, grace=timedelta(0), confirm=repo.url)
        assert len(versions_in(objects)) < len(versions)
        assert repo.gc(apply=True).objects == ()
        assert repo.space().free == 0
        kept = {version.id: versions[version.id] for version in repo.log()}
    assert len(kept) == 2
    check_versions(objects, kept)
