"""The replica's side: live tensors are brought to a version in place."""

from __future__ import annotations

import re
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from casweights.config import DEFAULT_BRANCH, MiB, RemoteOptions
from casweights.content.arguments import check_choice, to_list
from casweights.content.weights import Weights
from casweights.errors import (
    ClosedError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
    StaleError,
)
from casweights.ids import SnapshotId
from casweights.opening import open_repository
from casweights.repository import Repository
from casweights.results import PollStats, SyncStats
from casweights.sync.apply import TornError, apply
from casweights.sync.fetch import Fetcher
from casweights.sync.patches import to_patches, whole_tensors
from casweights.sync.target import Target
from casweights.system.handles import Handle, is_closed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    import torch

    from casweights.database.refs import Head
    from casweights.events import Reporter
    from casweights.repository import Ref
    from casweights.stores.base import ObjectStore
    from casweights.sync.fetch import Prepared
    from casweights.sync.patches import Patch
    from casweights.sync.target import KeyMap

Verify = Literal["full", "patch"]

_MEMORY = 64 * MiB
_READ_AHEAD = 32 * MiB  # replicas have little memory to spare, and read little at a time
_PATIENCE = 0.1  # of the time for which a branch has rested, until the next look at it


class Subscriber(Handle):
    """Brings the tensors of a running model to versions of a branch, in place.

    Only elements that differ are written; storages stay where they are. What a chunk of the
    target holds is known by its hash, so everything that the target has is a base for what it
    needs next, whichever version it is from: late joiners, missed versions, jumps back and other
    branches all take the way with the fewest bytes.

    A sync that fails leaves the target as it was. Only where a version changes more than fits into
    `memory` can it end halfway: then `version` is None, the error says so, and the next sync goes
    on from there.

    Args:
        store: A store, or how to open it.
        branch: The branch to follow.
        verify: ``"full"`` hashes every chunk that changes before any is written. ``"patch"``
            relies on the checksums of stored bytes, and on nobody else having written to the
            target, or to the store.
        include: Patterns of files, or of tensors, to take weights from; by default those that
            programs for models load, see `Repository.load`.
        strict: Whether target and version must have the same tensors. Otherwise those that only
            one of them has are left alone.
        key_map: The name in the version for a name in the target.
        memory: Bytes of decoded changes to hold between `prefetch` and `sync`.
        reporter: Receives `Reporter.polled` and `Reporter.synced`; by default that of the store.

    Raises:
        NotFoundError: There is no such store.
        InvalidInputError: An argument is none of those above.
        StoreError: The store could not be read.
    """

    usable_closed = frozenset({"version"})

    def __init__(
        self,
        store: Repository | ObjectStore | str | os.PathLike[str],
        branch: str = DEFAULT_BRANCH,
        *,
        verify: Verify = "full",
        include: Sequence[str] | None = None,
        strict: bool = True,
        key_map: KeyMap | None = None,
        memory: int = _MEMORY,
        reporter: Reporter | None = None,
    ) -> None:
        check_choice("verify", verify, get_args(Verify))
        if memory < 0:
            raise InvalidInputError(ErrorCode.BAD_ARGUMENT, f"memory={memory}: it takes bytes")
        self._owns_store = not isinstance(store, Repository)
        if not isinstance(store, Repository):
            store = open_repository(store, remote=RemoteOptions(read_ahead=_READ_AHEAD))
        self._store = store
        self._db = self._below = db = self._store.database
        self._branch = branch
        self._reporter = reporter or db.reporter
        weights = Weights(db, None if include is None else to_list(include))
        self._target = Target(
            db.config.chunk_size,
            db.hasher,
            db.workers,
            weights_of=weights.of,
            key_map=key_map,
            strict=strict,
        )
        self._fetcher = Fetcher(db, self._target, trusting=verify == "patch", memory=memory)
        self._lock = threading.RLock()
        self._gone = threading.Event()  # set when it is closed
        self._prepared: Prepared | None = None
        self._version: SnapshotId | None = None
        self._position: int | None = None
        self._seen: Head | None = None
        self._torn = False

    def __repr__(self) -> str:
        return f"Subscriber({self._store.url!r}, {self._branch!r})"

    def _how_to_reopen(self) -> str:
        return f"make another with casweights.{self!r}"

    @property
    def version(self) -> SnapshotId | None:
        """What the target holds, bit for bit; None if it is no version that is known of."""
        return self._version

    def head(self) -> SnapshotId | None:
        """Where the branch is now; None if there is no such branch."""
        head = self._poll()
        return head.snapshot if head else None

    def _poll(self) -> Head | None:
        begin = time.monotonic()
        head = self._db.refs.head(self._branch)
        seconds = time.monotonic() - begin
        self._seen = head
        self._reporter.polled(PollStats(snapshot=head.snapshot if head else None, seconds=seconds))
        return head

    def prefetch(
        self, target: torch.nn.Module | Mapping[str, Any] | None = None, *, to: Ref | None = None
    ) -> SnapshotId:
        """Fetch, decode and verify what a sync will need, without a write to the target.

        The model may be used meanwhile, and the next `sync` only writes.

        Args:
            target: A module or a state dict; by default that of the last call.
            to: The version; by default the head of the branch.

        Returns:
            The version.

        Raises:
            NotFoundError: No such branch or version.
            InvalidInputError: The version does not fit the target; names the tensors.
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        with self._lock:
            self._bind(target)
            return self._prepare(to).version.id

    def _bind(self, target: torch.nn.Module | Mapping[str, Any] | None) -> None:
        """Look at the target: what was known of it does not count if others wrote to it."""
        if not self._target.bind(target):
            self._version = self._prepared = None
            self._torn = False

    def _prepare(self, to: Ref | None) -> Prepared:
        version, position = self._resolve(to)
        if self._prepared is None or self._prepared.version.id != version:
            self._prepared = None  # its memory is needed
            snapshot = self._db.snapshots.load(version, with_locations=True)
            self._prepared = self._fetcher.prepare(snapshot, position)
        return self._prepared

    def _resolve(self, to: Ref | None) -> tuple[SnapshotId, int | None]:
        if to is None:
            head = self._poll()
            if head is None:
                raise NotFoundError(
                    ErrorCode.REF_NOT_FOUND, f"the store has no branch {self._branch!r} yet"
                )
            return head.snapshot, head.position
        if isinstance(to, str) and re.fullmatch("[0-9a-fA-F]{64}", to):
            version = SnapshotId.from_hex(to)  # whether there is one, loading will tell
        else:
            version = self._store.resolve(to)
        seen = self._seen
        return version, seen.position if seen and seen.snapshot == version else None

    def sync(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None = None,
        *,
        to: Ref | None = None,
        base: Ref | None = None,
    ) -> SyncStats:
        """Bring the target to a version, in place.

        It waits for a `prefetch` that another thread has begun, and uses what that found.

        Args:
            target: A module or a state dict; by default that of the last call.
            to: The version; by default the one that was prefetched, or the head of the branch.
            base: The version that the target must hold, if that matters.

        Raises:
            StaleError: The target does not hold `base`. It is as it was.
            NotFoundError: No such branch or version.
            InvalidInputError: The version does not fit the target; names the tensors.
            IntegrityError: The store is damaged. The target is as it was, see `Subscriber`.
            StoreError: The store could not be read. The target is as it was, see `Subscriber`.
        """
        with self._lock:
            return self._apply(self._ready(target, to, base))

    def _ready(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None,
        to: Ref | None,
        base: Ref | None = None,
    ) -> Prepared:
        self._bind(target)
        if base is not None and self._resolve(base)[0] != self._version:
            raise self._stale(base)
        if to is None and self._prepared is not None:
            return self._prepared
        return self._prepare(to)

    def _stale(self, base: Ref) -> StaleError:
        if self._torn:
            return StaleError(
                ErrorCode.TORN,
                "the target is a mixture of two versions, because a sync broke off: sync it "
                "without `base`",
            )
        holds = self._version or "no version that is known of"
        return StaleError(
            ErrorCode.STALE,
            f"the target holds {holds}, not {base}: sync it without `base`, which finds the "
            "shortest way from what it holds",
        )

    def patches(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None = None,
        *,
        to: Ref | None = None,
        base: Ref | None = None,
    ) -> Iterator[Patch]:
        """Sync a target, and tell what was changed in it, tensor by tensor.

        It is for hosts that lay out tensors in their own way: they keep a copy in the version's
        layout as the target, and write the patches to theirs. See `sync`.

        Yields:
            Patches, of tensors that changed. The target has all of it before the first one comes.
        """
        with self._lock:
            prepared = self._ready(target, to, base)
            sparse = to_patches(prepared, self._db.config.chunk_size)
            self._apply(prepared)
        yield from sparse
        yield from whole_tensors(prepared, {patch.name for patch in sparse})

    def verify(self) -> None:
        """Hash all tensors of the target that its version has, and compare.

        Raises:
            StaleError: They are not what they should be. The next sync will mend that.
        """
        with self._lock:
            before = self._version
            self._target.bind()
            for live in self._target.tensors:
                live.forget()
            self._target.identify()
            self._prepared = None
            if before is None:
                raise self._stale("a version")
            fits = self._target.fit(self._db.snapshots.load(before))
            wrong = [fit.name for fit in fits if any(True for _ in fit.wanted())]
            if wrong:
                self._version = None
                raise StaleError(
                    ErrorCode.STALE,
                    f"{len(wrong)} tensors are not those of {before}, {wrong[0]!r} is one: "
                    "something else wrote to them. Sync again",
                )

    def follow(
        self,
        callback: Callable[[SnapshotId], object],
        *,
        stop: threading.Event | None = None,
        interval: float = 0.5,
        most: float = 10.0,
    ) -> None:
        """Call a function with the head of the branch now, and whenever it has moved.

        Versions in between are not reported one by one. The branch is looked at about ten times
        between two moves, so that what comes regularly is seen soon and a branch that rests costs
        little. When the subscriber or its store is closed meanwhile, it ends without an error, at
        the next look at the latest.

        Args:
            callback: What to call.
            stop: Ends it, when set.
            interval: Seconds between two looks, at least.
            most: Seconds between two looks, at most.
        """
        try:
            self._follow(callback, stop or self._gone, interval, most)
        except ClosedError:
            if not is_closed(self):
                raise

    def _follow(
        self,
        callback: Callable[[SnapshotId], object],
        stop: threading.Event,
        interval: float,
        most: float,
    ) -> None:
        seen: SnapshotId | None = None
        since = time.monotonic()
        while not (stop.is_set() or is_closed(self)):
            head = self.head()
            if head is not None and head != seen:
                seen, since = head, time.monotonic()
                callback(head)
            rested = time.monotonic() - since
            stop.wait(max(interval, min(_PATIENCE * rested, most)))

    def _apply(self, prepared: Prepared) -> SyncStats:
        """Write what was prepared; all of it, or nothing, where it fits into memory."""
        version, previous = prepared.version.id, self._version
        self._prepared = self._version = None
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
            self._version = previous
            raise
        seconds = time.monotonic() - begin
        self._version, self._torn = version, False
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

    def close(self) -> None:
        """Forget what was prefetched, and close the store if it was opened here."""
        self._gone.set()
        self._prepared = None
        if self._owns_store:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
