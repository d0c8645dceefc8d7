"""Transfers that no longer move are given up."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def watched(
    progress: Callable[[], object], abort: Callable[[], object], limit: float
) -> Iterator[None]:
    """Call `abort` when `progress` gives the same answer for `limit` seconds.

    Raises:
        TimeoutError: It was aborted. The body may not have noticed: to some transfers that is an
            end like any other.
    """
    stalled, done = threading.Event(), threading.Event()

    def run() -> None:
        seen, since = progress(), time.monotonic()
        while not done.wait(limit / 4):
            now = progress()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= limit:
                stalled.set()
                with suppress(Exception):  # it may have ended in this moment
                    abort()
                return

    thread = threading.Thread(target=run, name="casweights-watch", daemon=True)
    thread.start()
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if not stalled.is_set():
            raise
        failure = error
    finally:
        done.set()
        thread.join()
    if stalled.is_set():
        raise TimeoutError(f"nothing moved for {limit:g} s") from failure
