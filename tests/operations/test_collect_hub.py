"""Collections in a bucket of the local Hub, which frees bytes without a name at once."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

import casweights
from casweights.config import Keep
from casweights.database import reflog
from casweights.errors import StoreError
from casweights.format import names
from casweights.operations import collections
from casweights.stores.hub.store import HubStore
from casweights.testing.hub import Conditions, LocalHub
from casweights.testing.states import assert_same_state
from tests.ages import DAY, GRACE
from tests.histories import check_versions
from tests.large_versions import packs_apart
from tests.operations.collecting import commit_all, open_repo, stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from tests.operations.collecting import Versions

FREEING = Conditions(free_after=0.0, token_lifetime=1e9)  # the clock is far ahead of the client's


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        hub.conditions = FREEING
        yield hub


@pytest.fixture
def bucket(hub: LocalHub) -> HubStore:
    return HubStore("me/weights", "run", endpoint=hub.url, clock_skew=0.0)


@pytest.fixture
def lost(hub: LocalHub, bucket: HubStore) -> Versions:
    """Versions that nothing names, long ago."""
    with open_repo(bucket, create=True) as repo:
        commit_all(repo, "main", 2)
        with packs_apart():
            found = commit_all(repo, "lost", 2, seed=50)
        repo.delete_branch("lost")
        repo.maintain()
    wait(hub, GRACE + DAY)
    return found


@pytest.fixture(autouse=True)
def machine(hub: LocalHub) -> Iterator[None]:
    """The clock of this machine goes with the Hub's."""
    with patch.object(collections, "machine_time", lambda: hub.clock.now() / 1e6):
        yield


def wait(hub: LocalHub, by: timedelta) -> None:
    hub.clock.advance(by.total_seconds())


def test_what_nothing_names_goes_without_moving_bytes(
    hub: LocalHub, bucket: HubStore, lost: Versions
) -> None:
    with open_repo(bucket) as repo:
        before = hub.counters().bytes_in
        done = repo.gc(apply=True)
        assert done.nbytes > 80_000
        assert hub.counters().bytes_in - before < done.nbytes / 3
        with open_repo(HubStore("me/weights", "run", endpoint=hub.url)) as reader:
            for version, state in lost.items():
                assert_same_state(reader.load(version), state)
        repo.undelete_collection(done.collection or "")
        check_versions(bucket, lost)
        wait(hub, GRACE + DAY)
        assert repo.gc(apply=True).objects
        wait(hub, GRACE + DAY)
        assert repo.gc(apply=True).finished
        assert not list(bucket.list(names.ASIDE))
        assert repo.verify().problems == ()


def test_a_copy_that_the_hub_refuses_deletes_nothing(
    hub: LocalHub, bucket: HubStore, lost: Versions
) -> None:
    """A batch whose first, middle or last line fails; the Hub carries out the others."""
    with open_repo(bucket) as repo:
        doomed = [found.name for found in repo.gc().objects]
        before = stored(bucket)
        for name in doomed:
            # The name alone is in the path of its copy and in that of its deletion.
            hub.conditions = replace(FREEING, failing_path=f"/{name}", failing_lines=3)
            with pytest.raises(StoreError, match="refused"):
                repo.gc(apply=True)
            hub.conditions = FREEING
            assert stored(bucket) >= before
            check_versions(bucket, lost)
        assert len(repo.gc(apply=True).objects) == len(doomed)
        with open_repo(bucket) as reader:
            assert reader.verify().problems == ()


def test_clocks_that_differ_stop_a_run(hub: LocalHub, bucket: HubStore, lost: Versions) -> None:
    with (
        patch.object(collections, "machine_time", time.time),
        open_repo(bucket) as repo,
        pytest.raises(casweights.UnsupportedError, match="clock"),
    ):
        repo.gc(apply=True)
    assert lost


def test_an_expired_run_is_folded_and_freed(
    hub: LocalHub, bucket: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 1)
    with open_repo(bucket, create=True) as repo:
        versions = commit_all(repo, "main", 30)
        repo.expire(Keep(every=10), apply=True)
        repo.maintain()
        kept = {version.id: versions[version.id] for version in repo.log()}
        before = sum(info.size for info in bucket.list())
        folded = []
        for _ in range(3):
            wait(hub, GRACE + DAY)
            folded.append(repo.gc(apply=True).folded)
            check_versions(bucket, kept)
        assert folded[0] is not None
        assert folded[0].chunks > 0
        wait(hub, GRACE + DAY)
        repo.gc(apply=True)
        assert not list(bucket.list(names.ASIDE))
        assert sum(info.size for info in bucket.list()) < before
    check_versions(bucket, kept)
