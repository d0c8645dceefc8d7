"""The clock of a local Hub, which a test can hold and advance."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.testing.hub.journal import Event, Journal


def timestamp(microseconds: int) -> str:
    """Return a time in microseconds since the epoch as text, as the Hub writes it."""
    seconds, rest = divmod(microseconds, 1_000_000)
    when = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Clock:
    """The time of the server, in microseconds since the epoch.

    It follows the clock of this machine until a test holds or advances it. It never goes back,
    not even when a Hub is restarted on the same folder.

    Args:
        journal: The log of what tests do to the clock.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._last = 0  # the latest time that `tick` returned
        self._ahead = 0  # microseconds by which it is ahead of this machine
        self._held: int | None = None  # the time at which it stands still, if it does

    def apply(self, event: Event) -> None:
        """Apply an event of the journal to the clock."""
        self._ahead, self._held = event["ahead"], event["held"]
        self.pass_by(event["moment"])

    def now(self) -> int:
        """Return the time, which is never before the last result of `tick`."""
        with self._lock:
            return self._now()

    def tick(self) -> int:
        """Return a time that is later than every earlier result, for the next change."""
        with self._lock:
            self._last = max(self._now(), self._last + 1)
            return self._last

    def pass_by(self, moment: int) -> None:
        """Continue after a time that an earlier process has used."""
        with self._lock:
            self._last = max(self._last, moment)

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"seconds must be at least 0, got {seconds}: a clock cannot go back")
        microseconds = round(seconds * 1_000_000)
        with self._lock:
            if self._held is None:
                self._ahead += microseconds
            else:
                self._held = self._now() + microseconds
            self._keep()

    def hold(self) -> None:
        """Stop the clock; from now on only `advance` moves it.

        Each change of a bucket still gets a time of its own, a microsecond after the previous one.
        """
        with self._lock:
            self._held = self._now()
            self._keep()

    def _now(self) -> int:
        time_here = time.time_ns() // 1000 + self._ahead
        return max(self._last, time_here if self._held is None else self._held)

    def _keep(self) -> None:
        """Append the state of the clock to the journal."""
        moment = self._now()
        event = {"table": "clock", "moment": moment, "ahead": self._ahead, "held": self._held}
        self._journal.append([event])
