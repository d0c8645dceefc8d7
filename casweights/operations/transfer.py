"""Transfer: copy versions to another store under the same IDs, moving only what it lacks.

Versions with their history are copied as whole packs, along with any frames of other versions in
them. For a version without its history, or if damage is reported in either store, only the frames
that are needed are copied, into new packs. Packs are copied before the snapshots that need them,
and snapshots after their parents. So a transfer that fails or is killed leaves the target sound,
and repeating it copies nothing twice.
"""

from __future__ import annotations

from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from casweights.config import KiB, MiB
from casweights.database.frames import read_payload
from casweights.database.packs import list_packs
from casweights.database.writer import PackWriter
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.events import Stage
from casweights.format import names
from casweights.format.fields import parse_id
from casweights.format.pack import EncodedFrame
from casweights.format.snapshot import PackTable
from casweights.ids import PackId
from casweights.results import TransferStats
from casweights.stores.optional import ahead
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casweights.config import StoreConfig
    from casweights.database import Database
    from casweights.database.chains import Chain, Node
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId, SnapshotId
    from casweights.stores.base import ObjectStore

    Parents = dict[SnapshotId, tuple[SnapshotId, ...]]

_R = TypeVar("_R")
_BATCH_PACKS = 16  # packs copied in one call; progress is reported after each batch
_BATCH_BYTES = 256 * MiB  # bytes copied in one call
_MAX_ATTEMPTS = 3  # to read packs, which a repack of the source may delete in between


def transfer(
    source: Database, target: Database, tips: Sequence[SnapshotId], *, history: bool = True
) -> TransferStats:
    """Copy versions to another store, without moving a branch or tag.

    Args:
        source: The store to copy from.
        target: The store to copy to.
        tips: The versions.
        history: Whether to copy their ancestors that the source contains, too. The target notes
            which versions lack parents there.

    Returns:
        What was copied; `TransferStats.refs` is empty.

    Raises:
        NotFoundError: The source does not contain one of the versions.
        InvalidInputError: The stores have different digests or chunk sizes.
        IntegrityError: The source is damaged.
        StoreError: The target could not be written.
    """
    check_configs(source, target)
    with source.snapshots.sharing(target.snapshots):
        return _transfer(source, target, tips, history=history)


def _transfer(
    source: Database, target: Database, tips: Sequence[SnapshotId], *, history: bool
) -> TransferStats:
    source.heed_findings()
    target.heed_findings()
    existing = set(target.snapshots.ids())
    # If some of the target's frames are reported as damaged, even versions that it contains are
    # copied again, so that it gets sound frames for them.
    sound = set() if target.index.has_suspects else existing
    missing = _missing_versions(source, tips, sound, history=history)
    if not missing:
        return TransferStats(snapshots=0, packs=0, nbytes=0, refs={})
    packs: _PackCopy | _FrameCopy
    # Copying whole packs would copy damaged frames, and skip packs that the target has damaged.
    if history and not (source.index.has_suspects or target.index.has_suspects):
        packs = _PackCopy(source, target, _shared_chunks(source, target, missing, existing))
    else:
        packs = _FrameCopy(source, target)
    snapshots = nbytes = 0
    for version, parents in missing.items():
        stored = source.snapshots.load_stored(version)
        table = packs.bring(stored.snapshot, stored.table)
        if version in existing:
            continue
        table = table._replace(shallow=not existing.issuperset(parents))
        target.snapshots.save_copy(stored.with_table(table))
        snapshots, nbytes = snapshots + 1, nbytes + target.store.size(names.snapshot_name(version))
        existing.add(version)
    return TransferStats(
        snapshots=snapshots, packs=packs.copied, nbytes=nbytes + packs.nbytes, refs={}
    )


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


def _missing_versions(
    source: Database, tips: Sequence[SnapshotId], existing: set[SnapshotId], *, history: bool
) -> Parents:
    """Return the parents of each version to copy. Versions come after their parents."""
    found: Parents = {}
    pending = list(tips)
    while pending:
        version = pending.pop()
        if version in existing or version in found:
            continue
        snapshot = source.snapshots.load(version)
        found[version] = snapshot.parents
        if history:
            pending += source.snapshots.parents(snapshot)
    order = TopologicalSorter({v: [p for p in found[v] if p in found] for v in found})
    return {version: found[version] for version in order.static_order()}


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


def _lost(source: Database, chunk: ChunkId) -> IntegrityError:
    """Return the error for a chunk that the source cannot rebuild. It names known damage."""
    why = f"the chunk {chunk} cannot be rebuilt from {source.store.url}"
    for damage in source.index.damaged.values():
        return IntegrityError(ErrorCode.MISSING_CHUNK, f"{why}. The store is damaged: {damage}")
    return IntegrityError(ErrorCode.MISSING_CHUNK, why)


