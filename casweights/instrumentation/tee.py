"""Several reporters in place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.events import Reporter

if TYPE_CHECKING:
    from casweights.events import Stage
    from casweights.results import (
        CheckoutStats,
        CommitStats,
        PollStats,
        PublishStats,
        SyncStats,
        TransferStats,
    )


class Tee(Reporter):
    """Passes every event to several reporters, in order.

    Like that of a single reporter, an exception of one of them is not caught: it ends the operation
    that reported the event, and the following reporters do not receive the event.

    Args:
        reporters: The reporters that receive the events.

    Example:
        >>> store = casweights.open("./store", reporter=Tee(ProgressBars(), Logs()))
    """

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def started(self, stage: Stage, total: int) -> None:
        for reporter in self._reporters:
            reporter.started(stage, total)

    def advanced(self, stage: Stage, nbytes: int) -> None:
        for reporter in self._reporters:
            reporter.advanced(stage, nbytes)

    def finished(self, stage: Stage) -> None:
        for reporter in self._reporters:
            reporter.finished(stage)

    def committed(self, stats: CommitStats) -> None:
        for reporter in self._reporters:
            reporter.committed(stats)

    def checked_out(self, stats: CheckoutStats) -> None:
        for reporter in self._reporters:
            reporter.checked_out(stats)

    def transferred(self, stats: TransferStats) -> None:
        for reporter in self._reporters:
            reporter.transferred(stats)

    def warned(self, code: str, message: str) -> None:
        for reporter in self._reporters:
            reporter.warned(code, message)

    def published(self, stats: PublishStats) -> None:
        for reporter in self._reporters:
            reporter.published(stats)

    def polled(self, stats: PollStats) -> None:
        for reporter in self._reporters:
            reporter.polled(stats)

    def synced(self, stats: SyncStats) -> None:
        for reporter in self._reporters:
            reporter.synced(stats)
