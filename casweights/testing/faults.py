"""A store that fails or kills its process at a chosen call, for tests of recovery."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from casweights.errors import ErrorCode, StoreError
from casweights.stores.base import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.stores.base import Capabilities, ObjectInfo
    from casweights.system.buffers import Buffer


def run_out_of_space() -> NoReturn:
    """Raise the error that a store raises when its disk is full."""
    raise StoreError(ErrorCode.NO_SPACE, "cannot write: no space left on device")


def kill_process() -> None:
    """End this process with SIGKILL, so that no cleanup code runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def flip_bit(store: ObjectStore, name: str, place: int) -> None:
    """Flip the lowest bit of the byte at offset `place` of an object."""
    data = bytearray(store.get(name))
    data[place] ^= 1
    store.delete(name)  # objects are immutable: `put` would leave the old one
    store.put(name, [data])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A failure at one call of a `FaultyStore`.

    Attributes:
        call: Number of the call that fails, counted from 1.
        method: Name of the method whose calls are counted, such as ``"put"``; None counts the
            calls of all methods.
        after: Whether to fail after the call has done its work, so that only its result is lost.
        action: A function that raises an error or kills the process.
    """

    call: int
    method: str | None = None
    after: bool = False
    action: Callable[[], object] = run_out_of_space


class FaultyStore(ObjectStore):
    """A wrapper around a store that fails at chosen calls.

    The wrapper hides the optional abilities of the store and puts the objects of a batch one by
    one, so that each object is a separate call that may fail. `require` and `probe` are passed on
    without being counted.

    Args:
        inner: The store that does the work.
        faults: The failures, each of which happens once.

    Attributes:
        calls: Method and object name (for a listing, the prefix) of every call so far.
        unused: Faults that have not happened yet.

    Example:
        >>> store = FaultyStore(MemoryStore(), [Fault(call=2, method="put")])
        >>> store.put("packs/a", [b"first"])
        True
        >>> store.put("packs/b", [b"second"])
        Traceback (most recent call last):
        casweights.errors.StoreError: cannot write: no space left on device
    """

    def __init__(self, inner: ObjectStore, faults: Sequence[Fault] = ()) -> None:
        self.capabilities = inner.capabilities
        self.calls: list[tuple[str, str]] = []
        self.unused = list(faults)
        self._inner = inner
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The URL of the inner store."""
        return self._inner.url

    def require(self, name: str) -> None:
        self._inner.require(name)

    def probe(self) -> Capabilities:
        self.capabilities = self._inner.probe()
        return self.capabilities

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        with self._call("put", name):
            return self._inner.put(name, parts)

    def size(self, name: str) -> int:
        with self._call("size", name):
            return self._inner.size(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        with self._call("readinto", name):
            self._inner.readinto(name, start, out)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._call("list", prefix):
            # A tuple: the whole listing must happen within this one call.
            return iter(tuple(self._inner.list(prefix)))

    def delete(self, name: str) -> None:
        with self._call("delete", name):
            self._inner.delete(name)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with self._call("get", name):
            return self._inner.get(name, start, size)

    def exists(self, name: str) -> bool:
        with self._call("exists", name):
            return self._inner.exists(name)

    @contextmanager
    def _call(self, method: str, name: str) -> Iterator[None]:
        due = self._due(method, name)
        for fault in due:
            if not fault.after:
                fault.action()
        try:
            yield
        finally:  # also if the call raised: a lost result hides its error, too
            for fault in due:
                if fault.after:
                    fault.action()

    def _due(self, method: str, name: str) -> Sequence[Fault]:
        """Record a call; return the faults that happen at it."""
        with self._lock:
            self.calls.append((method, name))
            same = sum(called == method for called, _ in self.calls)
            count = {method: same, None: len(self.calls)}
            due = [fault for fault in self.unused if count.get(fault.method) == fault.call]
            self.unused = [fault for fault in self.unused if fault not in due]
        return due
