"""`WholeStore`: the methods of a `Repository` that concern the store and not one version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from casweights.config import (
    DEFAULT_EXCLUDE,
    DEFAULT_GRACE,
    REPLACED_GRACE,
    Keep,
    RemoteOptions,
)
from casweights.content.arguments import check_compression, check_grace, to_sources, to_utc
from casweights.errors import ErrorCode, InvalidInputError
from casweights.ids import SnapshotId
from casweights.system.closing import Closing
from casweights.system.handles import Handle

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta
    from typing import Any

    from casweights.config import Compression, StoreConfig
    from casweights.database import Database
    from casweights.format.manifest import Snapshot
    from casweights.results import (
        CollectStats,
        Expiry,
        MaintainStats,
        RepackStats,
        RepairReport,
        SimilarVersion,
        SpaceUse,
        StoreInfo,
        StoreStats,
        UndeleteStats,
        Verification,
    )
    from casweights.stores.base import ObjectStore


class WholeStore(Handle, Closing):
    """The part of a `Repository` that looks after its store as a whole."""

    usable_anywhere = frozenset({"url"})

    def __init__(self, database: Database) -> None:
        self._db = self._below = database

    def __repr__(self) -> str:
        return f"Repository({self.url!r})"

    def _how_to_reopen(self) -> str:
        return self._db._how_to_reopen()

    @property
    def database(self) -> Database:
        """The internal parts of the store, for modules that build on them."""
        return self._db

    @property
    def url(self) -> str:
        """The URL or path that opens this store again."""
        return self._db.store.url

    @property
    def config(self) -> StoreConfig:
        """The settings that are fixed since the store was made."""
        return self._db.config

    def info(self) -> StoreInfo:
        """Return the store's settings, and its guarantees to several writers."""
        return self._db.info()

    def displaced(self) -> dict[str, tuple[SnapshotId, ...]]:
        """Return the versions that other writers' moves displaced, by branch.

        They are listed until a branch or tag names them or later versions, or until
        `drop_displaced`. ``docs/format.md`` says how versions are displaced.
        """
        from casweights.operations.displaced import displaced

        return displaced(self._db)

    def deleted(self) -> dict[str, SnapshotId]:
        """Return the last versions of deleted branches and tags, as ``heads/x`` and ``tags/x``.

        A name that is in use again is left out.
        """
        from casweights.operations.undelete import deleted

        return deleted(self._db)

    def verify(
        self,
        *,
        quick: bool = False,
        since: datetime | str | None = None,
        sample: float = 1.0,
    ) -> Verification:
        """Check every object; list damage in the result, and record it for later commits to repair.

        Args:
            quick: Whether to check only stored bytes against checksums, without decoding and
                hashing chunks. This finds damage, but not every forgery.
            since: Check only versions made after this time, or after the time of this version, and
                the chunks that they need; None for all.
            sample: The share of chunks, above 0 and at most 1, whose frames are checked, together
                with those that they build on. Each call draws other ones.

        Raises:
            InvalidInputError: `sample` is not a share, or `since` has no time zone.
            NotFoundError: There is no such version.
        """
        from casweights.operations.verify import verify

        if not 0.0 < sample <= 1.0:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"sample must be above 0 and at most 1, got {sample}"
            )
        moment = None if since is None else self._moment(since)
        return verify(self._db, quick=quick, since=moment, sample=sample)

    def _moment(self, since: datetime | str) -> datetime:
        """Return a time in UTC, or the time of the version that a text names."""
        from casweights.database.resolve import resolve

        if isinstance(since, str):
            return self._db.snapshots.load(resolve(self._db, since)).time
        return to_utc(since)

    def repair(
        self,
        sources: Sequence[WholeStore | ObjectStore | str | os.PathLike[str]] = (),
        *,
        apply: bool = False,
        remote: RemoteOptions | None = None,
    ) -> RepairReport:
        """Rebuild damaged and missing chunks and versions.

        They are rebuilt from other frames of this store, from the caches of this machine, and from
        the sources: whatever has bytes with the right digests. Damaged packs are replaced. What
        stays lost is recorded, version by version, and is not deleted. A repair that fails or is
        killed can be repeated.

        Args:
            sources: Other stores; directories and files that need not be in any store; model
                repositories of the Hub, as ``hf://NAMESPACE/NAME``.
            apply: Whether to write. By default, the report says what would be rebuilt.
            remote: Options for sources behind a network.

        Raises:
            InvalidInputError: A source does not exist or cannot be read, or is a store with another
                digest or chunk size.
            StoreError: A store could not be read or written.
        """
        from casweights.operations.repair import repair
        from casweights.repository.sources import opened_sources

        given = [s.database if isinstance(s, WholeStore) else s for s in sources]
        with opened_sources(given, remote or RemoteOptions()) as (stores, files):
            return repair(self._db, stores, files, apply=apply)

    def stats(self) -> StoreStats:
        """Measure the store: its versions, packs, chunks and encodings."""
        from casweights.operations.stats import stats

        return stats(self._db)

    def similar(
        self,
        source: str | SnapshotId | Snapshot | os.PathLike[str] | Mapping[str, Any],
        *,
        limit: int = 10,
    ) -> list[SimilarVersion]:
        """Find the versions that something resembles most, the nearest one first.

        Versions are compared by the samples of their signatures, whatever the names of tensors, so
        none of them is read. The first version of each branch, tagged ones, and each 64th of a
        history have signatures.

        Args:
            source: A version; or a file, a directory (as a path, not as a string) or a state dict.
            limit: The number of versions to return at most.

        Raises:
            NotFoundError: The version does not exist.
            InvalidInputError: A file cannot be read.
        """
        from casweights.database.resolve import resolve
        from casweights.operations.similar import similar_to_files, similar_to_version

        if isinstance(source, os.PathLike | Mapping):
            return similar_to_files(self._db, to_sources(source, DEFAULT_EXCLUDE, ()), limit)
        version = resolve(self._db, source) if isinstance(source, str) else source
        snapshot = version if isinstance(version, SnapshotId) else version.id
        loaded = self._db.snapshots.load(snapshot, with_locations=True)
        return similar_to_version(self._db, loaded, limit)

    def repack(
        self, *, compression: Compression = "auto", grace: timedelta = REPLACED_GRACE
    ) -> RepackStats:
        """Rewrite all packs to save space; no ID changes.

        Every chunk is encoded again as the smallest difference from the chunks that the store has
        now. This pays after an import, or if similar versions were added later. Other clients can
        read and write at the same time. If a version fits in `cache_size`, no chunk is rebuilt
        twice.

        The old packs are set aside, and a later call of this, `maintain` or `gc` deletes them.
        Until then readers still find them, and they come back if what replaces them turns out to be
        damaged.

        Args:
            compression: How to store chunks that have no base, as for `commit`.
            grace: How long what was replaced lies aside before it is deleted; 0 deletes it at once,
                after what replaces it was read back.

        Raises:
            InvalidInputError: The grace time is negative.
            IntegrityError: A version cannot be rebuilt; no pack was set aside.
            StoreError: The store could not be written.
        """
        from casweights.operations.repack import repack

        chosen = check_compression(compression)
        return repack(self._db, compression=chosen, grace=check_grace(grace))

    def maintain(
        self, *, grace: timedelta = REPLACED_GRACE, signatures: bool | None = None
    ) -> MaintainStats:
        """Merge small objects, so that calls stay fast after many versions; no ID changes.

        If the store has a policy, it is applied first, see `expire`. Other clients can read and
        write at the same time. What was merged is set aside and deleted later, as by `repack`.

        Args:
            grace: How long what was replaced lies aside before it is deleted, as for `repack`.
            signatures: Whether versions get signatures, by which relatives are found. False deletes
                all, and lets no writer add any; None leaves this as it is.

        Raises:
            InvalidInputError: The grace time is negative.
            StoreError: The store could not be read or written. Repeat the call to continue.
        """
        from casweights.operations.maintain import maintain

        return maintain(self._db, grace=check_grace(grace), signatures=signatures)

    def expire(self, policy: Keep | Sequence[Keep] | None = None, *, apply: bool = False) -> Expiry:
        """Decide by a policy which versions of branches stay, and record the others as expired.

        An expired version is left out of `log`, `push` and `pull`, and `~N` does not lead to it. No
        byte is deleted: its ID can still be read, and a branch or tag at it brings it back. The
        heads of branches, and versions with a tag, never go.

        Args:
            policy: What to keep: one `Keep` or several, of which the first that matches a branch
                counts. None for the policy of the store.
            apply: Whether to record what goes. By default, the result only says what would go.

        Raises:
            InvalidInputError: A condition is not valid, or the store has no policy.
            NotFoundError: A version of a history is missing; nothing was recorded.
            IntegrityError: A version of a history is damaged; nothing was recorded.
            ConflictError: Other clients made branches all the time; nothing was recorded.
            StoreError: The store could not be read or written. Repeat the call.
        """
        from casweights.operations.expire import expire

        chosen = [policy] if isinstance(policy, Keep) else policy
        return expire(self._db, chosen, apply=apply)

    def policy(self) -> tuple[Keep, ...]:
        """Return the retention policy that the store keeps; empty if it has none."""
        return self._db.policies.load()

    def set_policy(self, policy: Keep | Sequence[Keep]) -> None:
        """Keep a retention policy in the store, for `maintain` and for `expire` without one.

        Args:
            policy: The policy; an empty sequence removes it.

        Raises:
            InvalidInputError: A condition is not valid, or the policy is too large.
            IntegrityError: The policy of the store is forged, so that none can follow it.
            StoreError: The store could not be written.
        """
        from casweights.operations.expire import set_policy

        set_policy(self._db, [policy] if isinstance(policy, Keep) else policy)

    def gc(
        self,
        *,
        apply: bool = False,
        grace: timedelta = DEFAULT_GRACE,
        only: Collection[str] | None = None,
        finish_only: bool = False,
        confirm: str | None = None,
        fold: bool = True,
    ) -> CollectStats:
        """Free the space of what no branch and no tag needs; by default only say what would go.

        What is older than the grace time, and needed by no version that a branch or tag names or
        descends from, is set aside: readers still find it, and `undelete_collection` brings it
        back. A later call, when the grace time is over again, deletes it for good, unless something
        needs it by then. Other clients can read and write at the same time.

        Args:
            apply: Whether to change anything.
            grace: The grace time, at least a day.
            only: Names of the objects that may be set aside, and of the collections that may be
                deleted, as an earlier call returned them; None for all.
            finish_only: Whether to set nothing aside, and only delete what was.
            confirm: For a grace time of less than a day, which is safe only if nobody else uses the
                store: its `url`. Only stores in directories allow it.
            fold: Whether to write again what is needed of old objects that hold much that is not,
                and of chains of differences that lead through expired versions, so that the next
                call can set them aside.

        Raises:
            InvalidInputError: The grace time is too short.
            IntegrityError: Something that is needed is damaged or missing; nothing was deleted.
            UnsupportedError: The store's times are of no use; nothing was deleted.
            ConflictError: Another collection is at work, or the grace time is less than a day and
                somebody else writes to the store; nothing was set aside.
            StoreError: The store could not be read or written. Repeat the call to continue.
        """
        from casweights.operations.collect import collect

        return collect(
            self._db,
            grace=grace,
            apply=apply,
            only=only,
            finish_only=finish_only,
            confirm=confirm,
            fold=fold,
        )

    def space(self, *, grace: timedelta = DEFAULT_GRACE) -> SpaceUse:
        """Find out what holds the bytes of the store, and which of them `gc` can free.

        Args:
            grace: The grace time, as for `gc`.

        Raises:
            InvalidInputError: The grace time is too short.
            IntegrityError: Something that is needed is damaged or missing.
            UnsupportedError: The store's times are of no use.
            StoreError: The store could not be read.
        """
        from casweights.operations.space import space

        return space(self._db, self.gc(grace=grace), grace)

    def undelete_collection(self, collection: str) -> UndeleteStats:
        """Bring back what `gc`, `maintain` or `repack` has set aside, until it is deleted for good.

        The versions get no names: give them a branch or tag, or a later `gc` sets them aside again.

        Args:
            collection: The digits of the collection, from the result of `gc`.

        Raises:
            NotFoundError: There is no such collection any more.
            IntegrityError: Something that its versions need is gone; nothing was changed.
            StoreError: The store could not be written.
        """
        from casweights.operations.bring_back import undelete_collection

        return undelete_collection(self._db, collection)

    def close(self) -> None:
        """End the threads. The repository cannot be used afterwards."""
        self._db.close()
