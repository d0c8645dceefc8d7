"""A clock for tests in which writers wait for each other, and for listings."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class Time(threading.local):
    """A clock that advances only by sleeping, by at least a second, so that writers poll rarely.

    Each thread has its own clock: the sleep of one writer does not bring another closer to its
    timeout.
    """

    _now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(seconds, 1.0)


def stop_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writers of refs wait by a clock of their own."""
    clock = Time()
    for module in ("reflog", "listing"):
        monkeypatch.setattr(f"casweights.database.{module}.time", clock)
