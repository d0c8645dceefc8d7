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
    """Brings live tensors from version to version, and knows which one they hold.

    The tensors are in one of three states::

        UNKNOWN ─────── apply ─────▶ AT A VERSION ── apply ──▶ AT A VERSION
           ▲                            │      │
           ├─ bind or verify: other ────┘      │
           │  code wrote, or other tensors     │
           │                                   ▼
           └── bind: as above ────────────── TORN ── apply ──▶ AT A VERSION
                                             (`apply` failed after it had written changes that
                                             exceed `memory`, or could not be undone)

    Call `bind` first each time, then `prepare`, which writes nothing, and `apply`. One thread at a
    time may call them: `Subscriber` holds its lock. `version` may be read at any time. Any other
    failure leaves the tensors and the state as they were. Prepared changes are kept until they are
    applied, or until `bind` or `verify` finds other tensors.

    Args:
        db: The store.
        target: The tensors.
        fetcher: Fetches the changes.
        reporter: Receives `Reporter.synced`.

    Attributes:
        version: The version that the tensors hold, bit for bit; None if it is unknown.
        prepared: Changes that are fetched and only have to be written; None without such changes.
    """

    def __init__(self, db: Database, target: Target, fetcher: Fetcher, reporter: Reporter) -> None:
        self._db = db
        self._target = target
        self._fetcher = fetcher
        self._reporter = reporter
        self.version: SnapshotId | None = None
        self.prepared: Prepared | None = None
        self._position: int | None = None  # of `version` on the branch, if known
        self._torn = False

    def bind(self, target: torch.nn.Module | Mapping[str, Any] | None) -> None:
        """Look at the tensors, of `target` or of the last call.

        If other code wrote to them, or they are not the same tensors, their version becomes
        unknown and prepared changes are dropped.
        """
        if not self._target.bind(target):
            self.version = self.prepared = None
            self._torn = False

    def prepare(self, wanted: Resolved) -> Prepared:
        """Fetch, decode and verify the changes to a version; keep and return them.

        Raises:
            NotFoundError: The store does not contain the version, or no longer.
        """
        version, position = wanted
        if self.prepared is None or self.prepared.version.id != version:
            self.prepared = None  # free its memory before the next changes are fetched
            with self._db.history.reading(version) as snapshot:
                self.prepared = self._fetcher.prepare(snapshot, position)
        return self.prepared

    def check_holds(self, version: SnapshotId, ref: Ref) -> None:
        """Check that the tensors hold a version.

        Args:
            version: The version.
            ref: The caller's name of the version, for the message.

        Raises:
            StaleError: The tensors hold another version, or no known one.
        """
        if version != self.version:
            raise self._stale(f", not {ref}: sync it without `expect`, which works from any state")

    def _stale(self, why: str) -> StaleError:
        """Return the error for tensors that do not hold the expected version."""
        if self._torn:
            return StaleError(
                ErrorCode.TORN,
                "the target is a mixture of two versions because a sync failed halfway: sync it "
                "without `expect`",
            )
        return StaleError(ErrorCode.STALE, f"the target holds {self.version or _UNKNOWN}{why}")

    def verify(self) -> None:
        """Hash all tensors that are part of the version, and compare them with it.

        Small tensors in a chunk that the target has only in part are compared with the store.

        Raises:
            StaleError: The tensors differ from the version, or the version is unknown.
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        version = self.version
        self._target.bind()
        for live in self._target.tensors:
            live.forget()
        self.prepared = None
        if version is None:
            raise self._stale(" to compare with: sync it first")
        fits = self._target.fit(self._db.snapshots.load(version, with_locations=True))
        self._target.identify(fits)
        unknown = [one for fit in fits for one in fit.wanted() if one.is_unknown]
        self._fetcher.differing(unknown)
        wrong = [fit.name for fit in fits if any(True for _ in fit.wanted())]
        if wrong:
            self.version = None
            raise StaleError(
                ErrorCode.STALE,
                f"{len(wrong)} tensors differ from version {version}, among them {wrong[0]!r}: "
                "other code wrote to them. Sync again",
            )

    def apply(self, prepared: Prepared) -> SyncStats:
        """Write prepared changes to the tensors, and report it.

        A failure leaves the tensors as they were, unless late changes were written already, or
        undoing fails, too. Then the tensors are torn, and the error has a note that says so.
        """
        with self._db.history.explaining(prepared.version.id):  # late changes are read only now
            return self._apply(prepared)

    def _apply(self, prepared: Prepared) -> SyncStats:
        version, previous = prepared.version.id, self.version
        # Another thread that reads `version` during the writing must not see the old one.
        self.prepared = self.version = None
        begin = time.monotonic()
        try:
            with self._target.writing(), closing(self._fetcher.stream(prepared)) as late:
                changed = apply(prepared, late, self._db.workers)
        except TornError as torn:
            self._torn = True
            torn.cause.add_note(
                f"the tensors are now a mixture of two versions, on the way to {version}: do not "
                "use them until a sync succeeds. The next sync continues from this state"
            )
            raise torn.cause from None
        except BaseException:
            self.version = previous
            raise
        seconds = time.monotonic() - begin
        self.version, self._torn = version, False
        self._db.snapshots.retain()
        return self._report(prepared, previous, changed, seconds)

    def _report(
        self, prepared: Prepared, previous: SnapshotId | None, changed: int, seconds: float
    ) -> SyncStats:
        """Report a sync, and return its figures."""
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
