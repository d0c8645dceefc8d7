"""One event of each kind, with distinct values."""

from __future__ import annotations

import inspect
from typing import Any

from casweights.events import Reporter, Stage
from casweights.ids import SnapshotId
from casweights.results import (
    CheckoutStats,
    CommitStats,
    PollStats,
    PublishStats,
    SyncStats,
    TransferStats,
)

OLD, NEW = SnapshotId(b"\x01" * 32), SnapshotId(b"\xab" * 32)

COMMIT = CommitStats(
    snapshot=OLD,
    total_bytes=2_000_000,
    new_bytes=1_000_000,
    stored_bytes=500_000,
    chunks=40,
    new_chunks=20,
    packs=1,
)
CHECKOUT = CheckoutStats(
    snapshot=OLD,
    files=5,
    written_files=3,
    deleted_files=2,
    total_bytes=2_000_000,
    fetched_bytes=300_000,
)
TRANSFER = TransferStats(
    snapshots=7,
    packs=4,
    nbytes=1_250_000,
    refs={"heads/main": NEW, "tags/v1": OLD},
    tips={"heads/main": NEW},
)
PUBLISH = PublishStats(
    snapshot=NEW,
    step=120,
    skipped=(118, None),
    total_bytes=4_000_000,
    stored_bytes=20_000,
    elements=2000,
    changed_elements=15,
    scan_seconds=0.002,
    encode_seconds=0.02,
    upload_seconds=2.0,
)
POLL = PollStats(snapshot=NEW, seconds=0.25)
SYNC = SyncStats(
    snapshot=NEW,
    previous=OLD,
    lag=3,
    total_bytes=4_000_000,
    fetched_bytes=25_000,
    elements=2000,
    changed_elements=30,
    download_seconds=0.5,
    decode_seconds=0.05,
    verify_seconds=0.4,
    apply_seconds=0.004,
)

EVENTS: dict[str, tuple[Any, ...]] = {
    "started": (Stage.COMMIT, 100),
    "advanced": (Stage.COMMIT, 10),
    "finished": (Stage.COMMIT,),
    "committed": (COMMIT,),
    "checked_out": (CHECKOUT,),
    "transferred": (TRANSFER,),
    "warned": ("bad-index", "an index names a shard that is not there"),
    "published": (PUBLISH,),
    "polled": (POLL,),
    "synced": (SYNC,),
}


def methods() -> list[str]:
    """The names of all events that a reporter receives."""
    return [name for name, _ in inspect.getmembers(Reporter, inspect.isfunction)]
