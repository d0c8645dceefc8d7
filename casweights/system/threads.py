"""Work on many threads with bounded work in flight. Everything heavy here releases the GIL."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from casweights.system.closing import Closing
from casweights.system.handles import Handle, check_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

_REOPEN = "open the store again"  # pools end with the store that they work for


def default_workers() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Threads(Handle, Closing):
    """A pool of threads, started when there is work for them.

    Those of `concurrent.futures` take no more work once the main thread has ended, though a thread
    beside it may still have versions to write, and make the end of the program wait for calls that
    hang. These work on for as long as the program runs, and no longer.

    Args:
        count: The most threads.
        name: What their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        # Threads know the queue and not the pool, so that they end with a pool that nobody has.
        self._end = weakref.finalize(self, self._tasks.put, None)
        self._end.atexit = False

    def _how_to_reopen(self) -> str:
        return _REOPEN

    def submit(self, function: Callable[..., R], *args: Any) -> Future[R]:
        """Have a function called on one of the threads."""
        future: Future[R] = Future()
        with self._lock:
            check_open(self)
            self._tasks.put(partial(_run, future, partial(function, *args)))
            if len(self._threads) < self._count and not self._idle.acquire(blocking=False):
                self._start()
        return future

    def _start(self) -> None:
        thread = threading.Thread(
            target=_work,
            args=(self._tasks, self._idle),
            name=f"{self._name}_{len(self._threads)}",
            daemon=True,
        )
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """Finish all that was submitted, and end the threads."""
        with self._lock:
            self._end()
        for thread in self._threads:
            thread.join()


def _work(tasks: SimpleQueue[Callable[[], None] | None], idle: threading.Semaphore) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # what it refers to need not wait for the next one
        idle.release()
    tasks.put(None)  # for the next thread


def _run(future: Future[R], function: Callable[[], R]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # it is raised where the result is asked for
        future.set_exception(error)
        del future  # or the error's traceback would keep the error
    else:
        future.set_result(result)


class Workers(Handle, Closing):
    """A pool of threads that maps in order and never runs far ahead of its consumer."""

    def __init__(self, count: int, name: str = "casweights") -> None:
        self.count = count
        self._threads = Threads(count, name)

    def _how_to_reopen(self) -> str:
        return _REOPEN

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Like the built-in, on all threads, with at most two items a thread in flight."""
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(pending) >= 2 * self.count:
                    yield pending.popleft().result()
                pending.append(self._threads.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)

    def close(self) -> None:
        """End the threads; work in flight is finished first."""
        self._threads.close()


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


class Background(Handle):
    """Runs tasks on threads of its own; `submit` waits while `limit` of them are unfinished."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads = Threads(limit, "casweights-put")
        self._pending: deque[Future[None]] = deque()

    def submit(self, function: Callable[[], None]) -> None:
        """Start a task; raises what an earlier one raised."""
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._threads.submit(function))

    def finish(self) -> None:
        """Wait for all tasks; raises what the first failed one raised."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Drop what has not started, wait for the rest."""
        for future in self._pending:
            future.cancel()
        self._threads.close()
