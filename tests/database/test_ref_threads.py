"""Threads that move one branch at the same time, through the real client of the Hub."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.errors import ConflictError
from casweights.stores.hub.store import HubStore
from casweights.testing.hub import Conditions, LocalHub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights import Repository

WRITERS, COMMITS = 4, 20


def commit_at_once(
    open_repo: Callable[[], Repository],
    commits: int,
    settle: Callable[[], None] = lambda: None,
) -> None:
    """Commit to one branch from several clients, and check that the log has each version once.

    Args:
        open_repo: Opens the store; called once by each client.
        commits: Number of versions.
        settle: Called when all clients have ended, before the check.
    """
    waiting = Queue[int]()
    for number in range(commits):
        waiting.put(number)

    def work(_: int) -> None:
        with open_repo() as repo:
            while True:
                try:
                    number = waiting.get_nowait()
                except Empty:
                    return
                while True:
                    try:
                        repo.commit({"number": number}, message=str(number))
                        break
                    except ConflictError as error:
                        assert error.snapshot is not None  # noqa: PT017

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, range(WRITERS)))
    settle()
    with open_repo() as repo:
        log = list(repo.log())
        assert sorted(int(snapshot.message) for snapshot in log) == list(range(commits))
        assert {repo.load(snapshot)["number"] for snapshot in log} == set(range(commits))


class TestLocalHub:
    """Threads run freely, without the scheduler of `tests.racing`."""

    @pytest.fixture
    def hub(self) -> Iterator[LocalHub]:
        with LocalHub() as hub:
            hub.create_bucket("me/weights")
            yield hub

    @pytest.mark.parametrize("lag", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
    def test_refs_in_the_bucket_lose_no_version(self, hub: LocalHub, lag: float) -> None:
        casweights.open(self.store(hub), create=True).close()
        hub.conditions = Conditions(listing_lag=lag)
        commit_at_once(
            lambda: casweights.open(self.store(hub), workers=1),
            COMMITS,
            settle=lambda: hub.clock.advance(lag),
        )

    def test_clocks_that_differ_displace_no_version(
        self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("casweights.database.reflog._YIELD_SECONDS", 0.3)
        casweights.open(self.store(hub), create=True).close()
        hub.conditions = Conditions(clock_skew=2.0)
        commit_at_once(lambda: casweights.open(self.store(hub), workers=1), 10)
        with casweights.open(self.store(hub)) as repo:
            assert repo.displaced() == {}

    def test_a_single_writer_makes_no_further_requests_where_clocks_differ(
        self, hub: LocalHub
    ) -> None:
        counts = []
        for skew in (0.0, 100.0):
            store = HubStore("me/weights", f"store{skew:g}", endpoint=hub.url)
            with casweights.open(store, create=True, workers=1) as repo:
                hub.conditions = Conditions(clock_skew=skew)
                repo.commit({"number": 0})
                hub.reset_counters()
                for number in range(1, 4):
                    repo.commit({"number": number})
                counts.append(hub.counters().requests)
        assert counts[0] == counts[1]
        assert counts[0]["tree"] == 2 * 3

    def test_refs_in_a_repository_lose_no_version(self, hub: LocalHub) -> None:
        config = StoreConfig(refs="datasets/me/refs")
        casweights.open(self.store(hub), create=True, config=config).close()
        commit_at_once(lambda: casweights.open(self.store(hub), workers=1), COMMITS)
        assert not [info for info in self.store(hub).list() if info.name.startswith("refs/")]

    def store(self, hub: LocalHub) -> HubStore:
        return HubStore("me/weights", "run", endpoint=hub.url)
