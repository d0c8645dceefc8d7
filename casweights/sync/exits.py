"""Programs that end without closing their publishers.

They get time to store what was published, and what is not stored then is named in the log, which
goes to the standard error where nothing else is configured.

The wait is that of a thread which the interpreter joins. It begins when the main thread has ended,
and takes up no thread before. Other threads may publish for as long as they run.
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
        drain: Waits until all its states are stored or given up; False after that many seconds.
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
        with suppress(RuntimeError):  # no thread can be started: it is said without a wait
            threading.Thread(target=_wait, name="casweights-exit", daemon=False).start()


def _wait() -> None:
    """Wait for those who may still publish, then for what they have published."""
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
    """Name what is not stored."""
    while _open:
        with suppress(KeyError):  # another thread tells it
            for loss in _open.pop().losses():
                _log.error(loss)


# Those that `threading` calls come before other threads are waited for; since `atexit` comes
# after them, it is too late there to start a thread. `concurrent.futures` does it likewise.
getattr(threading, "_register_atexit", atexit.register)(_main_thread_ends)
atexit.register(_tell)
os.register_at_fork(after_in_child=_open.clear)
