"""Reporters of the long commands: they keep results and show progress."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from casweights.cli._output import Mode
from casweights.events import Reporter, Stage
from casweights.instrumentation.tee import Tee

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.cli._output import Output
    from casweights.results import CheckoutStats, CommitStats

_INTERVAL = 1.0  # seconds between two lines of JSON
_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables


class Results(Tee):
    """Keeps the results of commands, and passes every event on to the display of progress.

    Attributes:
        commit: Result of the commit; set when it has succeeded.
        checkout: Result of the checkout; set when it has succeeded.
    """

    commit: CommitStats
    checkout: CheckoutStats

    def __init__(self, out: Output) -> None:
        self._out = out
        self._progress = _progress(out)
        super().__init__(self._progress)

    def committed(self, stats: CommitStats) -> None:
        super().committed(stats)
        self.commit = stats

    def warned(self, code: str, message: str) -> None:
        super().warned(code, message)
        self._out.warning(code, message)

    def checked_out(self, stats: CheckoutStats) -> None:
        super().checked_out(stats)
        self.checkout = stats


class JsonProgress(Reporter):
    """Writes the progress of a stage as a line of JSON about once a second."""

    def __init__(self, out: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock

    def started(self, stage: Stage, total: int) -> None:
        self._total, self._done = total, 0
        self._next = self._clock() + _INTERVAL

    def advanced(self, stage: Stage, nbytes: int) -> None:
        self._done += nbytes
        if self._clock() >= self._next:
            self._next = self._clock() + _INTERVAL
            data = {"stage": stage, "done_bytes": self._done, "total_bytes": self._total}
            self._out.event("progress", data)


def _progress(out: Output) -> Reporter:
    if out.mode is Mode.JSON:
        return JsonProgress(out)
    unwanted = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in _TRUE
    if out.mode is Mode.QUIET or unwanted or not sys.stderr.isatty():
        return Reporter()
    # Only bars need tqdm: commands in a pipe start without it.
    from casweights.instrumentation.progress import ProgressBars

    return ProgressBars()
