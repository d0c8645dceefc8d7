"""A store that fails, or kills its process, at a moment that a test chooses."""

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
    """Raise what a full disk raises."""
    raise StoreError(ErrorCode.NO_SPACE, "cannot write: no space left on device")


def kill_process() -> None:
    """End this process as a power cut would: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def flip_bit(store: ObjectStore, name: str, place: int) -> None:
    """Damage one byte of an object."""
    data = bytearray(store.get(name))
    data[place] ^= 1
    store.delete(name)
    store.put(name, [data])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong at one call.

    Attributes:
        call: At which call, counted from 1.
        method: The method whose calls are counted, as ``"put"``; None counts all calls.
        after: Whether it strikes once the call has done its work, so that only the answer is lost.
        action: What happens: raise an error, or kill the process.
    """

    call: int
    method: str | None = None
    after: bool = False
    action: Callable[[], object] = run_out_of_space


class FaultyStore(ObjectStore):
    """Another store, with faults.

    It has the core of a store and no optional ability, and puts the objects of a batch one by one,
    so that each object is a call that may fail.

    Args:
        inner: The store that does the work.
        faults: What goes wrong, and when.

    Attributes:
        calls: Method and object name (for a listing the prefix) of every call so far.
        unused: Faults that have not struck yet.
    """

    def __init__(self, inner: ObjectStore, faults: Sequence[Fault] = ()) -> None:
        self.capabilities = inner.capabilities
        self.calls: list[tuple[str, str]] = []
        self.unused = list(faults)
        self._inner = inner
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The inner store's."""
        return self._inner.url

    def require(self, name: str) -> None:
        """See `ObjectStore.require`; not counted as a call."""
        self._inner.require(name)

    def probe(self) -> Capabilities:
        """See `ObjectStore.probe`; not counted as a call."""
        self.capabilities = self._inner.probe()
        return self.capabilities

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        with self._call("put", name):
            return self._inner.put(name, parts)

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        with self._call("size", name):
            return self._inner.size(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        with self._call("readinto", name):
            self._inner.readinto(name, start, out)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._call("list", prefix):
            return iter(tuple(self._inner.list(prefix)))

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        with self._call("delete", name):
            self._inner.delete(name)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        with self._call("get", name):
            return self._inner.get(name, start, size)

    def exists(self, name: str) -> bool:
        """See `ObjectStore.exists`."""
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
        finally:
            for fault in due:
                if fault.after:
                    fault.action()

    def _due(self, method: str, name: str) -> Sequence[Fault]:
        """Record a call; return the faults that strike at it."""
        with self._lock:
            self.calls.append((method, name))
            same = sum(called == method for called, _ in self.calls)
            count = {method: same, None: len(self.calls)}
            due = [fault for fault in self.unused if count.get(fault.method) == fault.call]
            self.unused = [fault for fault in self.unused if fault not in due]
        return due
