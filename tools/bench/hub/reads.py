"""Which calls a reader or a writer makes, and which of them wait for one another."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.stores.base import Content, ObjectInfo, ObjectStore, Parts
    from casweights.system.buffers import Buffer


class Call(NamedTuple):
    """A call of a store."""

    text: str
    start: float
    end: float


class RecordingStore(WrapperStore):
    """Notes every call that moves something, with its times.

    Attributes:
        calls: The calls so far.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []

    def chain(self, trip: float) -> list[Call]:
        """The most calls of which each began after the one before it had ended.

        Calls that depend on one another are such calls; so it is at least as long as the longest
        chain of those.

        Args:
            trip: Seconds of a round trip: calls that take less ask nobody.
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

    def put_all(
        self,
        objects: Sequence[tuple[str, Content]],
        soon: Sequence[Parts] = (),
        *,
        new: bool = False,
    ) -> list[bool]:
        with self._noted("write", " and ".join(name.split("/")[0] for name, _ in objects) + "/"):
            return self.inner.put_all(objects, soon, new=new)

    def read(self, name: str, limit: int) -> bytes:
        with self._noted("read", name):
            return self.inner.read(name, limit)

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
