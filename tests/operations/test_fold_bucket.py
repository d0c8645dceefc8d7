"""Folding in a bucket, where the last versions of a branch are its moves and stay a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.config import Keep
from casweights.format import names
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import check_versions, history
from tests.operations.collecting import LONG, open_repo

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore
    from tests.operations.collecting import Versions


def expired_run(objects: ObjectStore, steps: int, every: int, *, maintained: bool) -> Versions:
    """Make a run of which most has expired long ago; return the versions that stay."""
    with open_repo(objects, create=True) as repo:
        states = history(steps, 0.02, chunks=2)
        versions = {repo.commit(state, branch="main").id: state for state in states}
        for _ in repo.database.refs.trim():
            pass
        age(objects, LONG)
        repo.expire(Keep(every=every), apply=True)
        if maintained:
            repo.maintain()
        return {version.id: versions[version.id] for version in repo.log()}


def data(objects: ObjectStore) -> set[str]:
    folders = (names.PACKS, names.ARCHIVES, names.SNAPSHOTS, names.HEADS)
    return {info.name for info in objects.list() if info.name.startswith(folders)}


def test_runs_come_to_an_end_while_expired_versions_stay_as_moves() -> None:
    """What stays builds on what is encoded again: a run must not repeat what did not help."""
    objects = Bucket()
    kept = expired_run(objects, 150, 50, maintained=False)
    for _ in range(3):
        with open_repo(objects) as repo:
            repo.gc(apply=True)
        age(objects, LONG)
    before = data(objects)
    with open_repo(objects) as repo:
        done = repo.gc(apply=True)
    assert (done.objects, done.folded, data(objects)) == ((), None, before)
    check_versions(objects, kept)


def test_an_idle_branch_frees_the_bytes_of_its_expired_moves() -> None:
    objects = Bucket()
    kept = expired_run(objects, 60, 20, maintained=True)
    before = sum(info.size for info in objects.list() if info.name in data(objects))
    for _ in range(4):
        age(objects, LONG)
        with open_repo(objects) as repo:
            repo.gc(apply=True)
    after = sum(info.size for info in objects.list() if info.name in data(objects))
    assert len(list(objects.list(names.HEADS))) == 8
    assert after < 0.6 * before
    check_versions(objects, kept)
