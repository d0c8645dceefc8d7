"""The time of a local Hub, which tests may drive."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.testing.hub.journal import Event, Journal


def timestamp(microseconds: int) -> str:
    """A time as the Hub writes it, with microseconds."""
    seconds, rest = divmod(microseconds, 1_000_000)
    when = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Clock:
    """The server's time in microseconds: that of this machine until a test drives it.

    It never goes back. A Hub that starts again on the same folder goes on with the same clock.

    Args:
        journal: Keeps what tests did to the clock.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._last = 0
        self._ahead = 0
        self._held: int | None = None

    def apply(self, event: Event) -> None:
        """Take over an event of the journal."""
        self._ahead, self._held = event["ahead"], event["held"]
        self.pass_by(event["moment"])

    def now(self) -> int:
        """The time, which is not before any that `tick` gave."""
        with self._lock:
            return self._now()

    def tick(self) -> int:
        """A time later than all before."""
        with self._lock:
            self._last = max(self._now(), self._last + 1)
            return self._last

    def pass_by(self, moment: int) -> None:
        """Go on after a time that was given out by an earlier run."""
        with self._lock:
            self._last = max(self._last, moment)

    def advance(self, seconds: float) -> None:
        """Let time pass at once.

        Raises:
            ValueError: If the time is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back, advance({seconds}) was asked for")
        microseconds = round(seconds * 1_000_000)
        with self._lock:
            if self._held is None:
                self._ahead += microseconds
            else:
                self._held = self._now() + microseconds
            self._keep()

    def hold(self) -> None:
        """Stand still from now on, except when `advance` is called.

        Each change of a bucket still gets a time of its own, a microsecond after the one before.
        """
        with self._lock:
            self._held = self._now()
            self._keep()

    def _now(self) -> int:
        time_here = time.time_ns() // 1000 + self._ahead
        return max(self._last, time_here if self._held is None else self._held)

    def _keep(self) -> None:
        moment = self._now()
        event = {"table": "clock", "moment": moment, "ahead": self._ahead, "held": self._held}
        self._journal.append([event])
