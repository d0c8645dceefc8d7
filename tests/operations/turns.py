"""Two operations in turns: the first pauses at a call of the store, the second after a write."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING

from casweights.stores.base import ObjectStore
from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectInfo
    from casweights.system.buffers import Buffer
    from tests.histories import State

    Versions = dict[SnapshotId, State]
    Operation = Callable[[ObjectStore], Versions]


class Watched(WrapperStore):
    """A store that calls functions before each call and after each write.

    Args:
        inner: The store that does the work.
        before: Called with the number of the call, from 1.
        after: Called with the number of the write, from 1.
        one_by_one: Whether other threads wait until a call and its functions have returned.

    Attributes:
        before: The argument; may be replaced.
        calls: Number of calls so far.
    """

    batch = ObjectStore.batch
    copy_from = ObjectStore.copy_from
    delete_all = ObjectStore.delete_all
    sizes = ObjectStore.sizes
    read = ObjectStore.read

    def __init__(
        self,
        inner: ObjectStore,
        before: Callable[[int], object] = lambda _: None,
        after: Callable[[int], object] = lambda _: None,
        *,
        one_by_one: bool = True,
    ) -> None:
        super().__init__(inner)
        self.calls, self._writes = 0, count(1)
        self.before, self._after = before, after
        self._turn = threading.Lock() if one_by_one else nullcontext()

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        with self._call(writes=True):
            return super().put(name, parts)

    def delete(self, name: str) -> None:
        with self._call(writes=True):
            super().delete(name)

    def size(self, name: str) -> int:
        with self._call():
            return super().size(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        with self._call():
            super().readinto(name, start, out)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._call():
            return super().list(prefix)

    @contextmanager
    def _call(self, *, writes: bool = False) -> Iterator[None]:
        with self._turn:
            self.calls += 1
            self.before(self.calls)
            yield
            if writes:
                self._after(next(self._writes))


class Other:
    """An operation on its own thread that pauses after one of its writes."""

    def __init__(self, store: ObjectStore, operation: Operation, stop_after: int) -> None:
        self.versions: Versions = {}
        self.writes = 0
        self._error: BaseException | None = None
        self._paused, self._resumed = threading.Event(), threading.Event()
        self._stop_after = stop_after
        watched = Watched(store, after=self._stop)
        self._thread = threading.Thread(target=self._run, args=(operation, watched), daemon=True)

    def begin(self) -> None:
        """Run up to the pause."""
        self._thread.start()
        assert self._paused.wait(30)

    def finish(self) -> None:
        """Run the rest."""
        self._resumed.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def _stop(self, write: int) -> None:
        self.writes = write
        if write == self._stop_after:
            self._paused.set()
            assert self._resumed.wait(30)

    def _run(self, operation: Operation, store: ObjectStore) -> None:
        try:
            self.versions = operation(store)
        except BaseException as error:  # the test's thread raises it
            self._error = error
        self._paused.set()
