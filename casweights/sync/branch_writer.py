"""Encoding states and writing them as versions of a branch."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from casweights.config import DEFAULT_EXCLUDE
from casweights.content.files import scan
from casweights.operations.commit import Description, EncodedVersion, repeated, write_version
from casweights.operations.encode import encode_files
from casweights.sync.kept_state import KeptState
from casweights.sync.steps import EncodedStep

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.config import Compression
    from casweights.content.files import SourceFile
    from casweights.content.states import StateFile
    from casweights.database import Database
    from casweights.database.moves import Head
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.sync.mirror import Scan
    from casweights.sync.steps import CapturedStep, Label

# Files of a model's directory that would store its weights a second time.
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


class BranchWriter:
    """Encodes states and writes them as versions of one branch, each the parent of the next.

    The head of the branch is known, or in doubt after a failure::

        KNOWN ── write ──▶ KNOWN, with the version at the head
          │
          └── write fails ──▶ DOUBTFUL: the version may have become the head nevertheless
                                 │
                                 └── settle ──▶ KNOWN

    `encode`, `encode_captured`, `write` and `settle` have one caller at a time: the writer's thread
    while it works on a step, or a thread that captures a state while no step exists. `encode` and
    `write` need a known head, so call `settle` first. `version` and `before` may be called from
    any thread: a lock guards the head.

    Args:
        db: The store.
        branch: The branch.
        author: The author of the versions.
        compression: How chunks without a base are stored.
        extra: A directory whose files, except weights, are part of every version; None for none.

    Raises:
        StoreError: The head of the branch could not be read.
    """

    def __init__(
        self,
        db: Database,
        branch: str,
        *,
        author: str,
        compression: Compression,
        extra: Path | None,
    ) -> None:
        self._db = db
        self._branch = branch
        self._author = author
        self._compression = compression
        self._extra = extra
        self._lock = threading.Lock()  # guards the head and its version
        self._head = db.refs.head(branch, for_update=True)
        self._written: Snapshot | None = None  # the version at the head, once it is loaded
        self._doubtful: Snapshot | None = None  # a version that may have become the head

    @property
    def version(self) -> SnapshotId | None:
        """The version at the head; None if the branch does not exist yet."""
        with self._lock:
            return self._head.snapshot if self._head else None

    def before(self) -> Snapshot | None:
        """Load the version at the head, which is the parent of the next one; None without one."""
        with self._lock:
            head, written = self._head, self._written
        if head is None or (written is not None and written.id == head.snapshot):
            return written
        return self._db.snapshots.load(head.snapshot, with_locations=True)

    def settle(self) -> Snapshot | None:
        """Determine whether the version whose write failed became the head nevertheless.

        Returns:
            That version if it became the head, otherwise None.

        Raises:
            StoreError: The store could not be read; the head is still in doubt.
        """
        version = self._doubtful
        if version is None:
            return None
        head = self._db.refs.landed(self._branch, version.id)
        if head is not None:
            self._advance(head, version)
        self._doubtful = None
        return version if head is not None else None

    def encode(self, state: StateFile | KeptState, label: Label) -> EncodedVersion:
        """Encode a state as the next version, without moving the branch.

        Full packs are written to the store at once; only the last one stays in memory.
        """
        before = self.before()
        skipped = [number for number in label.skipped if number is not None]
        description = Description(
            parents=() if before is None else (before.id,),
            time=datetime.now(UTC),
            author=self._author,
            message=label.message,
            metadata=label.metadata | ({"skipped": skipped} if skipped else {}),
        )
        description.check(self._db.config)
        files: list[SourceFile] = [state]
        if self._extra is not None:
            files += scan(self._extra, exclude=(*DEFAULT_EXCLUDE, *_WEIGHT_FILES))
        encoded = encode_files(
            self._db,
            sorted(files, key=lambda file: file.path),
            parent=before,
            compression=self._compression,
            trusted=state if isinstance(state, KeptState) else None,
            begins=before is None,
        )
        return EncodedVersion.of(self._db, encoded.detached(), description)

    def encode_captured(self, step: CapturedStep) -> EncodedStep:
        """Encode a captured state, including earlier changes that no durable version has yet."""
        begin = time.monotonic()
        mirror, untried = step.mirror, step.mirror.is_settled
        claimed = self._claim(step)
        version = self.encode(KeptState(mirror, claimed), step.label)
        return EncodedStep(
            step.label,
            version,
            mirror,
            untried=untried,
            changed=claimed.changed,
            scan_seconds=step.scan_seconds,
            encode_seconds=time.monotonic() - begin,
        )

    def _claim(self, step: CapturedStep) -> Scan:
        """Return all changes since the last durable version, and mark them as being published."""
        # If the head stays in doubt, the changes must not be lost: the next claim includes them.
        try:
            landed = self.settle()
        except BaseException:
            step.mirror.put_off(step.scan)
            raise
        if landed is not None:
            step.mirror.publish(landed)
        return step.mirror.claim(step.scan)

    def write(self, step: EncodedStep) -> None:
        """Make a version durable and move the branch to it.

        Raises:
            ConflictError: Another writer moved the branch.
            StoreError: The store could not be written; the head is in doubt.
        """
        version = step.version.snapshot
        # A state that is equal to the head, with equal metadata, needs no version of its own.
        there = repeated(self._db, version, self._head)
        if there is not None and self._head is not None:
            head, version = self._head, there
        else:
            self._doubtful = version
            head = write_version(
                self._db, step.version, self._branch, self._head, assume_absent=step.untried
            )
        if step.mirror is not None:
            step.mirror.publish(version)
        self._advance(head, version)

    def _advance(self, head: Head, version: Snapshot) -> None:
        """Record that a version is at the head of the branch."""
        with self._lock:
            self._head, self._written, self._doubtful = head, version, None
