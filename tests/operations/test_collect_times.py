"""Wrong times (H6) and switches in the hands of users (H7), as numbered in docs/design/033."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    UnsupportedError,
)
from casweights.format import names
from casweights.operations import collections
from casweights.stores.base import ObjectInfo, ObjectStore
from casweights.stores.local import LocalStore
from casweights.stores.wrapper import WrapperStore
from casweights.system import staging
from tests.ages import DAY, age
from tests.copying_bucket import Bucket
from tests.histories import check_versions
from tests.operations.collecting import (
    KINDS,
    LONG,
    abandon,
    collect,
    commit_all,
    make_objects,
    open_repo,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    return make_objects(request.param, tmp_path)


@pytest.fixture
def repo(objects: ObjectStore) -> Iterator[Repository]:
    with open_repo(objects, create=True) as repository:
        yield repository


def test_h6_objects_of_the_future_or_without_a_time_count_as_new(
    repo: Repository, objects: ObjectStore
) -> None:
    abandon(repo, objects)
    age(objects, -LONG - timedelta(minutes=30))  # now half an hour ahead of the clock
    assert repo.gc(apply=True).objects == ()
    age(objects, LONG + timedelta(minutes=30))
    collect(repo)
    age(objects, -DAY * 30)
    assert repo.gc(apply=True).finished == ()


class Dateless(WrapperStore):
    """A store that gives some objects no time, or one in the far future."""

    def __init__(self, inner: ObjectStore, created: int) -> None:
        super().__init__(inner)
        self._created = created

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in self.inner.list(prefix):
            is_data = info.name.startswith((names.SNAPSHOTS, names.PACKS, names.COLLECTIONS))
            is_odd = is_data and not info.name.endswith("look")
            yield ObjectInfo(info.name, info.size, self._created) if is_odd else info


@pytest.mark.parametrize("created", [0, -1, 10**18])
def test_h6_nothing_goes_whose_time_is_odd(
    repo: Repository, objects: ObjectStore, created: int
) -> None:
    lost = abandon(repo, objects)
    with open_repo(Dateless(objects, created)) as reader:
        assert reader.gc(apply=True).objects == ()
        collect(repo)
        age(objects, LONG)
        assert reader.gc(apply=True, finish_only=True).finished == ()
    check_versions(objects, lost)


@pytest.mark.parametrize("ahead", [-2, 2])
def test_h6_clocks_that_differ_stop_a_collection(
    repo: Repository, objects: ObjectStore, ahead: int
) -> None:
    abandon(repo, objects)
    now = collections.machine_time() + ahead * 3600
    with (
        patch.object(collections, "machine_time", return_value=now),
        pytest.raises(UnsupportedError, match="clock") as caught,
    ):
        repo.gc(apply=True)
    assert caught.value.code is ErrorCode.CLOCKS_DIFFER
    assert not list(objects.list(names.ASIDE))


class Timeless(WrapperStore):
    """A store that records no times."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (ObjectInfo(info.name, info.size) for info in self.inner.list(prefix))


def test_h6_a_store_without_times_collects_nothing(objects: ObjectStore) -> None:
    with open_repo(Timeless(objects), create=True) as repo:
        abandon(repo, objects)
        with pytest.raises(UnsupportedError, match="does not record when"):
            repo.gc(apply=True)
    assert not list(objects.list(names.ASIDE))


@pytest.mark.parametrize("grace", [timedelta(0), timedelta(hours=23), timedelta(days=-1)])
def test_h7_a_short_grace_time_is_refused_unless_it_is_confirmed_in_a_directory(
    repo: Repository, objects: ObjectStore, grace: timedelta
) -> None:
    abandon(repo, objects)
    for confirm in (None, "yes"):
        with pytest.raises(InvalidInputError, match="grace time"):
            repo.gc(apply=True, grace=grace, confirm=confirm)
    if isinstance(objects, Bucket) or grace < timedelta(0):
        with pytest.raises(InvalidInputError, match="at least 24 hours"):
            repo.gc(apply=True, grace=grace, confirm=repo.url)
    else:
        assert repo.gc(apply=True, grace=grace, confirm=repo.url).objects


def test_h7_a_short_grace_time_is_refused_while_somebody_writes(tmp_path: Path) -> None:
    """Even if it is confirmed; who only reads is no danger, and neither is who was killed."""
    objects = LocalStore(tmp_path)
    writer = open_repo(LocalStore(tmp_path), create=True)
    kept = commit_all(writer, "main")
    abandon(writer, objects)
    with open_repo(objects) as repo, open_repo(LocalStore(tmp_path)) as reader:
        clear = partial(repo.gc, grace=timedelta(0), confirm=repo.url)
        assert reader.verify().problems == ()
        assert clear().objects
        with pytest.raises(ConflictError, match="1 other open handle") as caught:
            clear(apply=True)
        assert caught.value.code is ErrorCode.BUSY
        writer.close()
        del writer
        (tmp_path / f"{staging.PREFIX}killed").mkdir()
        assert clear(apply=True).objects
    check_versions(objects, kept)