class _Plan(NamedTuple):
    """The packs that the target needs to rebuild a version.

    Attributes:
        packs: The packs of all frames that the target lacked, each with the packs of its bases.
        own: The pack of each chunk's own frame, for chunks that the target lacked.
        chunks: Chunks that the target contains afterwards.
    """

    packs: dict[PackId, set[PackId]]
    own: dict[ChunkId, PackId]
    chunks: set[ChunkId]

    def in_order(self) -> list[PackId]:
        """Return the packs, those with bases first."""
        order = TopologicalSorter(self.packs)
        try:
            return list(order.static_order())
        except CycleError:
            # Two packs may hold bases for each other. Any order will do, since no snapshot of the
            # target refers to them before all are copied.
            return list(self.packs)


class _PackCopy:
    """Copies whole packs; `bring` is called for each version, parents first.

    Args:
        source: The store to copy from.
        target: The store to copy to.
        have: Chunks that the target contains; `bring` adds those that it copies.

    Attributes:
        copied: Number of packs copied so far.
        nbytes: Their size in bytes.
    """

    def __init__(self, source: Database, target: Database, have: set[ChunkId]) -> None:
        self._source = source
        self._target = target
        self._have = have
        self._existing = set(_pack_sizes(target.store))
        self._sizes = _pack_sizes(source.store)
        self.copied = 0
        self.nbytes = 0
        if source.store.capabilities.cheap_reads:
            source.index.load()

    def bring(self, snapshot: Snapshot, table: PackTable) -> PackTable:
        """Copy the packs that a version needs and the target lacks.

        Args:
            snapshot: The version.
            table: The packs of its chunks as noted in the source. A repack may have replaced them.

        Returns:
            The packs of its chunks in the target, where known.

        Raises:
            IntegrityError: The source cannot rebuild one of its chunks.
        """
        self._source.index.learn(table)
        chunks = snapshot.stored_chunks()
        plan = _retry(self._source, lambda: self._bring(chunks))
        self._have |= plan.chunks
        return self._table(plan, chunks, len(snapshot.structure()), table)

    def _bring(self, chunks: Iterable[ChunkId]) -> _Plan:
        """Copy the packs of these chunks, and return the plan that named them."""
        plan = self._plan(chunks)
        self._copy([pack for pack in plan.in_order() if pack not in self._existing])
        return plan

    def _plan(self, chunks: Iterable[ChunkId]) -> _Plan:
        """Return the packs of the chains that lead to these chunks from what the target has."""
        finder = self._source.index.finder(self._have)
        plan = _Plan({}, {}, set())
        seen: set[Node] = set()
        for chunk in chunks:
            chain = self._source.index.find_chain(chunk, finder)
            if chain is None:
                raise _lost(self._source, chunk)
            after: PackId | None = None
            for location in chain.back(seen):
                plan.packs.setdefault(location.pack, set())
                if after not in (None, location.pack):
                    plan.packs[after].add(location.pack)
                plan.chunks.add(location.frame.chunk)
                plan.own.setdefault(chunk, location.pack)
                after = location.pack
        return plan

    def _copy(self, packs: Sequence[PackId]) -> None:
        if not packs:
            return
        if not self._sizes.keys() >= set(packs):  # some were written since the source was listed
            self._sizes = _pack_sizes(self._source.store)
        total = sum(self._sizes.get(pack, 0) for pack in packs)
        self._target.reporter.started(Stage.TRANSFER, total)
        try:
            for batch in self._batches(packs):
                listed = [names.pack_name(pack) for pack in batch]
                self._target.store.copy_from(self._source.store, listed)
                nbytes = sum(self._sizes.get(pack, 0) for pack in batch)
                self._existing.update(batch)
                self.copied += len(batch)
                self.nbytes += nbytes
                self._target.reporter.advanced(Stage.TRANSFER, nbytes)
        finally:
            self._target.reporter.finished(Stage.TRANSFER)

    def _batches(self, packs: Sequence[PackId]) -> Iterator[list[PackId]]:
        """Yield the packs in order, in batches of limited number and size."""
        batch: list[PackId] = []
        nbytes = 0
        for pack in packs:
            size = self._sizes.get(pack, 0)
            if batch and (len(batch) == _BATCH_PACKS or nbytes + size > _BATCH_BYTES):
                yield batch
                batch, nbytes = [], 0
            batch.append(pack)
            nbytes += size
        yield batch

    def _table(
        self, plan: _Plan, chunks: Iterable[ChunkId], structure: int, table: PackTable
    ) -> PackTable:
        """Return the packs of a version's chunks in the target.

        A chain that is known in the source is also one of the target if the target contains all
        of its packs.
        """
        packs: dict[PackId, None] = {}
        own: dict[ChunkId, PackId] = {}
        has_gaps, needed = False, 0
        seen: set[Node] = set()
        for number, chunk in enumerate(chunks, 1):
            chain = self._source.index.chain(chunk)
            found = [location.pack for location in chain.back(seen)] if chain else []
            if not found or not self._existing.issuperset(found):
                # The packs that the target contains are kept: other chunks' chains may end there.
                present = [pack for pack in found if pack in self._existing]
                found = [plan.own.get(chunk, table.chunks[chunk]), *present]
                has_gaps = True
            own[chunk] = found[0]
            packs.update(dict.fromkeys(found))
            if number == structure:
                needed = len(packs)
        if has_gaps:
            packs.update(dict.fromkeys(plan.packs))
            packs.update(dict.fromkeys(pack for pack in table.packs if pack in self._existing))
        return PackTable(list(packs), own, structure=None if has_gaps else needed)


