"""Thread pools with a bounded number of unfinished tasks. All heavy tasks release the GIL."""

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
    from collections.abc import Callable, Hashable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", bound="Hashable")

_REOPEN = "open the store again"  # a pool is closed together with its store


def default_workers() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Threads(Handle, Closing):
    """A pool of threads that start when they are needed, and end with the program.

    Pools of `concurrent.futures` accept no work after the main thread has ended, although another
    thread may still have versions to write. They also delay the end of the program until hanging
    calls return. This pool does neither.

    Args:
        count: Maximum number of threads.
        name: Prefix of the threads' names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        # Threads refer to the queue and not to the pool, so that a pool without references is
        # finalized and its threads end.
        self._end = weakref.finalize(self, self._tasks.put, None)
        self._end.atexit = False

    def _how_to_reopen(self) -> str:
        return _REOPEN

    def submit(self, function: Callable[..., R], *args: Any) -> Future[R]:
        """Call a function on one of the threads, and return the future of its result."""
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
        """Finish all submitted tasks, and end the threads."""
        with self._lock:
            self._end()
        for thread in self._threads:
            thread.join()


def _work(tasks: SimpleQueue[Callable[[], None] | None], idle: threading.Semaphore) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # free the objects that it refers to before the next task arrives
        idle.release()
    tasks.put(None)  # for the next thread


def _run(future: Future[R], function: Callable[[], R]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # `Future.result` raises it
        future.set_exception(error)
        del future  # otherwise the error's traceback refers to the future, and that to the error
    else:
        future.set_result(result)


class Workers(Handle, Closing):
    """A pool of threads with a `map` that keeps the order and bounds the work ahead.

    Args:
        count: Number of threads.
        name: Prefix of the threads' names.
    """

    def __init__(self, count: int, name: str = "casweights") -> None:
        self.count = count
        self._threads = Threads(count, name)

    def _how_to_reopen(self) -> str:
        return _REOPEN

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results of `function` for each item, in order.

        Runs on all threads, at most two items per thread ahead of the consumer.
        """
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

    def map_asked(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Do the same, but with one thread only what is asked for, on the consumer's own."""
        return self.map(function, items) if self.count > 1 else map(function, items)

    def close(self) -> None:
        """Finish the running tasks, and end the threads."""
        self._threads.close()


class Once(Generic[R]):
    """Calls a function at the first use, and returns the same result from then on.

    Threads that use it during that call wait for the result.

    Args:
        function: Function that computes the result.
    """

    def __init__(self, function: Callable[[], R]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._results: list[R] = []

    def __call__(self) -> R:
        """Return the result. If the function raises, the next use calls it again."""
        with self._lock:
            if not self._results:
                self._results.append(self._function())
            return self._results[0]


class Recent(Generic[K, R]):
    """Creates values by key, one at a time, and keeps the latest of them.

    Args:
        make: Function that creates the value of a key.
        most: Maximum number of values to keep; the oldest is dropped first.
    """

    def __init__(self, make: Callable[[K], R], most: int) -> None:
        self._make = make
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, R] = OrderedDict()

    def __call__(self, key: K) -> R:
        """Return the value of a key, and create it if it is not kept."""
        with self._lock:
            if key not in self._kept:
                if len(self._kept) >= self._most:
                    self._kept.popitem(last=False)
                self._kept[key] = self._make(key)
            return self._kept[key]


class Background(Handle):
    """Runs tasks on its own threads, at most `limit` at the same time.

    Call `submit` any number of times, then `finish`, which raises the error of a failed task. Call
    `close` in any case. One thread uses it.

    Args:
        limit: Maximum number of unfinished tasks; `submit` waits for a free place.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads = Threads(limit, "casweights-put")
        self._pending: deque[Future[None]] = deque()

    def submit(self, function: Callable[[], None]) -> None:
        """Start a task, and raise the error of an earlier task if that has failed."""
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._threads.submit(function))

    def finish(self) -> None:
        """Wait for all tasks, and raise the error of the first that failed."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Cancel the tasks that have not started, and wait for the others."""
        for future in self._pending:
            future.cancel()
        self._threads.close()
