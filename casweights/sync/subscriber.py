"""The replica's side: live tensors are brought to a version in place."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, get_args

from casweights.config import DEFAULT_BRANCH, MiB, RemoteOptions
from casweights.content.arguments import check_choice, to_list
from casweights.content.weights import Weights
from casweights.errors import ClosedError, ErrorCode, InvalidInputError
from casweights.opening import opened
from casweights.sync.branch_reader import BranchReader
from casweights.sync.fetch import Fetcher
from casweights.sync.patches import to_patches, whole_tensors
from casweights.sync.replica import Replica
from casweights.sync.target import Target
from casweights.system.closing import Closing
from casweights.system.handles import Handle, is_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from casweights.events import Reporter
    from casweights.ids import SnapshotId
    from casweights.opening import StoreLike
    from casweights.repository import Ref
    from casweights.results import SyncStats
    from casweights.sync.fetch import Prepared
    from casweights.sync.patches import Patch
    from casweights.sync.target import KeyMap

Verify = Literal["full", "patch"]

_MEMORY = 64 * MiB  # of decoded changes; the steps of a training mostly change less
_READ_AHEAD = 32 * MiB  # replicas have little memory to spare, and read little at a time


class Subscriber(Handle, Closing):
    """Brings the tensors of a running model to versions of a branch, in place.

    Only elements that differ are written; storages stay where they are. Each chunk of the target
    is known by its hash, so everything that the target has is a base for what it needs next,
    from whichever version it came: late joiners, missed versions, jumps back and other branches
    all read the fewest bytes possible.

    A sync that fails leaves the target as it was. Only where a version changes more than fits into
    `memory` can it end halfway: then `version` is None, the error says so, and the next sync
    continues from there.

    `prefetch`, `sync`, `patches` and `verify` hold one lock, so that several threads may call them;
    `head` and `follow` take no lock. `BranchReader` looks at the branch and `Replica`
    knows what the target holds; see there for the states.

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
        reporter: Receives `Reporter.polled` and `Reporter.synced`; by default the reporter of the
            store.

    Raises:
        NotFoundError: There is no such store.
        InvalidInputError: An argument has none of the values above.
        StoreError: The store could not be read.
    """

    usable_closed = frozenset({"version"})

    def __init__(
        self,
        store: StoreLike,
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
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"memory must be at least 0 bytes, got {memory}"
            )
        self._opened = opened(store, remote=RemoteOptions(read_ahead=_READ_AHEAD))
        self._db = self._below = db = self._opened.repository.database
        self._name = branch
        reporter = reporter or db.reporter
        weights = Weights(db, None if include is None else to_list(include))
        target = Target(
            db.config.chunk_size,
            db.hasher,
            db.workers,
            weights_of=weights.of,
            key_map=key_map,
            strict=strict,
        )
        fetcher = Fetcher(db, target, trusting=verify == "patch", memory=memory)
        self._replica = Replica(db, target, fetcher, reporter)
        self._branch = BranchReader(self._opened.repository, branch, reporter)
        self._lock = threading.RLock()  # guards the replica
        self._gone = threading.Event()  # set when it is closed

    def __repr__(self) -> str:
        return f"Subscriber({self._opened.repository.url!r}, {self._name!r})"

    def _how_to_reopen(self) -> str:
        return f"make another with casweights.{self!r}"

    @property
    def version(self) -> SnapshotId | None:
        """The version that the target holds, bit for bit; None if it holds no known version."""
        return self._replica.version

    def head(self) -> SnapshotId | None:
        """Where the branch is now; None if there is no such branch."""
        head = self._branch.look()
        return head.snapshot if head else None

    def prefetch(
        self, target: torch.nn.Module | Mapping[str, Any] | None = None, *, to: Ref | None = None
    ) -> SnapshotId:
        """Fetch, decode and verify what a sync will need, without a write to the target.

        The model may be used during this, and the next `sync` only writes.

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
            self._replica.bind(target)
            return self._replica.prepare(self._branch.resolve(to)).version.id

    def sync(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None = None,
        *,
        to: Ref | None = None,
        expect: Ref | None = None,
    ) -> SyncStats:
        """Bring the target to a version, in place.

        It waits for a `prefetch` that another thread has begun, and uses what that found.

        Args:
            target: A module or a state dict; by default that of the last call.
            to: The version; by default the one that was prefetched, or the head of the branch.
            expect: The version that the target must hold, if that matters.

        Raises:
            StaleError: The target does not hold `expect`. It is as it was.
            NotFoundError: No such branch or version.
            InvalidInputError: The version does not fit the target; names the tensors.
            IntegrityError: The store is damaged. The target is as it was, see `Subscriber`.
            StoreError: The store could not be read. The target is as it was, see `Subscriber`.
        """
        with self._lock:
            return self._replica.apply(self._ready(target, to, expect))

    def _ready(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None,
        to: Ref | None,
        expect: Ref | None,
    ) -> Prepared:
        replica = self._replica
        replica.bind(target)
        if expect is not None:
            replica.check_holds(self._branch.resolve(expect).version, expect)
        if to is None and replica.prepared is not None:
            return replica.prepared
        return replica.prepare(self._branch.resolve(to))

    def patches(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None = None,
        *,
        to: Ref | None = None,
        expect: Ref | None = None,
    ) -> Iterator[Patch]:
        """Sync a target, and yield what changed in it, tensor by tensor.

        It is for hosts that lay out tensors in their own way: they keep a copy in the version's
        layout as the target, and write the patches to theirs. See `sync`.

        Yields:
            Patches of the tensors that changed. The target has all of it before the first one.
        """
        with self._lock:
            prepared = self._ready(target, to, expect)
            sparse = to_patches(prepared, self._db.config.chunk_size)
            self._replica.apply(prepared)
        yield from sparse
        yield from whole_tensors(prepared, {patch.name for patch in sparse})

    def verify(self) -> None:
        """Hash all tensors of the target that its version has, and compare.

        Raises:
            StaleError: They are not what they should be. The next sync repairs that.
        """
        with self._lock:
            self._replica.verify()

    def follow(
        self,
        callback: Callable[[SnapshotId], object],
        *,
        stop: threading.Event | None = None,
        interval: float = 0.5,
        max_interval: float = 10.0,
    ) -> None:
        """Call a function with the head of the branch now, and whenever it has moved.

        Versions in between are not reported one by one. The branch is looked at about ten times
        between two moves, so that regular moves are noticed soon and a branch that rests costs
        little. When the subscriber or its store is closed, it ends without an error, at the next
        look at the latest.

        Args:
            callback: The function.
            stop: Ends it, when set.
            interval: Minimum number of seconds between two looks.
            max_interval: Maximum number of seconds between two looks.
        """
        ending = stop or self._gone
        try:
            self._branch.follow(
                callback,
                ended=lambda: ending.is_set() or is_closed(self),
                pause=ending.wait,
                interval=interval,
                max_interval=max_interval,
            )
        except ClosedError:
            if not is_closed(self):
                raise

    def close(self) -> None:
        """Forget what was prefetched, and close the store if it was opened here."""
        self._gone.set()
        self._replica.prepared = None
        self._opened.close()
