"""Log lines through Python's `logging`."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from casweights.events import Reporter

if TYPE_CHECKING:
    from casweights.results import (
        CheckoutStats,
        CommitStats,
        PollStats,
        PublishStats,
        SyncStats,
        TransferStats,
    )

    Stats = CheckoutStats | CommitStats | PollStats | PublishStats | SyncStats | TransferStats

_MB = 1_000_000  # megabytes as storage providers count them


class Logs(Reporter):
    """Writes a line for each result to the logger ``casweights``.

    Results are logged at ``INFO``, warnings at ``WARNING``, and polls at ``DEBUG``; progress is not
    logged. For structured loggers, the attributes of each record include the fields of the event's
    stats, with IDs in hexadecimal, and the event's name as ``event_name``.

    Example:
        >>> logging.basicConfig(level=logging.INFO)
        >>> store = casweights.open("./store", reporter=Logs())
    """

    def __init__(self) -> None:
        self._log = logging.getLogger("casweights")

    def committed(self, stats: CommitStats) -> None:
        self._log.info(
            "committed %.12s: %d new chunks, %.2f MB stored for %.2f MB",
            stats.snapshot,
            stats.new_chunks,
            stats.stored_bytes / _MB,
            stats.total_bytes / _MB,
            extra=_extra("committed", stats),
        )

    def checked_out(self, stats: CheckoutStats) -> None:
        self._log.info(
            "checked out %.12s: %d of %d files written, %d deleted, %.2f MB fetched for %.2f MB",
            stats.snapshot,
            stats.written_files,
            stats.files,
            stats.deleted_files,
            stats.fetched_bytes / _MB,
            stats.total_bytes / _MB,
            extra=_extra("checked_out", stats),
        )

    def transferred(self, stats: TransferStats) -> None:
        self._log.info(
            "transferred %.2f MB: versions %d, packs %d, moved %s",
            stats.nbytes / _MB,
            stats.snapshots,
            stats.packs,
            ", ".join(stats.refs) or "nothing",
            extra=_extra("transferred", stats),
        )

    def warned(self, code: str, message: str) -> None:
        self._log.warning("%s", message, extra={"event_name": "warned", "code": code})

    def published(self, stats: PublishStats) -> None:
        self._log.info(
            "published %.12s: step %s, skipped %d, %s changed, %.2f MB stored for %.2f MB, "
            "scan %.3f s, encode %.3f s, upload %.3f s",
            stats.snapshot,
            "unknown" if stats.step is None else stats.step,
            len(stats.skipped),
            _share(stats),
            stats.stored_bytes / _MB,
            stats.total_bytes / _MB,
            stats.scan_seconds,
            stats.encode_seconds,
            stats.upload_seconds,
            extra=_extra("published", stats),
        )

    def polled(self, stats: PollStats) -> None:
        self._log.debug(
            "polled: %.12s in %.3f s",
            stats.snapshot or "no branch",
            stats.seconds,
            extra=_extra("polled", stats),
        )

    def synced(self, stats: SyncStats) -> None:
        self._log.info(
            "synced %.12s: from %.12s, lag %d, %s changed, %.2f MB fetched for %.2f MB, "
            "download %.3f s, decode %.3f s, verify %.3f s, apply %.3f s",
            stats.snapshot,
            stats.previous or "unknown",
            stats.lag,
            _share(stats),
            stats.fetched_bytes / _MB,
            stats.total_bytes / _MB,
            stats.download_seconds,
            stats.decode_seconds,
            stats.verify_seconds,
            stats.apply_seconds,
            extra=_extra("synced", stats),
        )


def _share(stats: PublishStats | SyncStats) -> str:
    """Return the share of elements that changed, as text."""
    if stats.changed_elements is None:
        return "unknown share"
    return f"{100 * stats.changed_elements / max(stats.elements, 1):.3g}%"


def _extra(event: str, stats: Stats) -> dict[str, Any]:
    """Return the stats as attributes of a record, with types that JSON can express."""
    # `extra` must not replace the attributes of a record, like `name`: hence `event_name`.
    plain = {field.name: _plain(getattr(stats, field.name)) for field in fields(stats)}
    return {"event_name": event, **plain}


def _plain(value: Any) -> Any:
    """Return a field's value with IDs as text and tuples as lists."""
    if isinstance(value, bytes):  # an ID
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
