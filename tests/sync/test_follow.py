"""Following a branch: polling, threads, and the stats of syncs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import casweights
from casweights import ClosedError, ErrorCode, StoreError, Subscriber
from casweights.config import StoreConfig
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore
from tests.histories import CHUNK, history, step, weights
from tests.sync.models import Recorder, bits, commit_all, lose_connection, replica

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId


class Pauses(threading.Event):
    """An event whose `wait` returns at once: it records the pause and calls an action.

    Args:
        actions: The action for each pause; the event is set after the last one.
    """

    def __init__(self, *actions: object) -> None:
        super().__init__()
        self.actions = list(actions)
        self.pauses: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        action = self.actions.pop(0) if self.actions else self.set
        if callable(action):
            action()
        return self.is_set()


def test_following_sees_heads_and_not_every_version(repo: Repository) -> None:
    states = list(history(6, 0.01))
    versions = commit_all(repo, states[:2])

    def publish() -> None:
        versions.extend(commit_all(repo, states[len(versions) : len(versions) + 2]))

    live, seen = replica(states[0]), list[casweights.SnapshotId]()
    recorder = Recorder()
    stop = Pauses(None, publish, None, publish)
    with Subscriber(repo, reporter=recorder) as subscriber:

        def sync(head: SnapshotId) -> None:
            seen.append(head)
            assert subscriber.sync(live).snapshot == head

        subscriber.follow(sync, stop=stop)
    assert seen == [versions[1], versions[3], versions[5]]
    assert bits(live) == bits(states[5])
    assert [stats.lag for stats in recorder.syncs] == [0, 2, 2]
    assert [stats.previous for stats in recorder.syncs] == [None, versions[1], versions[3]]
    assert all(poll.seconds >= 0 for poll in recorder.polls)
    looks = [1, 1, 1, 3, 3, 3, 5, 5]  # a sync reads the head, too
    assert [poll.snapshot for poll in recorder.polls] == [versions[n] for n in looks]


def test_the_lag_is_known_for_heads_that_are_requested_by_id(repo: Repository) -> None:
    states = [{"w": weights(1, seed)} for seed in range(4)]
    commit_all(repo, states[:1])
    live = {"w": torch.zeros_like(states[0]["w"])}
    with Subscriber(repo) as subscriber:
        subscriber.sync(live)
        commit_all(repo, states[1:3])
        assert subscriber.sync(to=subscriber.head()).lag == 2
        commit_all(repo, states[3:])
        assert subscriber.sync().lag == 1


def test_pauses_grow_while_the_branch_does_not_move(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = commit_all(repo, [{"w": weights(1)}])[0]
    seen: list[SnapshotId] = []
    moved = []

    def move() -> None:
        moved.extend(commit_all(repo, [{"w": weights(1, 3)}]))

    stop = Pauses(*[None] * 5, move)
    clock = SimpleNamespace(monotonic=lambda: 12.0 * len(stop.pauses))
    monkeypatch.setattr("casweights.sync.branch_reader.time", clock)
    with Subscriber(repo) as subscriber:
        subscriber.follow(seen.append, stop=stop, interval=1.0, max_interval=4.0)
        assert stop.pauses == pytest.approx([1.0, 1.2, 2.4, 3.6, 4.0, 4.0, 1.0])
        assert seen == [version, *moved]
        subscriber.follow(seen.append, stop=stop)  # returns because the event is set
        assert len(seen) == 2


def test_following_waits_for_a_branch_that_does_not_exist_yet(repo: Repository) -> None:
    seen: list[SnapshotId] = []
    versions: list[SnapshotId] = []
    stop = Pauses(None, lambda: versions.extend(commit_all(repo, [{"w": weights(1)}], "later")))
    with Subscriber(repo, "later") as subscriber:
        subscriber.follow(seen.append, stop=stop)
    assert seen == versions
    assert len(seen) == 1


def test_following_ignores_a_branch_that_was_deleted(repo: Repository) -> None:
    version = commit_all(repo, [{"w": weights(1)}])[0]
    seen: list[SnapshotId] = []
    stop = Pauses(lambda: repo.delete_branch("main"), None)
    with Subscriber(repo) as subscriber:
        subscriber.follow(seen.append, stop=stop)
        assert subscriber.head() is None
    assert seen == [version]


def test_an_error_of_the_callback_ends_following(repo: Repository) -> None:
    commit_all(repo, [{"w": weights(1)}])

    def fail(head: SnapshotId) -> None:
        raise ZeroDivisionError

    with Subscriber(repo) as subscriber, pytest.raises(ZeroDivisionError):
        subscriber.follow(fail)


def test_an_unreachable_store_ends_following() -> None:
    store = FaultyStore(MemoryStore())
    with casweights.open(store, create=True) as repo, Subscriber(repo) as subscriber:
        version = commit_all(repo, [{"w": torch.ones(1)}])[0]
        seen: list[SnapshotId] = []

        def cut() -> None:
            store.unused = [Fault(call=len(store.calls) + 1, action=lose_connection)]

        with pytest.raises(StoreError) as caught:
            subscriber.follow(seen.append, stop=Pauses(cut))
    assert caught.value.code is ErrorCode.UNREACHABLE
    assert seen == [version]


def test_another_thread_can_stop_following(repo: Repository) -> None:
    commit_all(repo, [{"w": weights(1)}])
    stop, called = threading.Event(), threading.Event()
    with Subscriber(repo) as subscriber:
        thread = threading.Thread(
            target=subscriber.follow,
            args=(lambda _: called.set(),),
            kwargs={"stop": stop, "interval": 100.0},
        )
        thread.start()
        assert called.wait(60)
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_closing_the_subscriber_ends_following_without_an_error(repo: Repository) -> None:
    commit_all(repo, [{"w": weights(1)}])
    with Subscriber(repo) as subscriber:
        subscriber.follow(lambda _: subscriber.close(), interval=100.0)  # does not pause
        with pytest.raises(ClosedError):
            subscriber.follow(print)


def test_closing_ends_a_pause_of_following(repo: Repository) -> None:
    commit_all(repo, [{"w": weights(1)}])
    called, ended = threading.Event(), threading.Event()

    def follow() -> None:
        subscriber.follow(lambda _: called.set(), interval=100.0)
        ended.set()

    with Subscriber(repo) as subscriber:
        thread = threading.Thread(target=follow)
        thread.start()
        assert called.wait(60)
    assert ended.wait(60)
    thread.join()


@pytest.mark.parametrize("where", ["pause", "look", "callback"])
@pytest.mark.parametrize("what", ["subscriber", "store"])
def test_closing_ends_following_at_any_stage(
    monkeypatch: pytest.MonkeyPatch, where: str, what: str
) -> None:
    with casweights.open(MemoryStore(), create=True) as repo, Subscriber(repo) as subscriber:
        commit_all(repo, [{"w": weights(1)}])
        close = subscriber.close if what == "subscriber" else repo.close
        head = subscriber._branch.look

        def look() -> Any:
            close()
            return head()

        def take(_: SnapshotId) -> None:
            if where == "callback":
                close()
                subscriber.prefetch({"w": weights(1)})

        if where == "look":
            monkeypatch.setattr(subscriber._branch, "look", look)
        subscriber.follow(take, stop=Pauses(close if where == "pause" else None, None))


def test_the_error_of_another_closed_handle_is_raised(repo: Repository) -> None:
    commit_all(repo, [{"w": weights(1)}])
    other = Subscriber(repo)
    other.close()
    with Subscriber(repo) as subscriber, pytest.raises(ClosedError):
        subscriber.follow(lambda _: other.prefetch())


def test_lag_counts_the_moves_of_the_branch(repo: Repository) -> None:
    states = list(history(7, 0.01))
    live, recorder = replica(states[0]), Recorder()
    with Subscriber(repo, reporter=recorder) as subscriber:
        commit_all(repo, states[:1])
        subscriber.sync(live)
        versions = commit_all(repo, states[1:4])
        subscriber.prefetch()
        versions += commit_all(repo, states[4:5])
        subscriber.sync()  # the prefetched version
        subscriber.sync()
        subscriber.sync()
        subscriber.sync(to=versions[0])  # not by the branch: no position is known
        subscriber.sync()
        commit_all(repo, states[5:])
        subscriber.sync()
        live["w"].zero_()  # now holds no known version
        subscriber.sync()
    assert [stats.lag for stats in recorder.syncs] == [0, 3, 1, 0, 0, 0, 2, 0]
    assert [stats.previous is None for stats in recorder.syncs] == [True, *[False] * 6, True]
    for stats in recorder.syncs:
        spent = (stats.download_seconds, stats.decode_seconds, stats.verify_seconds)
        assert min(*spent, stats.apply_seconds) >= 0
        assert (stats.fetched_bytes > 0) == (stats.changed_elements > 0)
        assert (stats.apply_seconds > 0) >= (stats.changed_elements > 0)


def test_replicas_in_threads_share_one_repository() -> None:
    """All of them find chains in one index, which grows at the same time."""
    config = StoreConfig(chunk_size=CHUNK)
    with casweights.open(MemoryStore(), create=True, config=config, workers=2) as repo:
        states = list(history(12, 0.01, chunks=3))
        versions = commit_all(repo, states[:6])
        fresh = casweights.open(repo.database.store, workers=2)

        def follow(seed: int) -> None:
            live = replica(states[0], seed)
            with Subscriber(fresh, memory=seed % 2 << 20) as subscriber:
                for n in range(24):
                    to = (n * (2 * seed + 1)) % len(versions)
                    subscriber.sync(live, to=versions[to])
                    assert bits(live) == bits(states[to])

        def publish() -> None:
            for state in states[6:]:
                versions.extend(commit_all(repo, [state]))

        with fresh, ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(publish), *(pool.submit(follow, n) for n in range(3))]:
                future.result()


def test_a_model_may_be_used_while_a_version_is_prefetched(repo: Repository) -> None:
    """One thread reads and syncs the model, while another prefetches the next version."""
    tensor = weights(4)
    states = [{"w": tensor}]
    for n in range(8):
        states.append({"w": step(states[-1]["w"], 0.02, n)})
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber, ThreadPoolExecutor(1) as pool:
        subscriber.sync(live, to=versions[0])
        for n in range(1, 9):
            future = pool.submit(subscriber.prefetch, to=versions[n])
            reads = 0
            while reads < 3 or not future.done():
                assert torch.equal(live["w"], states[n - 1]["w"])
                assert subscriber.version == versions[n - 1]
                reads += 1
            future.result()
            subscriber.sync(to=versions[n], expect=versions[n - 1])
        assert bits(live) == bits(states[8])
