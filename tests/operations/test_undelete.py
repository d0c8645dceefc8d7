"""Versions that nothing names come back under a name, wherever their parts lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import pytest

from casweights.config import Keep
from casweights.errors import (
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.format import names
from casweights.operations import archiving, collections
from casweights.stores.hub.store import HubStore
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.testing.hub import Conditions, LocalHub
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import check_versions
from tests.large_versions import packs_apart
from tests.operations.collecting import LONG, InPlace, collect, commit_all, open_repo, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore
    from tests.operations.collecting import Versions


class Place(NamedTuple):
    """An open store with versions that nothing names, old enough to be collected.

    Attributes:
        repo: The store, open.
        objects: Its objects.
        wait: Lets the grace time pass.
        kept: The versions of a branch.
        lost: The versions that nothing names.
    """

    repo: Repository
    objects: ObjectStore
    wait: Callable[[], None]
    kept: Versions
    lost: Versions

    @property
    def last(self) -> SnapshotId:
        return list(self.lost)[-1]

    def outlive(self) -> None:
        """Let collections finish and begin until nothing that can go is there."""
        for _ in range(3):
            self.wait()
            self.repo.gc(apply=True)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        hub.conditions = Conditions(free_after=0.0, token_lifetime=1e9)
        with patch.object(collections, "machine_time", lambda: hub.clock.now() / 1e6):
            yield hub


@pytest.fixture(params=["directory", "memory", "bucket", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    objects: ObjectStore = LocalStore(tmp_path / "store")
    if request.param == "hub":
        hub: LocalHub = request.getfixturevalue("hub")
        objects = HubStore("me/weights", "run", endpoint=hub.url, clock_skew=0.0)
        yield from filled(objects, lambda: hub.clock.advance(LONG.total_seconds()))
        return
    if request.param != "directory":
        objects = Bucket() if request.param == "bucket" else MemoryStore()
    yield from filled(objects, lambda: age(objects, LONG))


def filled(objects: ObjectStore, wait: Callable[[], None]) -> Iterator[Place]:
    with open_repo(objects, create=True) as repo, packs_apart():
        kept = commit_all(repo, "main", 2)
        lost = commit_all(repo, "lost", 3, seed=50)
        repo.delete_branch("lost")
        repo.maintain()  # in a bucket, the versions are moves of the branch until then
        wait()
        yield Place(repo, objects, wait, kept, lost)


@pytest.mark.parametrize("prefix", [12, 64])
def test_a_version_comes_back_with_its_bytes_and_its_parents(place: Place, prefix: int) -> None:
    collect(place.repo)
    assert place.repo.undelete(str(place.last)[:prefix], "found") == place.last
    assert place.repo.branches()["found"] == place.last
    assert [version.id for version in place.repo.log("found")] == list(place.lost)[::-1]
    check_versions(InPlace(place.objects), place.lost | place.kept)
    place.outlive()
    assert not list(place.objects.list(names.ASIDE))
    check_versions(place.objects, place.lost | place.kept)


def test_what_a_version_needs_may_lie_in_several_collections(place: Place) -> None:
    dead = {found.name for found in place.repo.gc().objects}
    own = {names.snapshot_name(version) for version in place.lost} & dead
    for version in reversed(place.lost):  # a version goes before its parents and its packs
        place.repo.gc(apply=True, only={names.snapshot_name(version)})
    place.repo.gc(apply=True)
    assert len(place.repo.gc().pending) > len(own) == 3
    place.repo.undelete(place.last, "found")
    check_versions(InPlace(place.objects), place.lost | place.kept)
    place.outlive()
    check_versions(place.objects, place.lost | place.kept)


def test_a_version_in_an_archive_comes_back(place: Place) -> None:
    lost = set(map(names.snapshot_name, place.lost))
    infos = [info for info in place.objects.list(names.SNAPSHOTS) if info.name in lost]
    archiving.archive(place.repo.database, infos)
    place.wait()
    assert any(f.name.startswith(names.ARCHIVES) for f in place.repo.gc(apply=True).objects)
    place.repo.undelete(str(place.last)[:10], "found")
    check_versions(InPlace(place.objects), place.lost)
    place.outlive()
    check_versions(place.objects, place.lost | place.kept)


def test_only_what_the_version_needs_comes_back(place: Place) -> None:
    collect(place.repo)
    first, second, _ = place.lost
    place.repo.undelete(second, "found")
    check_versions(InPlace(place.objects), {second: place.lost[second]})
    place.outlive()
    check_versions(place.objects, place.kept | {v: place.lost[v] for v in (first, second)})
    with pytest.raises(NotFoundError):
        place.repo.undelete(place.last, "more")


def test_a_version_in_its_place_only_gets_a_name(place: Place) -> None:
    before = stored(place.objects)
    place.repo.undelete(place.last, "found")
    new = stored(place.objects) - before
    assert [name.split("/")[:3] for name in new] == [["refs", "heads", "found"]]


@pytest.mark.parametrize("collected", [False, True])
def test_a_version_that_expired_is_in_histories_again(place: Place, collected: bool) -> None:
    place.repo.undelete(place.last, "found")
    place.repo.expire(Keep(last=1), apply=True)
    first, second, third = place.lost
    assert [version.id for version in place.repo.log("found")] == [third]
    if collected:
        place.wait()
        collect(place.repo)
    assert place.repo.database.snapshots.archives.stands(second) != collected
    place.repo.undelete(str(second), "tags/second")
    assert place.repo.tags() == {"second": second}
    assert [version.id for version in place.repo.log("found")] == [third, second]
    place.outlive()
    check_versions(place.objects, {v: place.lost[v] for v in (second, third)})
    assert first not in [version.id for version in place.repo.log("second")]


def test_a_deleted_branch_whose_version_lies_aside_comes_back(place: Place) -> None:
    collect(place.repo)
    assert place.repo.undelete("lost") == place.last
    check_versions(InPlace(place.objects), place.lost | place.kept)
    place.outlive()
    check_versions(place.objects, place.lost | place.kept)


@pytest.mark.parametrize("name", ["again", "tags/again"])
def test_a_deleted_branch_may_come_back_as_another_one_or_as_a_tag(place: Place, name: str) -> None:
    collect(place.repo)
    assert place.repo.undelete("lost", name) == place.last
    named = place.repo.tags() if name.startswith("tags/") else place.repo.branches()
    assert named["again"] == place.last
    check_versions(InPlace(place.objects), place.lost | place.kept)
    place.outlive()
    check_versions(place.objects, place.lost | place.kept)


def test_a_version_without_a_name_stays_where_it_is(place: Place) -> None:
    collect(place.repo)
    before = stored(place.objects)
    with pytest.raises(InvalidInputError, match=r"needs a name.*--as NAME"):
        place.repo.undelete(place.last)
    with pytest.raises(InvalidInputError, match="not a valid name"):
        place.repo.undelete(place.last, "a b")
    assert stored(place.objects) == before
    with pytest.raises(ConflictError, match="exists already"):
        place.repo.undelete(place.last, "main")


def test_what_is_gone_for_good_is_said_to_be(place: Place) -> None:
    collect(place.repo)
    place.wait()
    place.repo.gc(apply=True)
    for given in (place.last, str(place.last)):
        for name in ("found", None):
            with (
                open_repo(place.objects) as other,
                pytest.raises(NotFoundError, match="no snapshot") as caught,
            ):
                other.undelete(given, name)
            assert caught.value.code is ErrorCode.SNAPSHOT_NOT_FOUND
    with pytest.raises(NotFoundError, match="no snapshot"):
        place.repo.undelete(str(place.last)[:8], "found")
    with pytest.raises(NotFoundError) as caught:
        place.repo.undelete("lost")
    assert "deleted for good" in caught.value.__notes__[0]
    assert set(place.repo.branches()) == {"main"}


@pytest.mark.parametrize("folder", [names.SNAPSHOTS, names.PACKS])
def test_nothing_comes_back_of_a_version_that_lacks_something(place: Place, folder: str) -> None:
    collect(place.repo)
    aside = [info.name for info in place.objects.list(names.ASIDE) if f"/{folder}" in info.name]
    gone = next(name for name in aside if not name.endswith(str(place.last)))
    place.objects.delete(gone)
    before = stored(place.objects)
    with pytest.raises(IntegrityError, match=r"not in the store|no (frame|pack)"):
        place.repo.undelete(place.last, "found")
    assert stored(place.objects) == before
    assert "found" not in place.repo.branches()
