"""Writers that move one ref at once, in every order that a scheduler can think of.

Each writer is a thread that stops before every call of the store, and one of them at a time goes
on: which one is drawn by hypothesis, so that what fails shrinks, or enumerated. The last tests let
threads loose on the local Hub.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import casweights
from casweights.config import StoreConfig
from casweights.errors import ConflictError, ErrorCode, NotFoundError, StoreError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.refs import Head, Refs
from casweights.stores.base import Capabilities, ObjectInfo
from casweights.stores.hub.store import HubStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.hub import Conditions, LocalHub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.stores.base import Buffer, ObjectStore

MAX_LAG = 5  # calls; less than the listings that a writer waits for its own move


class Time:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casweights.reflog.time", Time())


class World(MemoryStore):
    """What all writers share: objects, a clock that ticks at every change and listing, the past.

    Attributes:
        lags: By how many ticks listings lag, for each object in turn; one for all is a listing
            that shows the whole store as it was.
        repeated: Names that were put again while they were there.
    """

    def __init__(self, *, exclusive: bool) -> None:
        super().__init__()
        self.capabilities = Capabilities(exclusive_create=exclusive)
        self.lags: Sequence[int] = (0,)
        self.repeated: list[str] = []
        self._now = 0
        self._past: dict[str, list[tuple[int, bool]]] = {}  # when it came and went

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        created = super().put(name, parts)
        if created:
            self._note(name, there=True)
        else:
            self.repeated.append(name)
        return created

    def delete(self, name: str) -> None:
        there = self.exists(name)
        super().delete(name)
        if there:
            self._note(name, there=False)

    def _note(self, name: str, *, there: bool) -> None:
        self._now += 1
        self._past.setdefault(name, []).append((self._now, there))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._now += 1
        infos = []
        for number, (name, changes) in enumerate(self._past.items()):
            seen = self._now - self.lags[number % len(self.lags)]
            moment, there = next((c for c in reversed(changes) if c[0] <= seen), (0, False))
            if there and name.startswith(prefix):
                created = 0 if self.capabilities.exclusive_create else moment
                infos.append(ObjectInfo(name, 0, created))
        return iter(sorted(infos, key=lambda info: info.name))

    def copy(self) -> World:
        """Another one that is as this one is now."""
        other = World(exclusive=self.capabilities.exclusive_create)
        other._objects = dict(self._objects)
        other._now, other._past = self._now, {n: list(c) for n, c in self._past.items()}
        return other


class Fate(Enum):
    """What becomes of a call."""

    DONE = "done"
    LOST = "it does not reach the store"
    UNANSWERED = "it is done, but its answer does not come"


class Client(WrapperStore):
    """The store, as one writer reaches it: every call waits until it is this writer's turn."""

    def __init__(self, world: ObjectStore, stop: Callable[[], Fate]) -> None:
        super().__init__(world)
        self._stop = stop

    @contextmanager
    def _call(self) -> Iterator[None]:
        fate = self._stop()
        if fate is not Fate.LOST:
            yield
        if fate is not Fate.DONE:
            raise StoreError(ErrorCode.UNREACHABLE, fate.value)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        with self._turn():
            return super().put(name, parts)

    def read(self, name: str, limit: int) -> bytes:
        with self._turn():
            return self.inner.read(name, limit)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._turn():
            return super().list(prefix)

    def delete(self, name: str) -> None:
        with self._turn():
            super().delete(name)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for it; the call is lost before it is made, or its answer afterwards."""
        fate = self._stop()
        if fate is Fate.LOST:
            raise StoreError(ErrorCode.UNREACHABLE, fate.value)
        yield
        if fate is Fate.UNANSWERED:
            raise StoreError(ErrorCode.UNREACHABLE, fate.value)


Work = "Callable[[Client], None]"


class Writer:
    """A thread that goes on to its next call of the store when it is told to, and no further."""

    def __init__(self, world: World, work: Callable[[Client], None]) -> None:
        self._go, self._stopped = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._stopped.acquire()
        self._work, self._client = work, Client(world, self._stop)
        self._fate = Fate.DONE
        self.at_work = True
        self.error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()
        self.step()

    def step(self, fate: Fate = Fate.DONE) -> None:
        """Make the call at which it stands, and go on up to the next one."""
        self._fate = fate
        self._go.release()
        self._stopped.acquire()

    def _stop(self) -> Fate:
        self._stopped.release()
        self._go.acquire()
        return self._fate

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._work(self._client)
        except BaseException as error:  # noqa: BLE001
            self.error = error
        self.at_work = False
        self._stopped.release()
