"""Programs that end without closing their publishers.

They get time to store what was published. What is not stored by then is named in the log, which
goes to the standard error unless logging is configured.

The wait happens on a thread that the interpreter joins. It starts when the main thread has ended,
so that no thread is needed before. Other threads may publish until they end.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)
_SILENT_SECONDS = 5.0  # of waiting before the first line; most programs are done by then


@dataclass(frozen=True, eq=False)
class Pending:
    """A publisher, as the end of the program sees it.

    Attributes:
        name: What log lines call it.
        timeout: Seconds to wait for it.
        drain: Waits until all its states are stored or given up; False if that takes longer than
            the given seconds.
        losses: A line for each state that was published and is not stored.
    """

    name: str
    timeout: float
    drain: Callable[[float], bool]
    losses: Callable[[], list[str]]


_open: set[Pending] = set()


def register(publisher: Pending) -> None:
    """Let the end of the program wait for this publisher."""
    _open.add(publisher)


def unregister(publisher: Pending) -> None:
    """Do not wait for it, or report it: its owner has closed it and has seen its errors."""
    _open.discard(publisher)


def _main_thread_ends() -> None:
    if _open:
        with suppress(RuntimeError):  # no thread can be started: `_tell` reports without a wait
            threading.Thread(target=_wait, name="casweights-exit", daemon=False).start()


def _wait() -> None:
    """Wait for threads that may still publish, then for what they have published."""
    threading.main_thread().join()
    while others := _other_threads():
        others[0].join()
    begin = time.monotonic()
    for publisher in list(_open):
        _drain(publisher, begin)
    _tell()


def _other_threads() -> list[threading.Thread]:
    ours = (threading.current_thread(), threading.main_thread())
    return [thread for thread in threading.enumerate() if not (thread.daemon or thread in ours)]


def _drain(publisher: Pending, begin: float) -> None:
    def left() -> float:
        return max(0.0, begin + publisher.timeout - time.monotonic())

    if not publisher.drain(min(left(), _SILENT_SECONDS)) and (seconds := left()):
        _log.warning(
            "%s is still writing: waiting at most %.0f s for it; interrupt to end now",
            publisher.name,
            seconds,
        )
        publisher.drain(seconds)


def _tell() -> None:
    """Log each state that is not stored."""
    while _open:
        with suppress(KeyError):  # another thread reports it
            for loss in _open.pop().losses():
                _log.error(loss)


# Those that `threading` calls come before other threads are waited for; since `atexit` comes
# after them, it is too late there to start a thread. `concurrent.futures` does it likewise.
getattr(threading, "_register_atexit", atexit.register)(_main_thread_ends)
atexit.register(_tell)
os.register_at_fork(after_in_child=_open.clear)
