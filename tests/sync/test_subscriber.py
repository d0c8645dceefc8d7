"""Replicas that follow a branch: the chains they use, the bytes they read, and their writes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import (
    ClosedError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
    StaleError,
    Subscriber,
)
from casweights.config import StoreConfig
from casweights.content.spans import stored_tensors
from casweights.stores.memory import MemoryStore
from casweights.sync.live import LiveTensor
from casweights.testing import CountingStore
from casweights.testing.faults import FaultyStore
from tests.histories import CHUNK, ELEMENTS, history, step, weights
from tests.large_versions import packs_apart
from tests.sync.models import Recorder, bits, commit_all, flip, places, replica

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.sync.changes import ElementChange
    from casweights.sync.subscriber import Verify
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=CHUNK)


def whole_size(state: State) -> int:
    """The stored bytes of a state in a store of its own."""
    objects = CountingStore(MemoryStore())
    with packs_apart(), casweights.open(objects, create=True, config=CONFIG, workers=2) as repo:
        repo.commit(state)
    return sum(nbytes for name, nbytes in objects.writes if name.startswith("packs/"))


def cheapest(repo: Repository, old: SnapshotId | None, new: SnapshotId) -> int:
    """The stored bytes of the cheapest chains from one version to another."""
    chunks = {
        version: {
            chunk
            for file in repo.snapshot(version).files
            for stored in stored_tensors(file, CHUNK)
            for chunk in stored.chunks
        }
        for version in (old, new)
        if version is not None
    }
    repo.database.index.load()
    finder = repo.database.index.finder(chunks.get(old, set()) if old else set())
    paths = [finder.chain(chunk) for chunk in chunks[new]]
    return sum(path.nbytes for path in paths if path is not None)


def test_a_replica_follows_a_run_step_by_step(repo: Repository) -> None:
    states = list(history(6, 0.01, chunks=3))
    live = {"w": torch.zeros_like(states[0]["w"])}
    where, recorder = places(live), Recorder()
    with Subscriber(repo, reporter=recorder) as subscriber:
        assert subscriber.version is None
        assert subscriber.head() is None
        for state in states:
            version = repo.commit(state).id
            stats = subscriber.sync(live)
            assert bits(live) == bits(state)
            assert subscriber.version == stats.snapshot == version == subscriber.head()
    assert places(live) == where
    assert recorder.syncs[-1] == stats
    for (old, new), stats in zip(pairwise(states), recorder.syncs[1:], strict=True):
        moved = int((old["w"].view(torch.int16) != new["w"].view(torch.int16)).sum())
        assert stats.changed_elements == moved  # so nothing else is written
        assert stats.lag == 1
        assert stats.elements == 3 * ELEMENTS
        assert stats.total_bytes == 3 * CHUNK
        assert stats.fetched_bytes < stats.total_bytes / 50
    assert [stats.previous for stats in recorder.syncs] == [
        None,
        *(stats.snapshot for stats in recorder.syncs[:-1]),
    ]
    assert [poll.snapshot for poll in recorder.polls if poll.snapshot] == [
        version for stats in recorder.syncs for version in (stats.snapshot,) * 2
    ]


@pytest.mark.usefixtures("packs_apart", "frames_alone")
def test_fetched_bytes_count_the_bytes_read(repo: Repository, objects: CountingStore) -> None:
    versions = commit_all(repo, list(history(8, 0.01, chunks=3)))
    live = {"w": weights(3, seed=5)}
    with Subscriber(repo) as subscriber:
        for to in (versions[5], versions[0], versions[7]):
            objects.reset()
            assert subscriber.sync(live, to=to).fetched_bytes == objects.read_bytes("packs/") > 0
        objects.reset()
        assert subscriber.sync(to=versions[7]).fetched_bytes == 0
        assert objects.reads == []


def test_only_elements_that_differ_are_written(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = list(history(2, 0.01, chunks=4))
    states[1]["w"][ELEMENTS : 3 * ELEMENTS] = states[0]["w"][ELEMENTS : 3 * ELEMENTS]
    versions = commit_all(repo, states)
    written: list[int] = []
    exchange = LiveTensor.exchange

    def note(live: LiveTensor, number: int, change: ElementChange) -> None:
        written.append(number)
        exchange(live, number, change)

    monkeypatch.setattr(LiveTensor, "exchange", note)
    live = {"w": states[0]["w"].clone()}
    with Subscriber(repo) as subscriber:
        assert subscriber.sync(live, to=versions[0]).changed_elements == 0
        assert written == []
        stats = subscriber.sync(to=versions[1])
    assert sorted(written) == [0, 3]
    assert stats.changed_elements == int((states[0]["w"] != states[1]["w"]).sum())


@pytest.mark.parametrize("verify", ["full", "patch"])
def test_every_chain_is_the_cheapest_one(repo: Repository, verify: Verify) -> None:
    """For missed versions, back and forth, and to another branch."""
    states = list(history(9, 0.01, chunks=3))
    versions = commit_all(repo, states)
    repo.branch("other", versions[4])
    tensor = states[4]["w"]
    for seed in range(3):
        tensor = step(tensor, 0.02, 100 + seed)
        states.append({"w": tensor})
        versions.append(repo.commit(states[-1], branch="other").id)
    live = {"w": torch.zeros_like(tensor)}
    at = None
    with Subscriber(repo, verify=verify) as subscriber:
        for n in (2, 3, 8, 11, 10, 0, 9, 7):
            stats = subscriber.sync(live, to=versions[n])
            assert bits(live) == bits(states[n])
            assert stats.fetched_bytes == cheapest(repo, at, versions[n])
            assert (stats.previous, stats.lag) == (at, 0)
            at = versions[n]


def test_the_content_of_a_target_is_known_by_its_bits(repo: Repository) -> None:
    """A model that was loaded by other means needs no more bytes than one that was synced."""
    states = list(history(6, 0.01, chunks=3))
    versions = commit_all(repo, states)
    direct = cheapest(repo, versions[2], versions[5])
    twin = {"w": states[2]["w"].clone()}
    for live in (twin, torch.nn.ParameterDict(twin)):
        live["w"].data = states[2]["w"].clone()
        with Subscriber(repo) as subscriber:
            stats = subscriber.sync(live)
        assert bits(live) == bits(states[5])
        assert stats.fetched_bytes == direct < stats.total_bytes / 20


def test_a_late_joiner_reads_little_more_than_a_version_by_itself(repo: Repository) -> None:
    states = list(history(150, 0.01, chunks=2))
    commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        stats = subscriber.sync(live)
    assert bits(live) == bits(states[-1])
    assert stats.fetched_bytes <= 1.5 * whole_size(states[-1])


def test_chunks_elsewhere_in_the_target_are_not_fetched(repo: Repository) -> None:
    a, b = weights(2, 1), weights(2, 2)
    versions = commit_all(repo, [{"a": a, "b": b}, {"a": b, "b": a}])
    live = replica({"a": a, "b": b})
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        assert subscriber.sync(live, to=versions[1]).fetched_bytes == 0
    assert bits(live) == bits({"a": b, "b": a})


@pytest.fixture
def calls() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def watched(calls: FaultyStore) -> Iterator[Repository]:
    """A repository that records all calls to its store."""
    with casweights.open(calls, create=True, config=CONFIG, workers=2) as repo:
        yield repo


def test_a_sync_after_a_prefetch_sends_no_request(watched: Repository, calls: FaultyStore) -> None:
    states = list(history(4, 0.01, chunks=3))
    versions = commit_all(watched, states)
    live = replica(states[0])
    with Subscriber(watched) as subscriber:
        before = bits(live)
        assert subscriber.prefetch(live) == versions[3]
        assert bits(live) == before
        assert subscriber.version is None
        calls.calls.clear()
        assert subscriber.sync().snapshot == versions[3]
        assert bits(live) == bits(states[3])
        for to in (versions[1], str(versions[2]), str(versions[0]).upper()):
            version = subscriber.prefetch(to=to)
            calls.calls.clear()
            assert subscriber.sync(to=to).snapshot == version
            assert calls.calls == []
        assert bits(live) == bits(states[0])


def test_a_repeated_prefetch_reads_only_the_head(watched: Repository, calls: FaultyStore) -> None:
    versions = commit_all(watched, list(history(3, 0.01)))
    live = {"w": weights(2)}
    with Subscriber(watched) as subscriber:
        subscriber.prefetch(live)
        calls.calls.clear()
        assert subscriber.prefetch() == versions[2]
        assert {name.partition("/")[0] for _, name in calls.calls} == {"refs"}
        watched.commit({"w": weights(2, seed=8)})
        assert subscriber.sync().snapshot == versions[2]  # the prefetched version
        head = subscriber.prefetch()
        assert head not in versions
        assert subscriber.sync().snapshot == head
    assert bits(live) == bits({"w": weights(2, seed=8)})


def test_a_sync_to_another_version_drops_the_prefetched_one(repo: Repository) -> None:
    states = list(history(4, 0.01))
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        subscriber.prefetch(to=versions[1])
        assert subscriber.sync(to=versions[2]).snapshot == versions[2]
        assert bits(live) == bits(states[2])
        assert subscriber.sync().snapshot == versions[3]  # the prefetched version is dropped
        assert bits(live) == bits(states[3])


@pytest.mark.usefixtures("packs_apart", "frames_alone")
@pytest.mark.parametrize("memory", [0, 1, 3000, 1 << 20])
def test_changes_beyond_the_memory_limit_are_fetched_late(
    repo: Repository, objects: CountingStore, memory: int
) -> None:
    states = list(history(4, 0.01, chunks=12))
    versions = commit_all(repo, states)
    live = {"w": states[0]["w"].clone()}
    with Subscriber(repo, memory=memory) as subscriber:
        subscriber.prefetch(live, to=versions[0])
        subscriber.sync()
        objects.reset()
        subscriber.prefetch(to=versions[3])
        prefetched = objects.read_bytes("packs/")
        objects.reset()
        stats = subscriber.sync()
        late = objects.read_bytes("packs/")
    assert bits(live) == bits(states[3])
    assert prefetched + late == stats.fetched_bytes == cheapest(repo, versions[0], versions[3])
    assert (prefetched > 0) == (memory > 0)
    assert (late > 0) == (memory < 1 << 20)
    assert stats.changed_elements == int((states[0]["w"] != states[3]["w"]).sum())


def test_a_write_that_torch_counts_drops_a_prefetch(repo: Repository) -> None:
    states = list(history(3, 0.01, chunks=3))
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        subscriber.prefetch(to=versions[1])
        live["w"][7] += 1
        live["w"][-1] = 3
        assert subscriber.sync(to=versions[1]).previous is None
        assert bits(live) == bits(states[1])
        live["w"].zero_()
        assert subscriber.sync(to=versions[1]).changed_elements > 2 * ELEMENTS
        assert bits(live) == bits(states[1])


def test_another_target_drops_a_prefetch(repo: Repository) -> None:
    states = list(history(3, 0.01))
    versions = commit_all(repo, states)
    first, second = replica(states[0], 1), replica(states[0], 2)
    with Subscriber(repo) as subscriber:
        subscriber.sync(first, to=versions[0])
        subscriber.prefetch(to=versions[2])
        with pytest.raises(StaleError):
            subscriber.sync(second, expect=versions[0])
        stats = subscriber.sync(second, to=versions[2])
        assert stats.previous is None
        assert bits(second) == bits(states[2])
        assert bits(first) == bits(states[0])
        assert subscriber.sync(first, to=versions[1]).previous is None
        assert bits(first) == bits(states[1])
        assert bits(second) == bits(states[2])


def test_renamed_tensors_are_another_target(repo: Repository) -> None:
    states = [{"a": weights(1, n), "b": weights(1, n + 50)} for n in range(2)]
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        subscriber.prefetch(to=versions[1])
        swapped = {"a": live["b"], "b": live["a"]}
        assert subscriber.sync(swapped, to=versions[1]).previous is None
    assert bits(swapped) == bits(states[1])


def test_sync_refuses_a_target_that_does_not_hold_the_expected_version(repo: Repository) -> None:
    states = list(history(3, 0.01))
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:

        def assert_stale(expected: SnapshotId | str) -> None:
            before = bits(live)
            with pytest.raises(StaleError) as caught:
                subscriber.sync(live, expect=expected)
            assert caught.value.code is ErrorCode.STALE
            assert bits(live) == before

        assert_stale(versions[0])
        subscriber.sync(live, to=versions[0])
        assert_stale(versions[1])
        assert_stale("main")
        subscriber.sync(to=versions[1], expect=versions[0])
        subscriber.sync(to="main", expect=str(versions[1]))
        assert subscriber.sync(expect="main").snapshot == versions[2]
        live["w"][0] = 1
        assert_stale("main")
    assert bits(live) != bits(states[2])


@pytest.mark.parametrize("verify", ["full", "patch"])
def test_hidden_writes_are_detected_where_a_chunk_changes(repo: Repository, verify: Verify) -> None:
    """A chunk rebuilt from a wrong base has the wrong hash: then the whole chunk is read."""
    states = list(history(2, 0.01, chunks=3))
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo, verify=verify) as subscriber:
        subscriber.sync(live, to=versions[0])
        same = torch.nonzero(states[0]["w"] == states[1]["w"]).flatten()
        flip(live["w"], int(same[0]))
        live["w"].data[same[-1]] = 7.0
        stats = subscriber.sync(to=versions[1])
        assert (bits(live) == bits(states[1])) == (verify == "full")
        small = stats.fetched_bytes == cheapest(repo, versions[0], versions[1])
        assert small == (verify == "patch")  # which does not hash
        if verify == "patch":
            with pytest.raises(StaleError):
                subscriber.verify()
            assert subscriber.version is None
            subscriber.sync(to=versions[1])
            assert bits(live) == bits(states[1])
        subscriber.verify()


@pytest.mark.parametrize("verify", ["full", "patch"])
def test_verify_detects_hidden_writes_and_a_sync_repairs_them(
    repo: Repository, verify: Verify
) -> None:
    states = [{"v": weights(1, 3), **state} for state in history(2, 0.01, chunks=2)]
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo, verify=verify) as subscriber:
        subscriber.sync(live, to=versions[1])
        subscriber.verify()
        flip(live["v"], 77)
        assert subscriber.sync(to=versions[1]).changed_elements == 0  # undetected
        subscriber.prefetch(to=versions[0])
        with pytest.raises(StaleError, match="'v'") as caught:
            subscriber.verify()
        assert caught.value.code is ErrorCode.STALE
        assert subscriber.version is None
        subscriber.sync(to=versions[0])  # was prefetched, but is fetched again
        assert bits(live) == bits(states[0])
        flip(live["v"], 77)
        with pytest.raises(StaleError):
            subscriber.verify()
        assert subscriber.sync(to=versions[0]).changed_elements == 1
        subscriber.verify()
        assert subscriber.version == versions[0]


def test_verify_is_refused_without_a_version(repo: Repository) -> None:
    (version,) = commit_all(repo, [{"w": weights(1)}])
    with Subscriber(repo) as subscriber:
        with pytest.raises(InvalidInputError, match="no target yet"):
            subscriber.verify()
        subscriber.prefetch({"w": weights(1)}, to=version)
        with pytest.raises(StaleError, match="no known version to compare with"):
            subscriber.verify()


def test_wrong_arguments_of_a_subscriber_are_refused(repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="must be one of full, patch"):
        Subscriber(repo, verify="some")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="memory must be at least 0 bytes, got -1"):
        Subscriber(repo, memory=-1)
    with pytest.raises(NotFoundError) as missing:
        Subscriber(tmp_path / "nothing")
    assert missing.value.code is ErrorCode.STORE_NOT_FOUND
    live = {"w": weights(1)}
    with Subscriber(repo, "later") as subscriber:
        with pytest.raises(InvalidInputError, match="no target yet"):
            subscriber.sync()
        with pytest.raises(InvalidInputError, match="got list"):
            subscriber.sync([weights(1)])  # type: ignore[arg-type]
        with pytest.raises(NotFoundError, match="'later'"):
            subscriber.sync(live)
        with pytest.raises(NotFoundError):
            subscriber.sync(to="0" * 64)
        assert bits(live) == bits({"w": weights(1)})


def test_a_subscriber_opens_a_store_by_its_path(tmp_path: Path) -> None:
    states = list(history(2, 0.01))
    with casweights.open(tmp_path, create=True, config=CONFIG) as repo:
        commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(str(tmp_path)) as subscriber:
        assert repr(subscriber) == f"Subscriber({str(tmp_path)!r}, 'main')"
        subscriber.sync(live, to="main~1")
        assert bits(live) == bits(states[0])
        subscriber.sync(live)
        assert bits(live) == bits(states[1])
    with pytest.raises(ClosedError, match="Subscriber was closed"):
        subscriber.sync(replica(states[0]))


def test_the_callers_store_stays_open(repo: Repository) -> None:
    (version,) = commit_all(repo, [{"w": weights(2)}])
    for _ in range(2):
        with Subscriber(repo) as subscriber:
            assert subscriber.sync({"w": weights(2, 1)}).snapshot == version
