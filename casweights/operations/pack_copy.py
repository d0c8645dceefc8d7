"""Copy the frames that versions need from one store to another: whole packs, or single frames."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from casweights.config import MiB
from casweights.database.frames import read_payload
from casweights.database.packs import list_packs
from casweights.database.writer import PackWriter
from casweights.errors import ErrorCode, IntegrityError, NotFoundError
from casweights.events import Stage
from casweights.format import names
from casweights.format.pack_table import PackTable
from casweights.ids import CarriedPackId
from casweights.stores.optional import ahead
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from casweights.database import Database
    from casweights.database.chain import Chain, Node
    from casweights.format.pack import Location
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId, PackId
    from casweights.stores.base import ObjectStore

_R = TypeVar("_R")
_BATCH_PACKS = 16  # packs copied in one call; progress is reported after each batch
_BATCH_BYTES = 256 * MiB  # bytes copied in one call
_MAX_ATTEMPTS = 3  # to read packs, which a repack of the source may delete in between


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
        frames: The frames that the target lacked.
    """

    packs: dict[PackId, set[PackId]]
    own: dict[ChunkId, PackId]
    chunks: set[ChunkId]
    frames: list[Location]

    def foreign(self, existing: Container[PackId]) -> set[PackId]:
        """Return the packs that other versions carry which the target does not contain."""
        carried = (pack for pack in self.packs if isinstance(pack, CarriedPackId))
        return {pack for pack in carried if pack not in existing}

    def in_order(self) -> list[PackId]:
        """Return the packs, those with bases first."""
        order = TopologicalSorter(self.packs)
        try:
            return list(order.static_order())
        except CycleError:
            # Two packs may hold bases for each other. Any order will do, since no snapshot of the
            # target refers to them before all are copied.
            return list(self.packs)


class PackCopy:
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

    def bring(self, stored: StoredSnapshot) -> PackTable:
        """Copy the packs that a version needs and the target lacks, except its own object.

        Args:
            stored: The version. A repack may have replaced the packs of its table.

        Returns:
            The packs of its chunks in the target, where known.

        Raises:
            IntegrityError: The source cannot rebuild one of its chunks.
        """
        self._source.index.learn(stored.table)
        if stored.carried is not None:
            self._existing.add(stored.carried)
        chunks, structure = stored.snapshot.stored_chunks(), len(stored.snapshot.structure())
        plan = _retry(self._source, lambda: self._bring(chunks))
        self._have |= plan.chunks
        if plan.foreign(self._existing):
            self._target.index.expect()  # versions were copied whose frames it does not know
            return self._target.snapshots.pack_table_of(chunks, structure, stored.locations)
        return self._table(plan, chunks, structure, stored.table)

    def forget(self, stored: StoredSnapshot) -> None:
        """Forget a version that was brought, because its object is gone and was not copied."""
        if stored.carried is not None:
            self._existing.discard(stored.carried)
            self._have.difference_update(frame.chunk for frame in stored.frames)
            self._source.index.load(exact=True)

    def _bring(self, chunks: Iterable[ChunkId]) -> _Plan:
        """Copy the packs of these chunks, and return the plan that named them.

        The object of another version is not copied, because that version would then be in the
        target, without what it needs. The frames in it that this version needs become a pack.
        """
        plan = self._plan(chunks)
        foreign = plan.foreign(self._existing)
        new = [pack for pack in plan.in_order() if pack not in self._existing]
        self._copy([pack for pack in new if pack not in foreign])
        self._copy_frames([at for at in plan.frames if at.pack in foreign])
        return plan

    def _copy_frames(self, locations: Sequence[Location]) -> None:
        """Write these frames as packs of the target."""
        writer = PackWriter(self._target)
        try:
            for location in locations:
                _add_copy(writer, self._source.store, location)
            writer.finish()
        finally:
            writer.close()
        self.copied += writer.packs
        self.nbytes += sum(self._target.store.sizes(writer.names).values())

    def save(self, stored: StoredSnapshot, table: PackTable) -> None:
        """Write a version to the target, with the frames that it carries."""
        if not stored.frames:
            self._target.snapshots.save_copy(stored.with_table(table))
            return
        nbytes = sum(frame.size for frame in stored.frames)
        self._target.reporter.started(Stage.TRANSFER, nbytes)
        try:
            self._save_with_frames(stored, table)
            self._target.reporter.advanced(Stage.TRANSFER, nbytes)
        finally:
            self._target.reporter.finished(Stage.TRANSFER)

    def _save_with_frames(self, stored: StoredSnapshot, table: PackTable) -> None:
        """Copy a version's object as it is where its table is right in the target, too."""
        source, target = self._source.store, self._target
        name = names.snapshot_name(stored.snapshot.id)
        if _same_places(stored.table, target.snapshots.placed(table)):
            target.store.copy_from(source, [name])
            return
        payloads = [source.get(name, frame.offset, frame.size) for frame in stored.frames]
        target.snapshots.save_copy(stored.with_table(table), payloads)

    def _plan(self, chunks: Iterable[ChunkId]) -> _Plan:
        """Return the packs of the chains that lead to these chunks from what the target has."""
        # The target may have a root as a derived chunk itself, which is then of no use.
        finder = self._source.index.finder(self._have, with_roots=False)
        plan = _Plan({}, {}, set(), [])
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
                plan.frames.append(location)
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


class FrameCopy:
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

    def bring(self, stored: StoredSnapshot) -> PackTable:
        """Copy the frames that a version needs and the target lacks.

        Args:
            stored: The version. A repack may have replaced the packs of its table.

        Returns:
            The packs of its chunks in the target.

        Raises:
            IntegrityError: The source cannot rebuild one of its chunks.
        """
        self._source.index.learn(stored.table)
        snapshot = stored.snapshot
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

    def save(self, stored: StoredSnapshot, table: PackTable) -> None:
        """Write a version without frames to the target."""
        self._target.snapshots.save_copy(stored.bare(table))

    def forget(self, stored: StoredSnapshot) -> None:
        """Do nothing: what `bring` copied is in the target."""

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
                        _add_copy(writer, store, location)
                    reporter.advanced(Stage.TRANSFER, chain.nbytes)
        finally:
            reporter.finished(Stage.TRANSFER)


def _add_copy(writer: PackWriter, store: ObjectStore, location: Location) -> None:
    """Add a frame of another store to the packs that are being written, as it is."""
    frame = location.frame
    writer.add(frame.chunk, frame.raw_size, [frame.encoded(read_payload(store, location))])


def _same_places(table: PackTable, other: PackTable) -> bool:
    """Whether a version's object with one table is as good as with the other."""
    return (
        table.shallow == other.shallow
        and set(table.packs) == set(other.packs)
        and table.places.items() >= other.places.items()
    )


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
    return {names.pack_of(info.name): info.size for info in list_packs(store)}