class _FrameCopy:
    """Copies single frames into new packs, where whole packs contain too much or are damaged.

    It searches the target's packs for each chunk, and skips frames that are reported as damaged.

    Args:
        source: The store to copy from.
        target: The store to copy to.

    Attributes:
        copied: Number of packs written so far.
        nbytes: Their size in bytes.
    """

    def __init__(self, source: Database, target: Database) -> None:
        self._source = source
        self._target = target
        self.copied = 0
        self.nbytes = 0
        in_doubt = source.index.has_suspects or target.index.has_suspects
        if in_doubt or target.store.capabilities.cheap_reads:
            target.index.load()

    def bring(self, snapshot: Snapshot, table: PackTable) -> PackTable:
        """Copy the frames that a version needs and the target lacks.

        Args:
            snapshot: The version.
            table: The packs of its chunks as noted in the source. A repack may have replaced them.

        Returns:
            The packs of its chunks in the target.

        Raises:
            IntegrityError: The source cannot rebuild one of its chunks.
        """
        self._source.index.learn(table)
        chunks = [chunk for chunk in snapshot.stored_chunks() if chunk not in self._target.index]
        self._source.index.prepare(chunks)
        writer = PackWriter(self._target)
        try:
            _retry(
                self._source,
                lambda: self._write(writer, [self._chain(chunk) for chunk in chunks]),
            )
            writer.finish()
        finally:
            writer.close()
        self.copied += writer.packs
        self.nbytes += sum(self._target.store.sizes(writer.names).values())
        return self._target.snapshots.pack_table(snapshot)

    def _chain(self, chunk: ChunkId) -> Chain:
        """Return the cheapest chain to a chunk, without frames that turn out to be damaged."""
        index = self._source.index
        chain = index.find_chain(chunk)
        # The chunk has a chain, but a frame of it is reported as damaged. Reading the chunk tests
        # the chain: if it really is damaged, the index excludes it and finds another one.
        if chain is not None and chunk not in index:
            size = next(chain.back()).frame.raw_size
            self._source.reader.readinto(chunk, uninitialized(size))
            chain = index.find_chain(chunk)
        if chain is None:
            raise _lost(self._source, chunk)
        return chain

    def _write(self, writer: PackWriter, chains: Sequence[Chain]) -> None:
        """Copy the frames of these chains, bases first; shared beginnings are copied once."""
        store, reporter = self._source.store, self._target.reporter
        reporter.started(Stage.TRANSFER, sum(chain.nbytes for chain in chains))
        try:
            with ahead(store) as announce:
                seen: set[Node] = set()
                new = [[*chain.back(seen)][::-1] for chain in chains]
                announce([[location.range for location in locations] for locations in new])
                for chain, locations in zip(chains, new, strict=True):
                    for location in locations:
                        frame, payload = location.frame, read_payload(store, location)
                        encoded = EncodedFrame(frame.encoding, payload, frame.checksum, frame.base)
                        writer.add(frame.chunk, frame.raw_size, [encoded])
                    reporter.advanced(Stage.TRANSFER, chain.nbytes)
        finally:
            reporter.finished(Stage.TRANSFER)


def _retry(source: Database, bring: Callable[[], _R]) -> _R:
    """Call `bring`, and call it again if a repack has deleted packs of the source.

    Raises:
        NotFoundError: Packs were missing at each of three attempts.
    """
    for _ in range(_MAX_ATTEMPTS - 1):
        try:
            return bring()
        except NotFoundError:
            source.index.load(exact=True)  # finds the packs that the chunks are in now
    return bring()


def _pack_sizes(store: ObjectStore) -> dict[PackId, int]:
    """Return the bytes of each pack that a listing shows."""
    return {parse_id(PackId, names.PACKS, info.name): info.size for info in list_packs(store)}
