"""The tensors of a running model, and the version that they hold."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from casweights.errors import ErrorCode, StaleError
from casweights.results import SyncStats
from casweights.sync.apply import TornError, apply

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from casweights.database import Database
    from casweights.events import Reporter
    from casweights.ids import SnapshotId
    from casweights.repository import Ref
    from casweights.sync.branch_reader import Resolved
    from casweights.sync.fetch import Fetcher, Prepared
    from casweights.sync.target import Target

_UNKNOWN = "no known version"  # in messages


class Replica:
    """Live tensors that go from version to version.

    ::

        UNKNOWN ─────── apply ─────▶ AT A VERSION ── apply ──▶ AT A VERSION
           ▲                            │      │
           ├─ bind or verify: others ───┘      │
           │  wrote, or other tensors          │
           │                                   ▼
           └── bind: as above ────────────── TORN ── apply ──▶ AT A VERSION
                                             (`apply` broke off after changes that `memory`
                                             cannot hold were written)

    `bind` comes first in each call; then `prepare`, which writes nothing, and `apply`. One thread
    at a time may call them: `Subscriber` holds its lock. `version` may be read at any time. Any
    other failure leaves the tensors and the state as they were. What was prepared is kept until
    it is applied, or until `bind` or `verify` finds other tensors.

    Args:
        db: The store.
        target: The tensors.
        fetcher: Fetches what changes in them.
        reporter: Receives `Reporter.synced`.

    Attributes:
        version: The version that the tensors hold, bit for bit; None if it is unknown.
        prepared: Changes that `apply` only has to write.
    """

    def __init__(self, db: Database, target: Target, fetcher: Fetcher, reporter: Reporter) -> None:
        self._db = db
        self._target = target
        self._fetcher = fetcher
        self._reporter = reporter
        self.version: SnapshotId | None = None
        self.prepared: Prepared | None = None
        self._position: int | None = None  # of `version` on the branch, where it is known
        self._torn = False

    def bind(self, target: torch.nn.Module | Mapping[str, Any] | None) -> None:
        """Look at the tensors; if others wrote to them, their version becomes unknown."""
        if not self._target.bind(target):
            self.version = self.prepared = None
            self._torn = False

    def prepare(self, wanted: Resolved) -> Prepared:
        """Fetch, decode and verify what changes on the way to a version."""
        version, position = wanted
        if self.prepared is None or self.prepared.version.id != version:
            self.prepared = None  # its memory is needed
            snapshot = self._db.snapshots.load(version, with_locations=True)
            self.prepared = self._fetcher.prepare(snapshot, position)
        return self.prepared

    def check_holds(self, version: SnapshotId, ref: Ref) -> None:
        """Refuse to go on from another version than this.

        Raises:
            StaleError: The tensors hold another one; names the `ref` that was given.
        """
        if version != self.version:
            raise self._stale(
                f", not {ref}: sync it without `expect`, which finds the shortest way from what it "
                "holds"
            )

    def _stale(self, why: str) -> StaleError:
        if self._torn:
            return StaleError(
                ErrorCode.TORN,
                "the target is a mixture of two versions, because a sync broke off: sync it "
                "without `expect`",
            )
        return StaleError(ErrorCode.STALE, f"the target holds {self.version or _UNKNOWN}{why}")

    def verify(self) -> None:
        """Hash all tensors that the version has, and compare.

        Raises:
            StaleError: They differ, or the version is unknown.
        """
        version = self.version
        self._target.bind()
        for live in self._target.tensors:
            live.forget()
        self._target.identify()
        self.prepared = None
        if version is None:
            raise self._stale(" to compare with: sync it first")
        fits = self._target.fit(self._db.snapshots.load(version))
        wrong = [fit.name for fit in fits if any(True for _ in fit.wanted())]
        if wrong:
            self.version = None
            raise StaleError(
                ErrorCode.STALE,
                f"{len(wrong)} tensors are not those of {version}, {wrong[0]!r} is one: "
                "something else wrote to them. Sync again",
            )

    def apply(self, prepared: Prepared) -> SyncStats:
        """Write what was prepared: all of it or, where it fits into memory, nothing."""
        version, previous = prepared.version.id, self.version
        self.prepared = self.version = None
        begin = time.monotonic()
        try:
            with self._target.writing(), closing(self._fetcher.stream(prepared)) as late:
                changed = apply(prepared, late, self._db.workers)
        except TornError as torn:
            self._torn = True
            torn.cause.add_note(
                f"the tensors are a mixture now, on the way to {version}: do not use them before a "
                "sync that succeeds. It goes on from there"
            )
            raise torn.cause from None
        except BaseException:
            self.version = previous
            raise
        seconds = time.monotonic() - begin
        self.version, self._torn = version, False
        self._db.snapshots.retain(prepared.version)
        return self._report(prepared, previous, changed, seconds)

    def _report(
        self, prepared: Prepared, previous: SnapshotId | None, changed: int, seconds: float
    ) -> SyncStats:
        old, self._position = self._position, prepared.position
        known = previous is not None and old is not None and prepared.position is not None
        spent = prepared.spent
        stats = SyncStats(
            snapshot=prepared.version.id,
            previous=previous,
            lag=(prepared.position or 0) - (old or 0) if known else 0,
            total_bytes=self._target.nbytes,
            fetched_bytes=spent.nbytes,
            elements=sum(live.nbytes // live.width for live in self._target.tensors),
            changed_elements=changed,
            download_seconds=spent.read,
            decode_seconds=spent.decode,
            verify_seconds=spent.check,
            apply_seconds=seconds,
        )
        self._reporter.synced(stats)
        return stats
