"""The replica's side of live sync: bringing live tensors to a version in place."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from casweights.config import DEFAULT_BRANCH, MiB, RemoteOptions
from casweights.content.arguments import check_choice, to_list
from casweights.content.weights import Weights
from casweights.errors import ClosedError, ErrorCode, InvalidInputError, NotFoundError
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

_MEMORY = 64 * MiB  # for decoded changes; most training steps change less
_MAX_HEADS = 8  # to follow, while the branch moves and its versions are removed
_GONE = (ErrorCode.EXPIRED, ErrorCode.SNAPSHOT_NOT_FOUND)
_READ_AHEAD = 32 * MiB  # replicas have little memory to spare, and read little at a time


class Subscriber(Handle, Closing):
    """Brings the tensors of a running model to versions of a branch, in place.

    A sync writes only elements that differ, into the existing storages of the tensors. Each chunk
    of the target is known by its hash, so all content of the target can be a base for the next
    version, no matter which version it came from. Late joiners, missed versions, jumps back and
    other branches all read the fewest bytes possible.

    A sync that fails leaves the target as it was. The exception is a version that changes more than
    fits into `memory`: a sync to it can fail halfway. Then `version` is None, the error says so,
    and the next sync continues from that state.

    `prefetch`, `sync`, `patches` and `verify` hold one lock, so several threads may call them.
    `head` and `follow` hold no lock. `BranchReader` reads the branch, and `Replica` knows the
    state of the target.

    Example:
        ::

            with casweights.Subscriber("hf://buckets/me/weights/run-7", "policy") as subscriber:
                stats = subscriber.sync(model)  # to the head of the branch
                print(stats.fetched_bytes, stats.changed_elements)
                subscriber.follow(lambda version: subscriber.sync(to=version))

    Args:
        store: An open store, or the path or URL of one.
        branch: The branch to follow.
        verify: ``"full"`` hashes every chunk that changes before any is written. ``"patch"``
            relies on the checksums of stored bytes, and requires that no other code writes to the
            target and no untrusted writer to the store.
        include: Patterns of files, or of tensors, to use weights from; by default the files that
            model libraries load, see `Repository.load`.
        strict: Whether target and version must have the same tensors. Otherwise tensors that only
            one of them has are ignored.
        key_map: Maps a name in the target to the name in the version: a mapping or a function.
        memory: Maximum bytes of decoded changes to hold between `prefetch` and `sync`.
        reporter: Receives `Reporter.polled` and `Reporter.synced`; by default the reporter of the
            store.

    Raises:
        NotFoundError: The store does not exist.
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
            weights=weights,
            key_map=key_map,
            strict=strict,
        )
        fetcher = Fetcher(db, target, trusting=verify == "patch", memory=memory)
        self._replica = Replica(db, target, fetcher, reporter)
        self._branch = BranchReader(self._opened.repository, branch, reporter)
        self._lock = threading.RLock()  # guards the replica
        self._gone = threading.Event()  # set by `close`; ends `follow`

    def __repr__(self) -> str:
        return f"Subscriber({self._opened.repository.url!r}, {self._name!r})"

    def _how_to_reopen(self) -> str:
        return f"make another with casweights.{self!r}"

    @property
    def version(self) -> SnapshotId | None:
        """The version that the target holds, bit for bit; None if no version is known."""
        return self._replica.version

    def head(self) -> SnapshotId | None:
        """Read the version at the current head of the branch; None if the branch does not exist."""
        head = self._branch.look()
        return head.snapshot if head else None

    def prefetch(
        self, target: torch.nn.Module | Mapping[str, Any] | None = None, *, to: Ref | None = None
    ) -> SnapshotId:
        """Fetch, decode and verify the changes for the next sync, without writing to the target.

        The model may be used during this call, and the next `sync` only writes.

        Args:
            target: A module or a state dict; by default that of the last call.
            to: The version; by default the head of the branch.

        Returns:
            The version.

        Raises:
            NotFoundError: No such branch or version exists.
            InvalidInputError: The version does not fit the target. The message names the tensors.
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        with self._lock, _advice():
            self._replica.bind(target)
            return self._prepare(to).version.id

    def sync(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None = None,
        *,
        to: Ref | None = None,
        expect: Ref | None = None,
    ) -> SyncStats:
        """Bring the target to a version, in place.

        The call waits for a `prefetch` that another thread has begun, and uses its result.

        Args:
            target: A module or a state dict; by default that of the last call.
            to: The version; by default the one that was prefetched, or the head of the branch.
            expect: The version that the target must hold before the call; by default any.

        Returns:
            The versions, the bytes read, the elements changed, and the seconds of each stage.

        Raises:
            StaleError: The target does not hold `expect`. It is unchanged.
            NotFoundError: No such branch or version exists.
            InvalidInputError: The version does not fit the target. The message names the tensors.
            IntegrityError: The store is damaged. The target is unchanged, but see `Subscriber`.
            StoreError: The store could not be read. The target is unchanged, but see `Subscriber`.
        """
        with self._lock, _advice():
            return self._replica.apply(self._ready(target, to, expect))

    def _ready(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None,
        to: Ref | None,
        expect: Ref | None,
    ) -> Prepared:
        """Return the changes to write: the prefetched ones if `to` is None, or fetch them."""
        replica = self._replica
        replica.bind(target)
        if expect is not None:
            replica.check_holds(self._branch.resolve(expect).version, expect)
        if to is None and replica.prepared is not None:
            return replica.prepared
        return self._prepare(to)

    def _prepare(self, to: Ref | None) -> Prepared:
        """Fetch the changes to a version; on the way to the head, follow it if it moves."""
        for left in reversed(range(_MAX_HEADS)):
            wanted = self._branch.resolve(to)
            try:
                return self._replica.prepare(wanted)
            except NotFoundError as error:
                # Since it was looked up, the version may have expired and been collected.
                if error.code not in _GONE or to is not None or not left:
                    raise
                if self._branch.resolve(to).version == wanted.version:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def patches(
        self,
        target: torch.nn.Module | Mapping[str, Any] | None = None,
        *,
        to: Ref | None = None,
        expect: Ref | None = None,
    ) -> Iterator[Patch]:
        """Sync a target, and yield the changes, tensor by tensor.

        This is for hosts with their own layout of tensors. Such a host keeps a copy in the
        version's layout as the target, and writes the patches to its own tensors. The arguments
        and errors are those of `sync`.

        Yields:
            Patches of the tensors that changed. The target is complete before the first patch.
        """
        with self._lock, _advice():
            prepared = self._ready(target, to, expect)
            # Before `apply`, which replaces the new values in the changes with the old ones.
            sparse = to_patches(prepared, self._db.config.chunk_size)
            self._replica.apply(prepared)
        yield from sparse
        yield from whole_tensors(prepared, {patch.name for patch in sparse})

    def verify(self) -> None:
        """Hash all tensors of the target that are part of its version, and compare them with it.

        Small tensors are read from the store if the target lacks others that share their chunk.

        Raises:
            StaleError: The tensors differ from the version, or no version is known. The next sync
                repairs them.
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
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
        """Call a function with the current head of the branch, and again whenever it has moved.

        Versions between two looks are not reported one by one. There are about ten looks between
        two moves, so regular moves are noticed soon and an idle branch costs little. When the
        subscriber or its store is closed, `follow` returns without an error, at the next look at
        the latest. An error of the callback ends `follow` and is raised.

        Args:
            callback: The function; it receives the version's ID.
            stop: Setting this event makes `follow` return.
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
        """Drop prefetched changes, and close the store if the subscriber opened it."""
        self._gone.set()
        self._replica.prepared = None
        self._opened.close()


@contextmanager
def _advice() -> Iterator[None]:
    """Say in errors about a version that is gone what to do."""
    try:
        yield
    except NotFoundError as error:
        if error.code in _GONE:
            error.add_note("sync again without `to`: this leads to the head of the branch")
        raise
