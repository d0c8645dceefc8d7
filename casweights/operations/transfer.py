"""Transfer: versions from one store to another, under the same IDs; only what is missing moves.

Packs go as they are; of a version without its history only the frames that it needs, in packs of
their own. Packs go before the snapshots that need them, and snapshots after their parents. So a
transfer that fails or is killed leaves the target sound, and repeating it moves nothing twice.
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
_BATCH_PACKS = 16  # copied in one call; progress is told after each batch
_BATCH_BYTES = 256 * MiB  # copied in one call
_MAX_ATTEMPTS = 3  # to read packs, which a repack of the source may delete


def transfer(
    source: Database, target: Database, tips: Sequence[SnapshotId], *, history: bool = True
) -> TransferStats:
    """Bring versions to another store; no branch and no tag moves.

    Args:
        source: Where they are.
        target: Where they go.
        tips: The versions.
        history: Bring the versions before them, too, as far as the source has them.

    Raises:
        NotFoundError: The source does not have one of them.
        InvalidInputError: The stores have different digests or chunk sizes.
        IntegrityError: The source is damaged.
        StoreError: The target could not be written.
    """
    check_configs(source, target)
    source.heed_findings()
    target.heed_findings()
    there = set(target.snapshots.ids())
    # Chunks that the target has only in doubt are brought again, even if it has their versions.
    whole = set() if target.index.has_suspects else there
    missing = _missing_versions(source, tips, whole, history=history)
    if not missing:
        return TransferStats(snapshots=0, packs=0, nbytes=0, refs={})
    packs: _PackCopy | _FrameCopy
    if history and not (source.index.has_suspects or target.index.has_suspects):
        packs = _PackCopy(source, target, _chunks_there(source, target, missing, there))
    else:
        packs = _FrameCopy(source, target)
    snapshots = nbytes = 0
    for version, parents in missing.items():
        stored = source.snapshots.load_stored(version)
        table = packs.bring(stored.snapshot, stored.table)
        if version in there:
            continue
        table = table._replace(shallow=not there.issuperset(parents))
        target.snapshots.save_copy(stored._replace(table=table))
        snapshots, nbytes = snapshots + 1, nbytes + target.store.size(names.snapshot_name(version))
        there.add(version)
    return TransferStats(
        snapshots=snapshots, packs=packs.copied, nbytes=nbytes + packs.nbytes, refs={}
    )


def check_configs(source: Database, target: Database) -> None:
    """Refuse stores whose versions have different IDs for the same content.

    Raises:
        InvalidInputError: Their digests or chunk sizes differ.
    """
    if source.config != target.config:
        digest, size = source.config.digest, source.config.chunk_size // KiB
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"IDs depend on digest and chunk size, which differ: {source.store.url} has "
            f"{_described(source.config)}, {target.store.url} has {_described(target.config)}. "
            f"Use a target made with `casweights init --digest {digest} --chunk-size {size}KiB`",
        )


def _described(config: StoreConfig) -> str:
    return f"{config.digest} and chunks of {config.chunk_size} bytes"


def _missing_versions(
    source: Database, tips: Sequence[SnapshotId], there: set[SnapshotId], *, history: bool
) -> Parents:
    """The versions to bring with their parents, none before those."""
    found: Parents = {}
    pending = list(tips)
    while pending:
        version = pending.pop()
        if version in there or version in found:
            continue
        snapshot = source.snapshots.load(version)
        found[version] = snapshot.parents
        if history:
            pending += source.snapshots.parents(snapshot)
    order = TopologicalSorter({v: [p for p in found[v] if p in found] for v in found})
    return {version: found[version] for version in order.static_order()}


def _chunks_there(
    source: Database, target: Database, missing: Parents, there: set[SnapshotId]
) -> set[ChunkId]:
    """Chunks that the target has, of those that the missing versions are likely to build on."""
    known = {parent for parents in missing.values() for parent in parents}
    if not all(missing.values()):  # the first version of a branch may resemble any other branch
        known.update(target.refs.branches().values(), target.refs.tags().values())
    chunks: set[ChunkId] = set()
    for version in known & there:
        chunks.update(_chunks_of(source, target, version))
    return chunks


def _chunks_of(source: Database, target: Database, version: SnapshotId) -> Iterator[ChunkId]:
    """The chunks of a version that both stores may have, from where it is read faster."""
    for db in sorted((target, source), key=lambda db: not db.store.capabilities.cheap_reads):
        with suppress(NotFoundError, IntegrityError):
            yield from db.snapshots.load(version).chunks()
            return


def _lost(source: Database, chunk: ChunkId) -> IntegrityError:
    why = f"{source.store.url} has no way to rebuild the chunk {chunk}"
    for damage in source.index.damaged.values():
        return IntegrityError(ErrorCode.MISSING_CHUNK, f"{why}. Damaged is: {damage}")
    return IntegrityError(ErrorCode.MISSING_CHUNK, why)


class _Plan(NamedTuple):
    """How a version is rebuilt in the target.

    Attributes:
        packs: The packs that this takes beside what was there before, with those of their bases.
        own: The pack of each chunk's own frame, for chunks that were not there before.
        chunks: Chunks that are there afterwards.
    """

    packs: dict[PackId, set[PackId]]
    own: dict[ChunkId, PackId]
    chunks: set[ChunkId]

    def in_order(self) -> list[PackId]:
        """The packs, bases first."""
        order = TopologicalSorter(self.packs)
        try:
            return list(order.static_order())
        except CycleError:  # each has bases of the other; no reader minds
            return list(self.packs)


class _PackCopy:
    """Copies packs.

    Args:
        source: Where they are.
        target: Where they go.
        have: Chunks that the target has; those that come are added.

    Attributes:
        copied: Packs copied so far.
        nbytes: Their bytes.
    """

    def __init__(self, source: Database, target: Database, have: set[ChunkId]) -> None:
        self._source = source
        self._target = target
        self._have = have
        self._there = set(_pack_sizes(target.store))
        self._sizes = _pack_sizes(source.store)
        self.copied = 0
        self.nbytes = 0
        if source.store.capabilities.cheap_reads:
            source.index.load()

    def bring(self, snapshot: Snapshot, table: PackTable) -> PackTable:
        """Bring what a version needs.

        Args:
            snapshot: The version.
            table: Where its chunks lay in the source when it was written.

        Returns:
            Where they lie in the target, as far as that is known.

        Raises:
            IntegrityError: The source has no chain for one of its chunks.
        """
        self._source.index.learn(table)
        chunks = snapshot.chunks()
        plan = _retry(self._source, lambda: self._bring(chunks))
        self._have |= plan.chunks
        return self._table(plan, chunks, table)

    def _bring(self, chunks: Iterable[ChunkId]) -> _Plan:
        plan = self._plan(chunks)
        self._copy([pack for pack in plan.in_order() if pack not in self._there])
        return plan

    def _plan(self, chunks: Iterable[ChunkId]) -> _Plan:
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
        if not self._sizes.keys() >= set(packs):  # they appeared since the source was listed
            self._sizes = _pack_sizes(self._source.store)
        total = sum(self._sizes.get(pack, 0) for pack in packs)
        self._target.reporter.started(Stage.TRANSFER, total)
        try:
            for batch in self._batches(packs):
                listed = [names.pack_name(pack) for pack in batch]
                self._target.store.copy_from(self._source.store, listed)
                nbytes = sum(self._sizes.get(pack, 0) for pack in batch)
                self._there.update(batch)
                self.copied += len(batch)
                self.nbytes += nbytes
                self._target.reporter.advanced(Stage.TRANSFER, nbytes)
        finally:
            self._target.reporter.finished(Stage.TRANSFER)

    def _batches(self, packs: Sequence[PackId]) -> Iterator[list[PackId]]:
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

    def _table(self, plan: _Plan, chunks: Iterable[ChunkId], table: PackTable) -> PackTable:
        """What the source knows of where chunks lie holds in the target if it has those packs."""
        packs: dict[PackId, None] = {}
        own: dict[ChunkId, PackId] = {}
        has_gaps = False
        seen: set[Node] = set()
        for chunk in chunks:
            chain = self._source.index.chain(chunk)
            found = [location.pack for location in chain.back(seen)] if chain else []
            if not found or not self._there.issuperset(found):
                there = [
                    pack for pack in found if pack in self._there
                ]  # other chunks' chains end in them
                found = [plan.own.get(chunk, table.chunks[chunk]), *there]
                has_gaps = True
            own[chunk] = found[0]
            packs.update(dict.fromkeys(found))
        if has_gaps:
            packs.update(dict.fromkeys(plan.packs))
            packs.update(dict.fromkeys(pack for pack in table.packs if pack in self._there))
        return PackTable(list(packs), own)


class _FrameCopy:
    """Copies frames into packs of their own: there is much in packs that one version does not need.

    It looks at what the target really has, and passes over frames that were found damaged.

    Args:
        source: Where they are.
        target: Where they go.

    Attributes:
        copied: Packs written so far.
        nbytes: Their bytes.
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
        """See `_PackCopy.bring`."""
        self._source.index.learn(table)
        chunks = [chunk for chunk in snapshot.chunks() if chunk not in self._target.index]
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
        return self._target.snapshots.pack_table(snapshot.chunks())

    def _chain(self, chunk: ChunkId) -> Chain:
        index = self._source.index
        chain = index.find_chain(chunk)
        if chain is not None and chunk not in index:  # in doubt: is it damaged?
            size = next(chain.back()).frame.raw_size
            self._source.reader.readinto(chunk, uninitialized(size))
            chain = index.find_chain(chunk)
        if chain is None:
            raise _lost(self._source, chunk)
        return chain

    def _write(self, writer: PackWriter, chains: Sequence[Chain]) -> None:
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
    """Bring something, and try again where a repack has deleted packs of the source."""
    for _ in range(_MAX_ATTEMPTS - 1):
        try:
            return bring()
        except NotFoundError:
            source.index.load(exact=True)  # which finds out where the chunks are now
    return bring()


def _pack_sizes(store: ObjectStore) -> dict[PackId, int]:
    return {parse_id(PackId, names.PACKS, info.name): info.size for info in list_packs(store)}
