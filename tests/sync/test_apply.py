"""Syncs that fail: the target is unchanged, or known to hold no version."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest
import torch

import casweights
from casweights import (
    ErrorCode,
    IntegrityError,
    NotFoundError,
    StaleError,
    StoreError,
    Subscriber,
)
from casweights.config import StoreConfig
from casweights.stores.memory import MemoryStore
from casweights.sync.live import LiveTensor
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from tests.histories import CHUNK, ELEMENTS, history, step, weights
from tests.sync.models import bits, commit_all, lose_connection, replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights import Repository
    from casweights.sync.changes import ElementChange
    from casweights.sync.subscriber import Verify
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=CHUNK)
CHUNKS = 5


@pytest.fixture
def calls() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def repo(calls: FaultyStore) -> Iterator[Repository]:
    """A repository whose store can be made to fail."""
    with casweights.open(calls, create=True, config=CONFIG, workers=2) as repository:
        yield repository


@pytest.fixture
def states() -> list[State]:
    """Two states: two tensors differ in few elements, one in all."""
    old = {"a": weights(CHUNKS - 3), "b": weights(2, 1), "c": weights(1, 2)}
    new = {"a": step(old["a"], 0.01, 3), "b": step(old["b"], 0.01, 4), "c": weights(1, 5)}
    return [old, new]


def break_exchange(
    patch: pytest.MonkeyPatch, calls: set[int], error: BaseException, *, after: bool = False
) -> list[int]:
    """Make some calls that write a chunk fail; the returned list has one item per call.

    Args:
        patch: Pytest's monkeypatch.
        calls: Numbers of the calls that fail, from 1.
        error: The error to raise.
        after: Whether the calls write before they fail.
    """
    exchange, seen = LiveTensor.exchange, []

    def fail(live: LiveTensor, number: int, change: ElementChange) -> None:
        seen.append(number)
        broken = len(seen) in calls
        if after or not broken:
            exchange(live, number, change)
        if broken:
            raise error

    patch.setattr(LiveTensor, "exchange", fail)
    return seen


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
def test_a_failed_write_is_undone_with_all_earlier_ones(
    repo: Repository, states: list[State], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        for k in range(1, CHUNKS + 1):
            with monkeypatch.context() as patch:
                seen = break_exchange(patch, {k}, error)
                with pytest.raises(type(error)) as caught:
                    subscriber.sync(to=versions[1])
                assert caught.value is error
                assert len(seen) >= k
            assert bits(live) == bits(states[0])
            assert subscriber.version == versions[0]
            subscriber.verify()
            assert subscriber.sync(to=versions[0], expect=versions[0]).changed_elements == 0
        with monkeypatch.context() as patch:
            seen = break_exchange(patch, {CHUNKS + 1}, error)
            subscriber.sync(to=versions[1], expect=versions[0])
            assert len(seen) == CHUNKS  # so each call has failed once
    assert bits(live) == bits(states[1])


def test_a_failed_write_to_tensors_that_share_memory_is_undone(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views(tensor: torch.Tensor) -> State:
        return {"first": tensor[: 2 * ELEMENTS], "all": tensor, "last": tensor[ELEMENTS:]}

    old = weights(3)
    states = [views(old), views(step(old, 0.01, 1))]
    with casweights.open(repo.database.store, workers=1) as single:
        versions = commit_all(single, states)
        live = views(weights(3, 7))
        with Subscriber(single) as subscriber:
            subscriber.sync(live, to=versions[0])
            for k in range(1, 8):
                with monkeypatch.context() as patch:
                    break_exchange(patch, {k}, RuntimeError("no"))
                    with pytest.raises(RuntimeError):
                        subscriber.sync(to=versions[1])
                assert bits(live) == bits(states[0])
            subscriber.sync(to=versions[1], expect=versions[0])
    assert bits(live) == bits(states[1])


def test_a_failed_undo_leaves_a_torn_target(
    repo: Repository, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        for broken in ({5, 6}, {5, 7}, {5, 9}):  # the last write, then one undo
            subscriber.sync(live, to=versions[0])
            with monkeypatch.context() as patch:
                break_exchange(patch, broken, KeyboardInterrupt())
                with pytest.raises(KeyboardInterrupt) as caught:
                    subscriber.sync(to=versions[1])
            assert "mixture" in caught.value.__notes__[-1]
            assert subscriber.version is None
            assert bits(live) not in (bits(states[0]), bits(states[1]))
            assert_torn(subscriber)
            subscriber.sync(to=versions[0])  # the target has most of it
            assert bits(live) == bits(states[0])


def assert_torn(subscriber: Subscriber) -> None:
    assert subscriber.version is None
    with pytest.raises(StaleError, match="mixture of two versions") as stale:
        subscriber.sync(expect="main~1")
    assert stale.value.code is ErrorCode.TORN


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
def test_a_failed_late_write_leaves_a_torn_target(
    repo: Repository,
    states: list[State],
    error: BaseException,
    after: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo, memory=0) as subscriber:
        for k in range(1, CHUNKS + 1):
            subscriber.sync(live, to=versions[0])
            with monkeypatch.context() as patch:
                break_exchange(patch, {k}, error, after=after)
                with pytest.raises(type(error)) as caught:
                    subscriber.sync(to=versions[1])
            assert caught.value is error
            assert f"on the way to {versions[1]}" in caught.value.__notes__[-1]
            assert_torn(subscriber)
            to = k % 2  # forward or back
            subscriber.sync(to=versions[to])
            assert bits(live) == bits(states[to])
            assert subscriber.version == versions[to]
            subscriber.verify()


def test_a_sync_continues_from_the_state_of_one_that_failed(
    repo: Repository, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo, memory=0) as subscriber:
        subscriber.sync(live, to=versions[0])
        with monkeypatch.context() as patch:
            break_exchange(patch, {CHUNKS}, RuntimeError("no"))
            with pytest.raises(RuntimeError):
                subscriber.sync(to=versions[1])
        assert bits(live) == bits(states[1]) | {"c": bits(states[0])["c"]}
        assert subscriber.sync(to=versions[1]).changed_elements == ELEMENTS
        assert bits(live) == bits(states[1])
        with pytest.raises(StaleError) as stale:
            subscriber.sync(expect=versions[0])
        assert stale.value.code is ErrorCode.STALE


def test_another_target_after_a_torn_one_is_stale_but_not_torn(
    repo: Repository, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo, memory=0) as subscriber:
        subscriber.sync(live, to=versions[0])
        with monkeypatch.context() as patch:
            break_exchange(patch, {2}, RuntimeError("no"))
            with pytest.raises(RuntimeError):
                subscriber.sync(to=versions[1])
        with pytest.raises(StaleError) as stale:
            subscriber.sync(replica(states[0]), expect=versions[1])
        assert stale.value.code is ErrorCode.STALE


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("verify", ["full", "patch"])
def test_a_store_failure_tears_the_target_only_during_late_writes(
    repo: Repository, calls: FaultyStore, states: list[State], verify: Verify, memory: int
) -> None:
    """A failure before the first write changes nothing; during late writes it tears the target."""
    versions = commit_all(repo, states)
    torn = intact = 0
    for k in range(1, 200):
        live = replica(states[0])
        with (
            casweights.open(calls, workers=2) as fresh,  # reads everything from the store
            Subscriber(fresh, verify=verify, memory=memory) as subscriber,
        ):
            subscriber.sync(live, to=versions[0])
            calls.calls.clear()
            calls.unused = [Fault(call=k, action=lose_connection)]
            failure = None
            try:
                subscriber.prefetch(to=versions[1])
                subscriber.sync()
            except StoreError as error:
                failure = error
            if failure is None:
                break
            assert failure.code is ErrorCode.UNREACHABLE
            assert calls.unused == []
            if subscriber.version is None:
                assert_torn(subscriber)
                torn += 1
            else:
                assert bits(live) == bits(states[0])
                assert subscriber.version == versions[0]
                intact += 1
            subscriber.sync(to=versions[1])
            assert bits(live) == bits(states[1])
    assert bits(live) == bits(states[1])
    assert len(calls.unused) == 1  # so each call has failed once
    assert intact > 2
    assert (torn > 0) == (memory == 0)


def objects_of(store: MemoryStore | FaultyStore, prefix: str) -> set[str]:
    return {info.name for info in store.list(prefix)}


@pytest.mark.parametrize(("verify", "memory"), [("full", 0), ("full", 1 << 20), ("patch", 1 << 20)])
def test_damage_in_any_object_of_a_version_is_refused_or_harmless(
    calls: FaultyStore, repo: Repository, states: list[State], verify: Verify, memory: int
) -> None:
    versions = commit_all(repo, states[:1])
    before = objects_of(calls, "")
    versions += commit_all(repo, states[1:])
    refused = 0
    for name in sorted(objects_of(calls, "") - before):
        if name.startswith("refs/"):
            continue
        size = calls.size(name)
        for place in range(0, size, max(1, size // 15)):
            flip_bit(calls, name, place)
            with casweights.open(calls, workers=2) as fresh:
                live = replica(states[0])
                with Subscriber(fresh, verify=verify, memory=memory) as subscriber:
                    subscriber.sync(live, to=versions[0])
                    refused += is_refused(subscriber, live, versions[1], states)
            flip_bit(calls, name, place)
    assert refused > 15


def is_refused(
    subscriber: Subscriber, live: State, to: casweights.SnapshotId, states: list[State]
) -> bool:
    """Whether a sync is refused correctly (True), or succeeds with the right bits (False)."""
    try:
        subscriber.sync(to=to)
    except IntegrityError as error:
        notes = getattr(error, "__notes__", [])
    else:
        assert bits(live) == bits(states[1])
        return False
    assert (subscriber.version is None) == any("mixture" in note for note in notes)
    assert subscriber.version is None or bits(live) == bits(states[0])
    return True


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("verify", ["full", "patch"])
@pytest.mark.parametrize("late", [False, True])
def test_a_sync_with_missing_objects_leaves_the_target_unchanged(
    calls: FaultyStore, repo: Repository, states: list[State], verify: Verify, late: bool
) -> None:
    versions = commit_all(repo, states[:1])
    before = objects_of(calls, "")
    versions += commit_all(repo, states[1:])
    (pack,) = objects_of(calls, "packs/") - before
    (snapshot,) = objects_of(calls, "snapshots/") - before
    with casweights.open(calls, workers=2) as fresh:
        live = replica(states[0])
        with Subscriber(fresh, verify=verify, memory=0 if late else 1 << 20) as subscriber:
            subscriber.sync(live, to=versions[0])
            calls.delete(pack)
            with pytest.raises(IntegrityError) as missing:
                subscriber.sync(to=versions[1])
            assert missing.value.code is ErrorCode.MISSING_CHUNK
            calls.delete(snapshot)
            with (
                casweights.open(calls) as other,
                Subscriber(other) as second,
                pytest.raises(NotFoundError),
            ):
                second.sync(live, to=versions[1])
            assert bits(live) == bits(states[0])
            assert subscriber.version == versions[0]


@pytest.mark.usefixtures("packs_apart")
def test_a_prefetched_version_is_applied_after_its_pack_was_deleted(
    calls: FaultyStore, repo: Repository, states: list[State]
) -> None:
    versions = commit_all(repo, states[:1])
    before = objects_of(calls, "packs/")
    versions += commit_all(repo, states[1:])
    (pack,) = objects_of(calls, "packs/") - before
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        subscriber.prefetch()
        calls.delete(pack)
        subscriber.sync()
    assert bits(live) == bits(states[1])


def test_a_forged_version_under_a_pinned_id_is_refused(
    calls: FaultyStore, repo: Repository, states: list[State]
) -> None:
    versions = commit_all(repo, states)
    evil = repo.commit({**states[1], "a": torch.zeros_like(states[1]["a"])}).id
    forged = calls.get(f"snapshots/{evil}")
    calls.delete(f"snapshots/{versions[1]}")
    calls.put(f"snapshots/{versions[1]}", [forged])
    live = replica(states[0])
    with casweights.open(calls) as fresh, Subscriber(fresh) as subscriber:
        subscriber.sync(live, to=versions[0])
        with pytest.raises(IntegrityError):
            subscriber.sync(to=versions[1])
        assert bits(live) == bits(states[0])
        assert subscriber.version == versions[0]


def moving_model(repo: Repository) -> tuple[State, Callable[[], State]]:
    """A version, and a target whose first tensor is the base of the version's last one."""
    base = weights(8)
    moved = step(base, 0.01, 1)
    commit_all(repo, [{"x": base}, {"x": moved}], branch="x")
    live = {"w": base.clone(), "z": weights(8, 4)}
    wanted = {"w": weights(8, 5), "z": moved}
    commit_all(repo, [wanted])
    return wanted, lambda: {name: tensor.clone() for name, tensor in live.items()}


