"""Tests of retries: which calls are repeated, and for how long."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from casweights.errors import ErrorCode, NotFoundError, StoreError
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.stores.wrapper import WrapperBatch, WrapperStore
from casweights.system import clocks
from casweights.testing import StoreTests
from casweights.testing.faults import Fault, FaultyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights.stores.base import Batch, ObjectStore


def fail() -> None:
    raise StoreError(ErrorCode.UNREACHABLE, "no answer")


def refuse() -> None:
    raise StoreError(ErrorCode.NO_PERMISSION, "no")


class Clock:
    """A clock that advances with every `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def moment(self) -> Mock:
        begin = self.now
        return Mock(age=lambda: self.now - begin)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("casweights.stores.retry.Moment", Mock(now=clock.moment))
    return clock


class TestRetryStore(StoreTests):
    @pytest.fixture
    def store(self) -> RetryStore:
        return RetryStore(MemoryStore())


def elsewhere() -> MemoryStore:
    store = MemoryStore()
    store.put("new", [b"x"])
    return store


USES: list[Callable[[ObjectStore], object]] = [
    lambda store: store.put("new", [b"x"]),
    lambda store: store.put_all([("new", [b"x"]), ("more", [b"y"])]),
    lambda store: store.get("there"),
    lambda store: store.read("there", 100),
    lambda store: store.size("there"),
    lambda store: store.sizes(["there"]),
    lambda store: store.present(["there"]),
    lambda store: store.exists("there"),
    lambda store: list(store.list()),
    lambda store: store.readinto("there", 0, memoryview(bytearray(3))),
    lambda store: store.delete("there"),
    lambda store: store.delete_all(["there"]),
    lambda store: store.copy_from(elsewhere(), ["new"]),
]


@pytest.mark.parametrize("use", USES)
def test_every_call_is_repeated_after_an_error(
    use: Callable[[ObjectStore], object], clock: Clock
) -> None:
    plain = MemoryStore()
    plain.put("there", [b"old"])
    faulty = FaultyStore(plain, [Fault(call=n, action=fail) for n in (1, 2, 3)])
    use(RetryStore(faulty, sleep=clock.sleep))
    assert not faulty.unused
    assert len(clock.pauses) == 3


class FailingBatch(WrapperBatch):
    """A batch that fails at its end, before or after its objects become visible."""

    def __init__(self, inner: Batch, *, late: bool) -> None:
        super().__init__(inner)
        self._late = late

    def finish(self) -> None:
        if self._late:
            super().finish()
        fail()


class Batches(WrapperStore):
    """A store whose first batches fail.

    Attributes:
        begun: The `assume_absent` of each batch.
    """

    def __init__(self, *, failing: int, late: bool) -> None:
        super().__init__(MemoryStore())
        self.begun: list[bool] = []
        self._failing = failing
        self._late = late

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        self.begun.append(assume_absent)
        inner = self.inner.batch(names)
        late = self._late
        return inner if len(self.begun) > self._failing else FailingBatch(inner, late=late)


@pytest.mark.parametrize("late", [False, True])
def test_a_batch_that_fails_at_its_end_is_repeated_as_a_whole(clock: Clock, late: bool) -> None:
    inner = Batches(failing=2, late=late)
    with RetryStore(inner, sleep=clock.sleep).batch(["a", "b"], assume_absent=True) as batch:
        batch.put("a", [b"1"])
        batch.put("b", [b"2"])
    assert [inner.get(name) for name in "ab"] == [b"1", b"2"]
    assert inner.begun == [True, False, False], "a failed attempt may have created objects"
    assert len(clock.pauses) == 2


def test_the_patience_covers_a_whole_batch(clock: Clock) -> None:
    inner = Batches(failing=100, late=False)
    with (
        pytest.raises(StoreError, match="no answer"),
        RetryStore(inner, 60, clock.sleep).batch(["a"]) as batch,
    ):
        batch.put("a", [b"1"])
    assert 45 < clock.now <= 60


def test_an_error_of_the_caller_ends_a_batch_and_is_not_repeated(clock: Clock) -> None:
    inner = Batches(failing=0, late=False)
    batch = RetryStore(inner, sleep=clock.sleep).batch(["a", "b"])
    with suppress(KeyError), batch:
        batch.put("a", [b"1"])
        raise KeyError("an error of the caller")
    assert inner.begun == [False]
    assert not inner.exists("b")


def test_delays_double_up_to_a_limit_and_end_with_the_patience(clock: Clock) -> None:
    faulty = FaultyStore(MemoryStore(), [Fault(call=n, action=fail) for n in range(1, 100)])
    with pytest.raises(StoreError, match="no answer") as caught:
        RetryStore(faulty, 60, clock.sleep).size("name")
    assert caught.value.code is ErrorCode.UNREACHABLE
    assert clock.now <= 60
    assert clock.now > 45
    assert all(0.5 <= pause / delay <= 1.5 for pause, delay in zip(clock.pauses, (0.25, 0.5, 1)))  # noqa: B905
    assert max(clock.pauses) <= 12


def test_an_attempt_that_would_last_too_long_is_not_made(clock: Clock) -> None:
    def hang() -> None:
        clock.now += 25
        fail()

    faulty = FaultyStore(MemoryStore(), [Fault(call=n, action=hang) for n in range(1, 100)])
    with pytest.raises(StoreError):
        RetryStore(faulty, 60, clock.sleep).size("name")
    assert len(faulty.calls) == 2
    assert clock.now <= 60


def test_permanent_errors_are_not_repeated(clock: Clock) -> None:
    faulty = FaultyStore(MemoryStore(), [Fault(call=1, action=refuse)])
    store = RetryStore(faulty, sleep=clock.sleep)
    with pytest.raises(StoreError, match="no"):
        store.size("name")
    with pytest.raises(NotFoundError):
        store.size("name")
    assert len(faulty.calls) == 2
    assert clock.pauses == []


def test_nothing_is_repeated_without_patience(clock: Clock) -> None:
    faulty = FaultyStore(MemoryStore(), [Fault(call=1, action=fail)])
    with pytest.raises(StoreError):
        RetryStore(faulty, 0, clock.sleep).size("name")
    assert clock.pauses == []


@pytest.mark.parametrize("stopped", ["time", "uptime"])
def test_nothing_is_repeated_after_a_sleep(monkeypatch: pytest.MonkeyPatch, stopped: str) -> None:
    """A move that is repeated days later would name what a collection has deleted."""
    slept = {"time": 0.0, "uptime": 0.0}
    wall, up = time.time, clocks.uptime
    monkeypatch.setattr(time, "time", lambda: wall() + slept["time"])
    monkeypatch.setattr(clocks, "uptime", lambda: up() + slept["uptime"])

    def sleep() -> None:
        slept.update(dict.fromkeys({"time", "uptime"} - {stopped}, 86400.0))
        fail()

    faulty = FaultyStore(MemoryStore(), [Fault(call=1, action=sleep)])
    with pytest.raises(StoreError, match="no answer"):
        RetryStore(faulty, sleep=lambda _: None).put("name", [b"x"])
    assert not faulty.exists("name")
