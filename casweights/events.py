"""Progress and results leave the core as events; who listens decides what to do with them."""

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
    """A stretch of work whose progress is counted in bytes of model data."""

    COMMIT = "commit"
    CHECKOUT = "checkout"
    LOAD = "load"
    VERIFY = "verify"
    REPACK = "repack"
    TRANSFER = "transfer"


class Reporter:
    """Receives events. The methods do nothing: override those you care for.

    They are called in order, on the thread that called casweights (of a `Publisher`, on the one
    that works for it), and should return quickly.
    """

    def started(self, stage: Stage, total: int) -> None:
        """A stage begins that will handle `total` bytes."""

    def advanced(self, stage: Stage, nbytes: int) -> None:
        """A further `nbytes` bytes of the stage are done."""

    def finished(self, stage: Stage) -> None:
        """The stage has ended, with success or not."""

    def committed(self, stats: CommitStats) -> None:
        """A version has become visible."""

    def checked_out(self, stats: CheckoutStats) -> None:
        """A version is in place."""

    def transferred(self, stats: TransferStats) -> None:
        """Versions have come to another store, and branches and tags were moved there."""

    def warned(self, code: str, message: str) -> None:
        """Something succeeds, and its result will not do what people expect of it.

        Args:
            code: The `ErrorCode` of the error that it will lead to.
            message: What is wrong, and what to do.
        """

    def published(self, stats: PublishStats) -> None:
        """A version of live tensors has become visible."""

    def polled(self, stats: PollStats) -> None:
        """A follower has looked where its branch is."""

    def synced(self, stats: SyncStats) -> None:
        """Live tensors have been brought to a version."""
