"""Metrics for Prometheus."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from casweights.events import Reporter

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    raise ImportError(
        "casweights.instrumentation.prometheus needs prometheus_client: "
        "pip install 'casweights[metrics]'"
    ) from error

if TYPE_CHECKING:
    from casweights.results import (
        CheckoutStats,
        CommitStats,
        PollStats,
        PublishStats,
        SyncStats,
        TransferStats,
    )

# Seconds, from the milliseconds of a pause to the minutes of a first upload.
_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_RECENT = 1024  # versions to remember; far more than lie between the two reports of one version


class Metrics(Reporter):
    """Counts events in a registry of prometheus_client; ``docs/metrics.md`` lists the metrics.

    One instance serves all stores, publishers and subscribers of a process. A version counts once,
    even if it is reported as committed and as published.

    Args:
        registry: The registry for the metrics; by default that of ``prometheus_client``.
        namespace: The prefix of the metrics' names.

    Raises:
        ValueError: The registry has metrics of these names, or `namespace` cannot be in a name.

    Example:
        >>> prometheus_client.start_http_server(9000)
        >>> publisher = casweights.Publisher("hf://buckets/me/weights", reporter=Metrics())
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, namespace: str = "casweights"
    ) -> None:
        registry = REGISTRY if registry is None else registry
        counter = partial(Counter, namespace=namespace, registry=registry)
        gauge = partial(Gauge, namespace=namespace, registry=registry)
        histogram = partial(Histogram, namespace=namespace, registry=registry)
        self._uploaded = counter(
            "uploaded_bytes", "Bytes stored for versions, encoded.", unit="bytes"
        )
        self._downloaded = counter(
            "downloaded_bytes", "Stored bytes read for checkouts and syncs.", unit="bytes"
        )
        self._transferred = counter(
            "transferred_bytes", "Bytes transferred from one store to another.", unit="bytes"
        )
        self._versions = counter("versions", "Versions handled.", ["operation"])
        self._polls = counter("polls", "Reads of a branch's head.")
        self._skipped = counter(
            "skipped_steps", "Published steps left out in favour of later ones."
        )
        self._seconds = histogram(
            "stage_seconds", "Duration of a stage.", ["stage"], unit="seconds", buckets=_BUCKETS
        )
        self._density = gauge(
            "density_ratio",
            "Share of elements that changed in the last version.",
            ["operation"],
            unit="ratio",
        )
        self._lag = gauge("lag_versions", "Moves of the branch that the last sync covered.")
        self._step = gauge("last_step", "Step number of the last published version.")
        self._lag.set(math.nan)  # unknown; the default of 0 would be a real value
        self._step.set(math.nan)
        self._lock = Lock()
        self._recent: deque[bytes] = deque(maxlen=_RECENT)

    def committed(self, stats: CommitStats) -> None:
        self._count(stats)

    def checked_out(self, stats: CheckoutStats) -> None:
        self._versions.labels("checkout").inc()
        self._downloaded.inc(stats.fetched_bytes)

    def transferred(self, stats: TransferStats) -> None:
        self._versions.labels("transfer").inc(stats.snapshots)
        self._transferred.inc(stats.nbytes)

    def published(self, stats: PublishStats) -> None:
        self._count(stats)
        self._skipped.inc(len(stats.skipped))
        self._density.labels("publish").set(_density(stats))
        if stats.step is not None:
            self._step.set(stats.step)
        self._observe(
            scan=stats.scan_seconds, encode=stats.encode_seconds, upload=stats.upload_seconds
        )

    def polled(self, stats: PollStats) -> None:
        self._polls.inc()
        self._observe(poll=stats.seconds)

    def synced(self, stats: SyncStats) -> None:
        self._versions.labels("sync").inc()
        self._downloaded.inc(stats.fetched_bytes)
        self._density.labels("sync").set(_density(stats))
        self._lag.set(stats.lag)
        self._observe(
            download=stats.download_seconds,
            decode=stats.decode_seconds,
            verify=stats.verify_seconds,
            apply=stats.apply_seconds,
        )

    def _count(self, stats: CommitStats | PublishStats) -> None:
        """Count a stored version, unless it was counted before."""
        # A publisher's version is reported twice: by its commit, and as published.
        with self._lock:
            if stats.snapshot in self._recent:
                return
            self._recent.append(stats.snapshot)
        self._versions.labels("commit").inc()
        self._uploaded.inc(stats.stored_bytes)

    def _observe(self, **seconds: float) -> None:
        """Add the durations of stages to the histogram."""
        for stage, duration in seconds.items():
            self._seconds.labels(stage).observe(duration)


def _density(stats: PublishStats | SyncStats) -> float:
    """Return the share of elements that changed; NaN if it is unknown."""
    if stats.changed_elements is None:
        return math.nan  # replaces the value of an earlier version, which would mislead
    return stats.changed_elements / max(stats.elements, 1)
