"""Clocks that go on while the machine sleeps: what was seen before may be gone after it."""

from __future__ import annotations

import time
from typing import NamedTuple, Self

# Linux and macOS stop the clock of `time.monotonic` while the machine sleeps.
_UPTIME = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def uptime() -> float:
    """Return seconds since a time in the past, those of sleep included; it never goes back."""
    if _UPTIME is None:
        return time.monotonic()
    return max(time.monotonic(), time.clock_gettime(_UPTIME))


class Moment(NamedTuple):
    """A point in time by two clocks; it may be sent to another process.

    Attributes:
        wall: The time of day, in seconds since 1970. It goes on while a virtual machine is stopped.
        up: The `uptime`. It goes on when somebody sets the time of day back.
    """

    wall: float
    up: float

    @classmethod
    def now(cls) -> Self:
        """Return the present moment."""
        return cls(time.time(), uptime())

    @classmethod
    def earliest(cls, moments: list[Moment]) -> Moment:
        """Return the earliest of some moments in other processes, by the time of day."""
        return Moment(min((moment.wall for moment in moments), default=time.time()), uptime())

    def age(self) -> float:
        """Return the seconds since then, by the clock that says more."""
        return max(time.time() - self.wall, uptime() - self.up)
