"""Live sync with faults: a replica holds a published version, or reports that it does not."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import (
    ErrorCode,
    IntegrityError,
    Publisher,
    StaleError,
    StoreError,
    Subscriber,
)
from casweights.database.packs import read_pack_index
from casweights.stores.cached import CachedStore
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.sync import devices
from casweights.sync.changes import ElementChange
from casweights.sync.live import LiveTensor
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from tests.faults.sync_states import CONFIG, blank, digest, digest_of, state, step_of
from tests.faults.test_full_disk import largest_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Any, Literal, NoReturn

    from casweights import SnapshotId
    from casweights.repository import Ref
    from casweights.stores.base import ObjectInfo, ObjectStore


class Replica:
    """Tensors, and the subscriber that writes to them."""

    def __init__(self, store: ObjectStore, to: Ref | None, **options: Any) -> None:
        self.weights = blank()
        self.repo = casweights.open(store, workers=2)
        self.subscriber = Subscriber(self.repo, **options)
        self.subscriber.sync(self.weights, to=to)

    def holds(self, step: int, version: SnapshotId | None) -> bool:
        return digest(self.weights) == digest_of(step) and self.subscriber.version == version

    def close(self) -> None:
        self.subscriber.close()
        self.repo.close()


@pytest.fixture
def objects() -> ObjectStore:
    store = MemoryStore()
    casweights.open(store, create=True, config=CONFIG).close()
    return store


def publish(store: ObjectStore, *steps: int) -> list[SnapshotId]:
    """Publish these steps; return their versions."""
    versions = []
    with casweights.open(store, workers=2) as repo, Publisher(repo) as publisher:
        for step in steps:
            publish_one(publisher, step)
            versions += [publisher.version] if publisher.version else []
    return versions


@contextmanager
def replica_of(store: ObjectStore, *, to: Ref | None = None, **options: Any) -> Iterator[Replica]:
    replica = Replica(store, to, **options)
    try:
        yield replica
    finally:
        replica.close()


def publish_new(store: ObjectStore, step: int) -> tuple[SnapshotId, list[ObjectInfo]]:
    """Publish a step; return its version and the new objects."""
    before = {info.name for info in store.list()}
    (version,) = publish(store, step)
    return version, [info for info in store.list() if info.name not in before]


def with_frames(news: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Return those of a version's new objects that have its frames."""
    return [info for info in news if info.name.startswith(("packs/", "snapshots/"))]


