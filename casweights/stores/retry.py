"""Retries of failed calls, within one budget of time."""

from __future__ import annotations

import random
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from casweights.errors import ErrorCode, StoreError
from casweights.stores.base import NO_NAMES
from casweights.stores.optional import SupportsRefStore
from casweights.stores.wrapper import ReplayedBatch, WrapperStore
from casweights.system.clocks import Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casweights.stores.base import Batch, ObjectInfo, ObjectStore
    from casweights.system.buffers import Buffer

_R = TypeVar("_R")
_Ability = TypeVar("_Ability")
_FIRST_DELAY, _MAX_DELAY = 0.25, 8.0  # seconds


class RetryStore(WrapperStore):
    """Repeats calls that fail because the store cannot be reached.

    Delays double and vary at random, so that many clients do not retry at the same moment. The
    patience of a machine that sleeps in between is over: what a move relies on may be gone by then.

    Args:
        inner: The store to call.
        patience: Seconds from the start of a call after which no attempt begins.
        sleep: Function that waits for a number of seconds.
    """

    def __init__(
        self,
        inner: ObjectStore,
        patience: float = 60.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._patience = patience
        self._sleep = sleep

    def _retry(self, call: Callable[[], _R], begin: Moment | None = None) -> _R:
        """Call a function until it succeeds, or its next attempt could exceed the patience.

        Args:
            call: Function to call.
            begin: When the patience begins; by default now.
        """
        begin = begin or Moment.now()
        delay = _FIRST_DELAY
        while True:
            attempt = Moment.now()
            try:
                return call()
            except StoreError as error:
                pause = delay * random.uniform(0.5, 1.5)  # noqa: S311  no secret
                # Another attempt may take as long as this one did.
                if error.code is not ErrorCode.UNREACHABLE or (
                    begin.age() + pause + attempt.age() > self._patience
                ):
                    raise
                self._sleep(pause)
                delay = min(2 * delay, _MAX_DELAY)

    def create(self) -> None:
        self._retry(self.inner.create)

    def require(self, name: str) -> None:
        self._retry(lambda: self.inner.require(name))

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        return self._retry(lambda: self.inner.put(name, parts))

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        attempts = count()
        return ReplayedBatch(
            # After the first attempt, objects of an earlier one may exist.
            lambda: self.inner.batch(names, assume_absent=assume_absent and next(attempts) == 0),
            partial(self._retry, begin=Moment.now()),
        )

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        self._retry(lambda: self.inner.copy_from(source, names, called))

    def size(self, name: str) -> int:
        return self._retry(lambda: self.inner.size(name))

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        return self._retry(lambda: self.inner.sizes(wanted))

    def present(self, names: Iterable[str]) -> set[str]:
        wanted = list(names)
        return self._retry(lambda: self.inner.present(wanted))

    def exists(self, name: str) -> bool:
        return self._retry(lambda: self.inner.exists(name))

    def read(self, name: str, limit: int) -> bytes:
        return self._retry(lambda: self.inner.read(name, limit))

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:
        return self._retry(lambda: self.inner.read_end(name, most))

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        return self._retry(lambda: self.inner.get(name, start, size))

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        self._retry(lambda: self.inner.readinto(name, start, out))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._retry(lambda: iter(list(self.inner.list(prefix))))

    def delete(self, name: str) -> None:
        self._retry(lambda: self.inner.delete(name))

    def delete_all(self, names: Sequence[str]) -> None:
        self._retry(lambda: self.inner.delete_all(names))

    def ability(self, kind: type[_Ability]) -> _Ability | None:
        """Return the store inside that has the ability, or this one for `ref_store`; else None.

        Calls of abilities are not repeated, except `ref_store`: after a lost answer, only the
        caller knows whether another attempt is safe.
        """
        return super().ability(kind) if self.inner.ability(kind) is not None else None

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """Return the store for refs; its calls are repeated, too."""
        inner = self.inner.ability(SupportsRefStore)
        if inner is None:
            raise TypeError(f"{self.url} cannot keep refs in another store: call `ability` first")
        return RetryStore(inner.ref_store(where, store_id), self._patience, self._sleep)
