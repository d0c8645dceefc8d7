"""Events: the library reports progress, results and warnings to a `Reporter`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.results import (
        CheckoutStats,
        CommitStats,
        PollStats,
        PublishStats,
        SyncStats,
        TransferStats,
    )


class Stage(StrEnum):
    """A part of the work whose progress is counted in bytes of model data."""

    COMMIT = "commit"
    CHECKOUT = "checkout"
    LOAD = "load"
    VERIFY = "verify"
    REPAIR = "repair"
    REPACK = "repack"
    MAINTAIN = "maintain"
    FOLD = "fold"
    TRANSFER = "transfer"


class Reporter:
    """Receives events. All methods do nothing: override those that you need.

    The methods are called in order, on the thread that called casweights; a `Publisher` calls them
    on its own thread. They must return quickly, because the work waits for them.

    Example:
        >>> class Print(casweights.Reporter):
        ...     def committed(self, stats):
        ...         print(f"{stats.snapshot}: {stats.stored_bytes} bytes stored")
        >>> store = casweights.open("./store", reporter=Print())
    """

    def started(self, stage: Stage, total: int) -> None:
        """A stage begins, with `total` bytes to process."""

    def advanced(self, stage: Stage, nbytes: int) -> None:
        """Another `nbytes` bytes of the stage are done."""

    def finished(self, stage: Stage) -> None:
        """The stage has ended, successfully or not."""

    def committed(self, stats: CommitStats) -> None:
        """A version has become visible."""

    def checked_out(self, stats: CheckoutStats) -> None:
        """The files of a version have been written."""

    def transferred(self, stats: TransferStats) -> None:
        """Versions have been copied to another store, and its branches and tags moved."""

    def warned(self, code: str, message: str) -> None:
        """An operation succeeds, but its result may surprise.

        Args:
            code: The `ErrorCode` for the problem; using the result may raise an error with it.
            message: What is wrong, and what to do.
        """

    def published(self, stats: PublishStats) -> None:
        """A publisher has made a version of live tensors visible."""

    def polled(self, stats: PollStats) -> None:
        """A subscriber has looked up the head of its branch."""

    def synced(self, stats: SyncStats) -> None:
        """A subscriber has brought live tensors to a version."""
