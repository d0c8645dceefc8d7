"""Work on many threads with bounded work in flight. Everything heavy here releases the GIL."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A pool of threads that maps in order and never runs far ahead of its consumer."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._start()

    def _start(self) -> None:
        self._owner = os.getpid()
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="casweights")

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Like the built-in, on all threads, with at most two items a thread in flight."""
        if os.getpid() != self._owner:  # a forked child has none of its parent's threads
            self._start()
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(pending) >= 2 * self.count:
                    yield pending.popleft().result()
                pending.append(self._pool.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)

    def close(self) -> None:
        """End the threads; work in flight is finished first."""
        self._pool.shutdown()


class Once(Generic[R]):
    """Calls a function when its result is first asked for, and never again."""

    def __init__(self, function: Callable[[], R]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._results: list[R] = []

    def __call__(self) -> R:
        """The result; raises what the function raises, and calls it again the next time."""
        with self._lock:
            if not self._results:
                self._results.append(self._function())
            return self._results[0]


class Recent(Generic[R]):
    """Makes things by name, one at a time, and keeps the last few of them.

    Args:
        make: Makes one.
        most: How many to keep.
    """

    def __init__(self, make: Callable[[str], R], most: int) -> None:
        self._make = make
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, R] = OrderedDict()

    def __call__(self, name: str) -> R:
        """The thing of that name."""
        with self._lock:
            if name not in self._kept:
                if len(self._kept) >= self._most:
                    self._kept.popitem(last=False)
                self._kept[name] = self._make(name)
            return self._kept[name]


class Background:
    """Runs tasks on threads of its own; `submit` waits while `limit` of them are unfinished."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix="casweights-put")
        self._pending: deque[Future[None]] = deque()

    def submit(self, function: Callable[[], None]) -> None:
        """Start a task; raises what an earlier one raised."""
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function))

    def finish(self) -> None:
        """Wait for all tasks; raises what the first failed one raised."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Drop what has not started, wait for the rest."""
        self._pool.shutdown(cancel_futures=True)
