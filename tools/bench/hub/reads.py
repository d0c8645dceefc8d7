"""Records the calls of a store, and finds which of them are sequential."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.stores.wrapper import WrapperBatch, WrapperStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from casweights.stores.base import Batch, ObjectInfo, ObjectStore
    from casweights.system.buffers import Buffer


class Call(NamedTuple):
    """A call of a store, with its monotonic begin and end."""

    text: str
    start: float
    end: float


class _NotedBatch(WrapperBatch):
    """A batch that counts as one call, from its beginning to its end."""

    def __init__(self, inner: Batch, call: AbstractContextManager[None]) -> None:
        super().__init__(inner)
        self._call = call

    def __enter__(self) -> Self:
        self._call.__enter__()
        return super().__enter__()

    def finish(self) -> None:
        super().finish()
        self._call.__exit__(None, None, None)


class RecordingStore(WrapperStore):
    """A wrapper that records every call that reaches the storage, with its times.

    Attributes:
        calls: The calls so far, in the order of their ends.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []

    def chain(self, trip: float) -> list[Call]:
        """Return the longest sequence of calls that each began after the previous one had ended.

        Calls that depend on each other form such a sequence, so the result is at least as long as
        the longest chain of dependent calls.

        Args:
            trip: Seconds of a round trip. Faster calls do not reach the network, and are left out.
        """
        found: list[Call] = []
        for call in sorted(self.calls, key=lambda call: call.end):
            if call.end - call.start < trip:
                continue
            if not found or call.start >= found[-1].end:
                found.append(call)
        return found

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        with self._noted("write", name):
            return self.inner.put(name, parts)

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        kinds = " and ".join(name.split("/")[0] for name in names) + "/"
        inner = self.inner.batch(names, assume_absent=assume_absent)
        return _NotedBatch(inner, self._noted("write", kinds))

    def read(self, name: str, limit: int) -> bytes:
        with self._noted("read", name):
            return self.inner.read(name, limit)

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:  # a store may keep the end
        with self._noted("read", name):
            return self.inner.read_end(name, most)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with self._noted("read", name):
            return self.inner.get(name, start, size)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        with self._noted("read", name):
            self.inner.readinto(name, start, out)

    def size(self, name: str) -> int:
        with self._noted("look up", name):
            return self.inner.size(name)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        with self._noted("look up", wanted[0] if wanted else "nothing"):
            return self.inner.sizes(wanted)

    def exists(self, name: str) -> bool:
        with self._noted("look up", name):
            return self.inner.exists(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._noted("list", prefix):
            return self.inner.list(prefix)

    @contextmanager
    def _noted(self, what: str, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            folder = name.rpartition("/")[0] or name
            self.calls.append(Call(f"{what} {folder}", start, time.perf_counter()))
