"""The store in a bucket, with the real client and a local Hub."""

from __future__ import annotations

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
    """With everything around it that `casweights.open` puts there."""

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
