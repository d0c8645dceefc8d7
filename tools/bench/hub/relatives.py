"""Counts the requests of a commit that finds its base in a bucket, and of one that declares it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import casweights
from casweights.config import KiB, RemoteOptions, StoreConfig
from tools.bench.histories import HistoryStore
from tools.bench.hub.clients import fresh_hub, note_progress
from tools.bench.hub.plain import create_bucket, upload
from tools.bench.models import base, tuned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.hub.jobs import Options
    from tools.bench.hub.probe import Probe, Spent

CONFIG = StoreConfig(chunk_size=64 * KiB)  # so that each tensor of a small model has its chunks
_BUCKET, _PREFIX = "me/weights", "variants"
_URL = f"hf://buckets/{_BUCKET}/{_PREFIX}"
_BATCH = 1000
_NO_CACHE = RemoteOptions(disk_cache=0)


def count_requests(
    work: Path, count: int, numbers: Sequence[int]
) -> tuple[list[Spent], list[Spent]]:
    """Return what fine-tunes cost in a bucket, by a new process each.

    Args:
        work: A directory for the bucket.
        count: The number of unrelated models in the bucket.
        numbers: Those of the models that are tuned.

    Returns:
        The costs without a parent, and with what each was made from as its parent.
    """
    with fresh_hub(work) as clients:
        note_progress(f"{count:,} models in a bucket")
        clients.run("relatives.build", count=count)
        declared = [f"base-{number}" for number in numbers]
        return (
            [clients.spent("relatives.commit", number=n, parent=None) for n in numbers],
            [
                clients.spent("relatives.commit", number=n, parent=parent)
                for n, parent in zip(numbers, declared, strict=True)
            ],
        )


def build(_: Probe, options: Options) -> Any:
    """Make unrelated models in memory, and upload them."""
    objects = filled(options["count"])
    create_bucket(_BUCKET)
    named = ((data, f"{_PREFIX}/{name}") for name, data in objects.objects())
    while batch := list(islice(named, _BATCH)):
        upload(_BUCKET, batch)


def filled(count: int) -> HistoryStore:
    """Return a store with many unrelated models, each on a branch of its own."""
    objects = HistoryStore(exclusive=False)
    with casweights.open(objects, create=True, config=CONFIG) as store:
        for number in range(count):
            store.commit(base(number), branch=f"base-{number}")
        store.maintain()
    return objects


def commit(probe: Probe, options: Options) -> Any:
    """Count the requests of a commit by a fresh process."""
    number, parent = options["number"], options["parent"]
    new = tuned(base(number), 2 * number + (parent is None))
    branch = f"{'found' if parent is None else 'declared'}/{number}"

    def run() -> None:
        with casweights.open(_URL, remote=_NO_CACHE) as store:
            store.commit(new, branch=branch, parent=parent)

    return probe.measure(run).to_json()
