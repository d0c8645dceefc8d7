"""Waits for listings: in some stores they show what was written only after a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.stores.base import ObjectInfo, ObjectStore

T = TypeVar("T")

LISTING_SECONDS = 30.0  # time within which a listing must show an object that was put before
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 2.0  # seconds


def find_listed(store: ObjectStore, name: str) -> ObjectInfo | None:
    """Wait until a listing shows an object that was just put; return None if none does."""
    for listed in looks(lambda: store.list(name)):
        for info in listed:
            if info.name == name:
                return info
    return None


def looks(look: Callable[[], T]) -> Iterator[T]:
    """Yield what a function returns, call after call, until listings must show everything."""
    deadline, left = time.monotonic() + LISTING_SECONDS, pauses()
    while True:
        yield look()
        if time.monotonic() > deadline:
            return
        time.sleep(next(left))


def pauses() -> Iterator[float]:
    """Yield the seconds to sleep before each further listing, twice as many each time."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _MAX_PAUSE)
