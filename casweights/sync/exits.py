"""The end of programs that have not closed their publishers.

A publisher has some time to store its versions then. Each state that is not stored by the end of
that time is named in the log, which is written to the standard error unless logging is configured.

The wait happens on a thread that the interpreter joins. The thread starts when the main thread has
ended, so that programs have no additional thread before. Other threads may publish until they end.
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
_SILENT_SECONDS = 5.0  # wait before the first log line; most programs are done by then


@dataclass(frozen=True, eq=False)
class Pending:
    """A publisher that the end of the program waits for.

    Attributes:
        name: Name of the publisher in log lines.
        timeout: Maximum number of seconds to wait for it.
        drain: Waits until each of its states is stored or has failed; returns False if that takes
            longer than the given number of seconds.
        losses: Returns a line for each state that was published and is not stored.
    """

    name: str
    timeout: float
    drain: Callable[[float], bool]
    losses: Callable[[], list[str]]


_open: set[Pending] = set()


def register(publisher: Pending) -> None:
    """Make the end of the program wait for this publisher."""
    _open.add(publisher)


def unregister(publisher: Pending) -> None:
    """Neither wait for nor report this publisher: its owner closed it and has seen its errors."""
    _open.discard(publisher)


def _main_thread_ends() -> None:
    """Start the thread that waits, if any publisher is open."""
    if _open:
        # Where no thread can be started any more, `_report_losses` reports without a wait.
        with suppress(RuntimeError):
            threading.Thread(target=_wait, name="casweights-exit", daemon=False).start()


def _wait() -> None:
    """Wait for threads that may still publish, then for the publishers; report what is lost."""
    threading.main_thread().join()
    while others := _other_threads():
        others[0].join()
    begin = time.monotonic()
    for publisher in list(_open):
        _drain(publisher, begin)
    _report_losses()


def _other_threads() -> list[threading.Thread]:
    ours = (threading.current_thread(), threading.main_thread())
    return [thread for thread in threading.enumerate() if not (thread.daemon or thread in ours)]


def _drain(publisher: Pending, begin: float) -> None:
    """Wait for a publisher, at most its timeout from `begin` on; log a line after a few seconds."""

    def left() -> float:
        return max(0.0, begin + publisher.timeout - time.monotonic())

    if not publisher.drain(min(left(), _SILENT_SECONDS)) and (seconds := left()):
        _log.warning(
            "%s is still writing: waiting at most %.0f s for it; interrupt to end now",
            publisher.name,
            seconds,
        )
        publisher.drain(seconds)


def _report_losses() -> None:
    """Log each state that is not stored."""
    while _open:
        with suppress(KeyError):  # another thread took the last publisher, and reports it
            for loss in _open.pop().losses():
                _log.error(loss)


# `threading` calls its exit functions before it joins other threads. `atexit` functions run after
# that, when no thread can be started any more. `concurrent.futures` uses the same private function.
getattr(threading, "_register_atexit", atexit.register)(_main_thread_ends)
atexit.register(_report_losses)
# A forked child has copies of the publishers, but not their threads: it must not wait for them.
os.register_at_fork(after_in_child=_open.clear)
