"""Tests of the store in a bucket, with the real client and a local Hub."""

from __future__ import annotations

import threading
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest

from casweights.stores.cached import CachedStore
from casweights.stores.hub.git import GitRefStore
from casweights.stores.hub.store import HubStore
from casweights.stores.readahead import ReadaheadStore
from casweights.stores.retry import RetryStore
from casweights.testing import StoreTests
from casweights.testing.hub import LocalHub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights.stores.base import ObjectStore

_numbers = count()


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        yield hub


@pytest.fixture
def again(hub: LocalHub) -> Callable[[], HubStore]:
    prefix = f"run/{next(_numbers)}"
    return lambda: HubStore("me/weights", prefix, endpoint=hub.url)


class TestHubStore(StoreTests):
    @pytest.fixture
    def again(self, again: Callable[[], HubStore]) -> Callable[[], ObjectStore]:
        return again

    @pytest.fixture
    def store(self, again: Callable[[], ObjectStore]) -> ObjectStore:
        return again()


def watchers() -> int:
    """Return the number of threads that watch uploads."""
    return sum(thread.name == "casweights-watch" for thread in threading.enumerate())


def test_a_batch_knows_locators_before_its_objects_are_visible(
    again: Callable[[], HubStore],
) -> None:
    store, data = again(), b"bytes of a pack" * 100
    with store.batch(["packs/a", "snapshots/b"]) as batch:
        batch.put("packs/a", [data])
        locator = store.locator("packs/a")
        assert locator is not None
        assert list(again().list()) == []
        batch.put("snapshots/b", [locator])
    reader = again()
    reader.use_locator("packs/a", reader.read("snapshots/b", 100))
    assert reader.get("packs/a") == data


def test_what_is_remembered_of_an_object_does_not_prove_that_it_is_there(
    again: Callable[[], HubStore],
) -> None:
    store = again()
    store.put("packs/a", [b"a"])
    store.put("packs/b", [b"b"])
    again().delete("packs/a")
    assert store.sizes(["packs/a", "packs/b"]).keys() >= {"packs/a"}
    assert store.present(["packs/a", "packs/b"]) == {"packs/b"}


def test_an_abandoned_batch_leaves_no_object_no_locator_and_no_thread(
    again: Callable[[], HubStore],
) -> None:
    store = again()
    for _ in range(2):
        batch = store.batch(["packs/a", "packs/b"])
        with suppress(KeyError), batch:
            batch.put("packs/a", [b"bytes"])
            raise KeyError("an error of the caller")
        assert batch.created == set()
        assert store.locator("packs/a") is None
        assert list(again().list()) == []
        assert watchers() == 0
    assert store.put("packs/a", [b"bytes"])
    assert watchers() == 0


class TestWholeBucket(StoreTests):
    @pytest.fixture
    def again(self, hub: LocalHub) -> Callable[[], ObjectStore]:
        bucket = f"me/bucket{next(_numbers)}"
        hub.create_bucket(bucket)
        return lambda: HubStore(bucket, endpoint=hub.url)

    @pytest.fixture
    def store(self, again: Callable[[], ObjectStore]) -> ObjectStore:
        return again()


class TestAsOpened(StoreTests):
    """The same tests with all wrappers that `casweights.open` adds."""

    @pytest.fixture
    def again(self, again: Callable[[], HubStore], tmp_path: Path) -> Callable[[], ObjectStore]:
        def open_store() -> ObjectStore:
            bucket = again()
            cached = CachedStore(RetryStore(bucket), tmp_path / "cache", 1 << 24, bucket.url)
            return ReadaheadStore(cached, window=128 << 20)

        return open_store

    @pytest.fixture
    def store(self, again: Callable[[], ObjectStore]) -> ObjectStore:
        return again()


class TestGitRefStore(StoreTests):
    @pytest.fixture
    def again(self, hub: LocalHub) -> Callable[[], ObjectStore]:
        where = f"datasets/me/refs{next(_numbers)}"
        GitRefStore(where, "hf://buckets/me/weights", "ab" * 16, endpoint=hub.url).create()
        return lambda: GitRefStore(where, "hf://buckets/me/weights", "ab" * 16, endpoint=hub.url)

    @pytest.fixture
    def store(self, again: Callable[[], ObjectStore]) -> ObjectStore:
        return again()
