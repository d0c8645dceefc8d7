"""Transfer: copy versions to another store under the same IDs, moving only what it lacks.

Versions with their history are copied as whole packs, along with any frames of other versions in
them. For a version without its history, or if damage is reported in either store, only the frames
that are needed are copied, into new packs. Packs are copied before the snapshots that need them,
and snapshots after their parents. Versions that have expired in either store are left out, and the
target gets the records of those that it does not have. So a transfer that fails or is killed leaves
the target sound, and repeating it copies nothing twice.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from casweights.config import KiB
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.format import names
from casweights.operations.pack_copy import FrameCopy, PackCopy
from casweights.operations.reliance import Looked
from casweights.operations.signing import copy_signatures
from casweights.results import TransferStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.config import StoreConfig
    from casweights.database import Database
    from casweights.ids import ChunkId, SnapshotId
    from casweights.results import ExpiredVersion

    Parents = dict[SnapshotId, tuple[SnapshotId, ...]]

_MAX_ATTEMPTS = 3  # to read a version, which maintenance of the source may move in between


def transfer(
    source: Database,
    target: Database,
    tips: Sequence[SnapshotId],
    *,
    others: Iterable[SnapshotId] = (),
    history: bool = True,
    with_expired: bool = False,
) -> TransferStats:
    """Copy versions to another store, without moving a branch or tag.

    Args:
        source: The store to copy from.
        target: The store to copy to.
        tips: The versions.
        others: Further versions, which are left out if they have expired in either store.
        history: Whether to copy their ancestors that the source contains, too. The target notes
            which versions lack parents there.
        with_expired: Whether to copy versions that have expired. Otherwise the target gets their
            records, unless it has the versions.

    Returns:
        What was copied; `TransferStats.refs` is empty.

    Raises:
        NotFoundError: The source does not contain one of the versions.
        InvalidInputError: The stores have different digests or chunk sizes.
        IntegrityError: The source is damaged.
        StoreError: The target could not be written.
    """
    copying = Transfer(
        source, target, tips, others=others, history=history, with_expired=with_expired
    )
    Looked(copying)()
    return copying.result({})


class Transfer:
    """Copies versions to another store. The arguments are those of `transfer`.

    A call copies what the target lacks. After hours, a collection may have set aside what was found
    in the target or copied there: then another call looks at all of it again.

    Attributes:
        stats: What was copied by all calls.
    """

    def __init__(
        self,
        source: Database,
        target: Database,
        tips: Sequence[SnapshotId],
        *,
        others: Iterable[SnapshotId] = (),
        history: bool = True,
        with_expired: bool = False,
    ) -> None:
        check_configs(source, target)
        self._source, self._target = source, target
        target.announce()
        self._tips, self._others = tips, list(others)
        self._history, self._with_expired = history, with_expired
        self._sent: set[SnapshotId] = set()
        self._recorded: set[SnapshotId] = set()  # those of them that the target had let expire
        self.stats = TransferStats(snapshots=0, packs=0, nbytes=0, refs={})

    def result(
        self, refs: dict[str, SnapshotId], tips: dict[str, SnapshotId] | None = None
    ) -> TransferStats:
        """Return what was copied, once branches and tags name it.

        Args:
            refs: The branches and tags that were moved in the target.
            tips: The versions that were requested.
        """
        named = frozenset(self._target.refs.tips()) if self._recorded else frozenset()
        expired = len(self._recorded - named)
        return replace(self.stats, refs=refs, tips=tips or {}, expired=expired)

    def __call__(self) -> None:
        """Copy what the target lacks; raise the errors of `transfer`."""
        with self._source.snapshots.sharing(self._target.snapshots):
            self._send()

    def _send(self) -> None:
        source, target, history = self._source, self._target, self._history
        source.heed_findings()
        target.heed_findings()
        existing = set(target.snapshots.ids())
        existing.difference_update([tip for tip in self._tips if _is_unreadable(target, tip)])
        # If some of the target's frames are reported as damaged, even versions that it contains are
        # copied again, so that it gets sound frames for them.
        sound = set() if target.index.has_suspects else existing - self._sent
        lacking = _Lacking(source, target, sound, history=history, with_expired=self._with_expired)
        missing = lacking.find(self._tips, self._others)
        self._sent.update(missing)
        # Before the versions, so that no version lacks parents without a record that says why.
        target.expired.add(row for row in lacking.expired.values() if row.id not in existing)
        if not missing:
            return
        packs: PackCopy | FrameCopy
        # Copying whole packs would copy damaged frames, and skip packs that the target has damaged.
        if history and not (source.index.has_suspects or target.index.has_suspects):
            packs = PackCopy(source, target, _shared_chunks(source, target, missing, existing))
        else:
            packs = FrameCopy(source, target)
        new = [version for version in missing if version not in existing]
        snapshots = nbytes = 0
        for version, parents in missing.items():
            is_new = version not in existing
            shallow = not all(
                parent in existing or lacking.is_recorded(parent) for parent in parents
            )
            _bring(source, packs, version, is_new=is_new, shallow=shallow)
            if is_new:
                existing.add(version)
                snapshots, name = snapshots + 1, names.snapshot_name(version)
                nbytes += target.store.sizes([name]).get(name, 0)  # it may be in an archive by now
        copy_signatures(source, target, new)
        self._recorded.update(version for version in new if lacking.has_row(version))
        self.stats = TransferStats(
            snapshots=self.stats.snapshots + snapshots,
            packs=self.stats.packs + packs.copied,
            nbytes=self.stats.nbytes + nbytes + packs.nbytes,
            refs={},
        )


def _bring(
    source: Database,
    packs: PackCopy | FrameCopy,
    version: SnapshotId,
    *,
    is_new: bool,
    shallow: bool,
) -> None:
    """Copy the frames of a version, and the version itself if the target lacks it."""
    for attempts_left in reversed(range(_MAX_ATTEMPTS)):
        stored = source.snapshots.load_stored(version)
        try:
            table = packs.bring(stored)
            if is_new:
                packs.save(stored, table._replace(shallow=shallow))
        except NotFoundError:  # it moved to an archive, and its frames to a pack
            if not attempts_left:
                raise
            packs.forget(stored)
        else:
            return


def _is_unreadable(target: Database, tip: SnapshotId) -> bool:
    """Whether the target's only copy of a version is damaged and in an archive.

    Then a copy of it can be put next to the archive.
    """
    if not target.snapshots.archives.known(tip):
        return False
    try:
        target.snapshots.load_stored(tip)
    except IntegrityError:
        return True
    return False


def check_configs(source: Database, target: Database) -> None:
    """Check that equal content has equal IDs in both stores.

    Raises:
        InvalidInputError: The stores' digests or chunk sizes differ.
    """
    if source.config != target.config:
        digest, size = source.config.digest, source.config.chunk_size // KiB
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"IDs depend on digest and chunk size, which differ: {source.store.url} has "
            f"{_described(source.config)}, {target.store.url} has {_described(target.config)}. "
            "Create the target with "
            f"`casweights init --digest {digest} --chunk-size {size}KiB`",
        )


def _described(config: StoreConfig) -> str:
    """Return the part of a configuration that IDs depend on, for an error message."""
    return f"{config.digest} and chunks of {config.chunk_size} bytes"


class _Lacking:
    """Finds the versions that the target lacks.

    Args:
        source: The store to copy from.
        target: The store to copy to.
        existing: Versions that the target has.
        history: Whether to look for ancestors, too.
        with_expired: Whether versions that have expired are lacking, too.

    Attributes:
        expired: The versions that are left out because they have expired.
    """

    def __init__(
        self,
        source: Database,
        target: Database,
        existing: set[SnapshotId],
        *,
        history: bool,
        with_expired: bool,
    ) -> None:
        self._source = source
        self._existing = existing
        self._history = history
        self._with_expired = with_expired
        self._here, self._there = source.history.expired(), target.history.expired()
        self.expired: dict[SnapshotId, ExpiredVersion] = {}

    def find(self, tips: Sequence[SnapshotId], others: Iterable[SnapshotId]) -> Parents:
        """Return the parents of each version to copy. Versions come after their parents.

        Args:
            tips: Versions to copy, expired or not.
            others: Versions to copy if they have not expired.
        """
        found: Parents = {}
        pending = [*(other for other in others if not self._leaves_out(other)), *tips]
        named = set(tips)
        seen: set[SnapshotId] = set()
        while pending:
            version = pending.pop()
            if version in seen:
                continue
            seen.add(version)
            if version in self._existing:
                pending += self._expired_before(version)
                continue
            row = None if version in named else self._leaves_out(version)
            if row is not None:
                self.expired[version] = row
                pending += row.parents if self._history else ()
                continue
            snapshot = self._source.snapshots.load(version)
            found[version] = snapshot.parents
            if self._history:
                pending += self._source.history.known_parents(snapshot, self._here)
        order = TopologicalSorter({v: [p for p in found[v] if p in found] for v in found})
        return {version: found[version] for version in order.static_order()}

    def _expired_before(self, version: SnapshotId) -> Sequence[SnapshotId]:
        """Return the parents of a version that the target has, if older ones may be lacking.

        The target has all versions before it, except for those that have expired.
        """
        if not (self._history and self._with_expired):
            return ()
        with suppress(NotFoundError):  # only the target has it
            return self._source.history.known_parents(
                self._source.snapshots.load(version), self._here
            )
        row = self._here.find(version)
        return () if row is None else row.parents

    def is_recorded(self, version: SnapshotId) -> bool:
        """Whether the target has a record that says why it lacks a version."""
        return version in self.expired or self.has_row(version)

    def has_row(self, version: SnapshotId) -> bool:
        """Whether the target had let a version expire."""
        return self._there.rows.find(version) is not None

    def _leaves_out(self, version: SnapshotId) -> ExpiredVersion | None:
        """Return the row of a version that has expired in either store and is not copied."""
        row = self._here.find(version) or self._there.find(version)
        if row is None or not self._with_expired:
            return row
        return None if self._source.snapshots.exists(version) else row


def _shared_chunks(
    source: Database, target: Database, missing: Parents, existing: set[SnapshotId]
) -> set[ChunkId]:
    """Return chunks of the target from which the missing versions' differences may start."""
    known = {parent for parents in missing.values() for parent in parents}
    if not all(missing.values()):  # the first version of a branch may resemble any other branch
        known.update(target.refs.branches().values(), target.refs.tags().values())
    chunks: set[ChunkId] = set()
    for version in known & existing:
        chunks.update(_chunks_of(source, target, version))
    return chunks


def _chunks_of(source: Database, target: Database, version: SnapshotId) -> Iterator[ChunkId]:
    """Yield the chunks of a version; nothing if neither store can read it.

    The target contains it, and the source may. The one with cheap reads is tried first; if both
    have them or neither has, the target.
    """
    for db in sorted((target, source), key=lambda db: not db.store.capabilities.cheap_reads):
        with suppress(NotFoundError, IntegrityError):
            yield from db.snapshots.load(version).stored_chunks()
            return
