"""Aborts transfers that make no progress."""

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
    """Call `abort` if `progress` returns the same value for `limit` seconds of a ``with`` block.

    Another thread watches; it ends with the block.

    Raises:
        TimeoutError: `abort` was called. Raised even if the block ended without an error, because
            some transfers end normally when they are aborted.
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
                with suppress(Exception):  # the transfer may have ended at this moment
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
        raise TimeoutError(f"the transfer made no progress for {limit:g} s") from failure
