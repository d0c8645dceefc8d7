"""Transfers that no longer move are given up."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Watch:
    """What became of a watched transfer.

    Attributes:
        stalled: Whether it was given up.
        why: In words.
    """

    def __init__(self, limit: float) -> None:
        self.stalled = False
        self.why = f"nothing moved for {limit:g} s"


@contextmanager
def watched(
    progress: Callable[[], object], abort: Callable[[], object], limit: float
) -> Iterator[Watch]:
    """Call `abort` when `progress` gives the same answer for `limit` seconds.

    Raises:
        TimeoutError: It was aborted, and the body failed for it.
    """
    watch, done = Watch(limit), threading.Event()

    def run() -> None:
        seen, since = progress(), time.monotonic()
        while not done.wait(limit / 4):
            now = progress()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= limit:
                watch.stalled = True
                with suppress(Exception):  # it may have ended in this moment
                    abort()
                return

    thread = threading.Thread(target=run, name="casweights-watch", daemon=True)
    thread.start()
    try:
        yield watch
    except Exception as error:
        if watch.stalled:
            raise TimeoutError(watch.why) from error
        raise
    finally:
        done.set()
        thread.join()