@pytest.mark.parametrize("memory", [0, 1, 1 << 20])
@pytest.mark.parametrize("verify", ["full", "patch"])
def test_late_changes_have_no_overwritten_chunk_as_base(
    repo: Repository, verify: Verify, memory: int
) -> None:
    wanted, make = moving_model(repo)
    live = make()
    with Subscriber(repo, verify=verify, memory=memory) as subscriber:
        subscriber.sync(live)
    assert bits(live) == bits(wanted)


def test_a_base_that_changes_while_it_is_read_is_not_used(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, make = moving_model(repo)
    live, readinto = make(), LiveTensor.readinto

    def race(tensor: LiveTensor, number: int, out: memoryview) -> None:
        readinto(tensor, number, out)
        out[:10] = bytes(10)
        tensor.holds[number] = None

    with Subscriber(repo, verify="patch") as subscriber:
        monkeypatch.setattr(LiveTensor, "readinto", race)
        subscriber.sync(live)
    assert bits(live) == bits(wanted)


def test_the_version_is_unknown_while_a_sync_writes(
    repo: Repository, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = commit_all(repo, states)
    live, exchange = replica(states[0]), LiveTensor.exchange
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        told: list[casweights.SnapshotId | None] = []

        def look(tensor: LiveTensor, number: int, change: ElementChange) -> None:
            told.append(subscriber.version)
            exchange(tensor, number, change)

        monkeypatch.setattr(LiveTensor, "exchange", look)
        subscriber.sync(to=versions[1])
        assert told == [None] * CHUNKS
        assert subscriber.version == versions[1]


def test_a_failure_while_decoding_leaves_the_target_unchanged(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = list(history(2, 0.01, chunks=6))
    versions = commit_all(repo, states)
    live = replica(states[0])

    def fail(*_: object) -> NoReturn:
        raise MemoryError

    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        with monkeypatch.context() as patch:
            patch.setattr(LiveTensor, "find_change", fail)
            with pytest.raises(MemoryError):
                subscriber.prefetch()
        assert bits(live) == bits(states[0])
        assert subscriber.sync(expect=versions[0]).snapshot == versions[1]
    assert bits(live) == bits(states[1])