@pytest.mark.parametrize("verify", ["full", "patch"])
def test_a_damaged_frame_leaves_the_replica_at_its_version(
    objects: ObjectStore, verify: Literal["full", "patch"]
) -> None:
    """No tensor is written, whichever frame is damaged; after the repair, the sync succeeds."""
    (first,) = publish(objects, 0)
    second, news = publish_new(objects, 1)
    (pack,) = with_frames(news)
    frames = [location.frame for location in read_pack_index(objects, pack)]
    assert len(frames) >= 8
    for frame in frames:
        with replica_of(objects, to=first, verify=verify) as replica:
            flip_bit(objects, pack.name, frame.offset + frame.size // 2)
            for action in (replica.subscriber.sync, replica.subscriber.prefetch):
                with pytest.raises(IntegrityError, match=f"{pack.name}.*{frame.chunk}"):
                    action()
                assert replica.holds(0, first)
            flip_bit(objects, pack.name, frame.offset + frame.size // 2)
        with replica_of(objects, to=first, verify=verify) as replica:
            replica.subscriber.sync()
            assert replica.holds(1, second)


@pytest.mark.parametrize("verify", ["full", "patch"])
def test_a_new_replica_writes_nothing_if_any_frame_is_damaged(
    objects: ObjectStore, verify: Literal["full", "patch"]
) -> None:
    """The replica has no version before and none after, whichever frame is damaged."""
    _, news = publish_new(objects, 0)
    (pack,) = with_frames(news)
    for frame in [location.frame for location in read_pack_index(objects, pack)]:
        flip_bit(objects, pack.name, frame.offset + frame.size // 2)
        weights = blank()
        with (
            casweights.open(objects, workers=2) as repo,
            Subscriber(repo, verify=verify) as subscriber,
        ):
            with pytest.raises(IntegrityError, match=f"{pack.name}.*{frame.chunk}"):
                subscriber.sync(weights)
            assert subscriber.version is None
            assert digest(weights) == digest(blank())
        flip_bit(objects, pack.name, frame.offset + frame.size // 2)


def test_a_replica_continues_once_a_pack_is_repaired(objects: ObjectStore) -> None:
    (first,) = publish(objects, 0)
    second, news = publish_new(objects, 1)
    (pack,) = with_frames(news)
    with replica_of(objects, to=first) as replica:
        flip_bit(objects, pack.name, 8)
        with pytest.raises(IntegrityError):
            replica.subscriber.sync()
        flip_bit(objects, pack.name, 8)
        replica.subscriber.sync()
        assert replica.holds(1, second)


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("kind", ["packs/", "snapshots/"])
def test_a_damaged_index_or_snapshot_leaves_the_replica_at_its_version(
    objects: ObjectStore, kind: str
) -> None:
    (first,) = publish(objects, 0)
    with replica_of(objects) as replica:
        second, news = publish_new(objects, 1)
        (damaged,) = [info for info in news if info.name.startswith(kind)]
        flip_bit(objects, damaged.name, (damaged.size or 0) - 10)
        with pytest.raises(IntegrityError, match=kind):
            replica.subscriber.sync()
        assert replica.holds(0, first)
        flip_bit(objects, damaged.name, (damaged.size or 0) - 10)
        replica.subscriber.sync()
        assert replica.holds(1, second)


@pytest.mark.parametrize("limit", [0, 5000, 50_000])
def test_a_sync_succeeds_without_space_for_the_disk_cache(
    tmp_path: Path, objects: ObjectStore, limit: int
) -> None:
    """The sync bypasses the cache, and incomplete files in it do no harm later."""
    publish(objects, 0)
    cached = CachedStore(objects, tmp_path / "cache", 1 << 26, "key")
    with largest_file(limit), replica_of(cached) as replica:
        for step in (1, 2):
            (version,) = publish(objects, step)
            replica.subscriber.sync()
            assert replica.holds(step, version)
    with replica_of(CachedStore(objects, tmp_path / "cache", 1 << 26, "key")) as other:
        assert other.holds(2, version)


class Broken(Exception):
    pass


@contextmanager
def exchange_fails(
    monkeypatch: pytest.MonkeyPatch, *calls: int, after: bool = False
) -> Iterator[list[int]]:
    """Fail at these writes, counted from 1, before or after the write; yield their numbers."""
    exchange, made, numbers = LiveTensor.exchange, list[int](), count(1)

    def exchange_or_fail(self: LiveTensor, number: int, change: ElementChange) -> None:
        call = next(numbers)
        made.append(call)
        if after or call not in calls:
            exchange(self, number, change)
        if call in calls:
            raise Broken

    with monkeypatch.context() as patched:
        patched.setattr(LiveTensor, "exchange", exchange_or_fail)
        yield made


def test_any_failing_write_to_a_tensor_rolls_the_sync_back(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writes that succeeded before the failing one are undone."""
    (first,) = publish(objects, 0)
    with replica_of(objects) as replica:
        (second,) = publish(objects, 1)
        with exchange_fails(monkeypatch) as made:
            replica.subscriber.sync()
        assert len(made) >= 8
        for call in range(1, len(made) + 1):
            replica.subscriber.sync(to=first)
            with exchange_fails(monkeypatch, call), pytest.raises(Broken):
                replica.subscriber.sync()
            assert replica.holds(0, first)
        replica.subscriber.sync()
        assert replica.holds(1, second)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("positions", [None, bytes(12)])
def test_an_exchange_without_memory_for_the_old_values_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, stride: int, positions: bytes | None
) -> None:
    live = torch.arange(6 * stride, dtype=torch.int16)[::stride]
    change = ElementChange(positions, bytearray(6), 2)
    before = live.tolist()
    monkeypatch.setattr(devices, "_host_bytes", no_memory)
    with pytest.raises(MemoryError):
        devices.device_exchange(live, 2, 5, change)
    assert live.tolist() == before


def no_memory(_: object) -> NoReturn:
    raise MemoryError


def test_a_failed_rollback_is_reported_and_the_next_sync_repairs_it(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors are of no version, and the subscriber reports that."""
    (first,) = publish(objects, 0)
    with replica_of(objects) as replica:
        (second,) = publish(objects, 1)
        with exchange_fails(monkeypatch, *range(6, 100)), pytest.raises(Broken) as caught:
            replica.subscriber.sync()
        assert "mixture" in caught.value.__notes__[0]
        assert digest(replica.weights) not in (digest_of(0), digest_of(1))
        assert_torn(replica, first)
        replica.subscriber.sync()
        assert replica.holds(1, second)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_any_failing_write_without_a_rollback_is_reported_as_torn(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Without memory, writes cannot be undone, and the failing one may or may not have happened."""
    (first,) = publish(objects, 0)
    (second,) = publish(objects, 1)
    with replica_of(objects, to=first, memory=0, verify="patch") as replica:
        with exchange_fails(monkeypatch) as made:
            replica.subscriber.sync()
        for call in range(1, len(made) + 1):
            replica.subscriber.sync(to=first)
            with exchange_fails(monkeypatch, call, after=after), pytest.raises(Broken):
                replica.subscriber.sync()
            assert_torn(replica, first, second)
            replica.subscriber.sync()
            assert replica.holds(1, second)


def assert_torn(replica: Replica, *versions: SnapshotId) -> None:
    assert replica.subscriber.version is None
    for version in versions:
        with pytest.raises(StaleError) as caught:
            replica.subscriber.sync(expect=version)
        assert caught.value.code is ErrorCode.TORN


def unreachable() -> NoReturn:
    raise StoreError(ErrorCode.UNREACHABLE, "the store cannot be reached")


@pytest.mark.parametrize("memory", [0, 60_000])
def test_any_failing_read_of_a_sync_in_little_memory_is_reported(
    objects: ObjectStore, memory: int
) -> None:
    """Changes beyond the memory are read while tensors are written, so a replica may be torn."""
    (first,) = publish(objects, 0)
    (second,) = publish(objects, 6)
    torn = 0
    for call in range(1, 100):
        faulty = FaultyStore(objects)
        with replica_of(faulty, to=first, memory=memory) as replica:
            calls = len(faulty.calls)
            faulty.unused = [Fault(call=calls + call, action=unreachable)]
            failure = failure_of(replica.subscriber.sync)
            if failure is None:
                break
            assert failure is ErrorCode.UNREACHABLE
            if digest(replica.weights) == digest_of(0):
                assert replica.subscriber.version in (first, None)
            else:
                torn += 1
                assert_torn(replica, first, second)
            replica.subscriber.sync()
            assert replica.holds(6, second)
    assert faulty.unused, "the error was swallowed"
    assert call > 5
    assert torn > 0


def failure_of(action: Callable[[], object]) -> ErrorCode | None:
    try:
        action()
    except StoreError as error:
        return error.code
    return None


def test_stale_corrupt_and_unreachable_have_different_codes(objects: ObjectStore) -> None:
    (first,) = publish(objects, 0)
    faulty = FaultyStore(objects)
    with replica_of(faulty) as replica:
        second, news = publish_new(objects, 1)
        (pack,) = with_frames(news)
        with pytest.raises(StaleError) as stale:
            replica.subscriber.sync(expect=second)
        assert replica.holds(0, first)
        faulty.unused = [Fault(call=len(faulty.calls) + 1, action=unreachable)]
        with pytest.raises(StoreError) as away:
            replica.subscriber.sync()
        assert replica.holds(0, first)
        flip_bit(objects, pack.name, 8)  # in the first frame
        with pytest.raises(IntegrityError) as corrupt:
            replica.subscriber.sync()
        assert replica.holds(0, first)
    assert [caught.value.code for caught in (stale, away, corrupt)] == [
        ErrorCode.STALE,
        ErrorCode.UNREACHABLE,
        ErrorCode.CORRUPT_OBJECT,
    ]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("compare", ["host", "device", "cache"])
def test_any_failing_write_of_a_publisher_is_reported_and_can_be_repeated(
    tmp_path: Path, compare: Literal["host", "device", "cache"], after: bool
) -> None:
    """The caller gets the error and publishes again; every version then matches its step."""
    kinds = set()
    for call in range(1, 8):
        root = tmp_path / f"{call}"
        casweights.open(root, create=True, config=CONFIG).close()
        store = FaultyStore(LocalStore(root))
        with (
            casweights.open(store, workers=2) as repo,
            Publisher(repo, compare=compare) as publisher,
        ):
            store.unused = [Fault(method="put", call=call, after=after)]
            failures = [failure_of(partial(publish_one, publisher, step)) for step in range(4)]
            failed = [step for step, failure in enumerate(failures) if failure is not None]
            kind = [name.split("/")[0] for put, name in store.calls if put == "put"][call - 1]
            kinds.add(kind)
            landed = after and kind == "refs"  # a move whose result is lost still counts: no error
            assert [failures[step] for step in failed] == [ErrorCode.NO_SPACE] * (not landed)
            assert store.unused == []
            log = [step_of(version) for version in repo.log()]
            assert log == [step for step in (3, 2, 1, 0) if step not in failed]
            for version in repo.log():
                assert digest(repo.load(version)) == digest_of(step_of(version))
            assert repo.verify().problems == ()
            with replica_of(LocalStore(root)) as replica:
                assert replica.holds(3, publisher.version)
    assert kinds == {"snapshots", "signatures", "refs"}


def publish_one(publisher: Publisher, step: int) -> None:
    publisher.publish(state(step), step=step)
    publisher.wait()
