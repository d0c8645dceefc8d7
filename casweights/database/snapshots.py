"""Reads snapshots from the store and writes them to it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from casweights.config import MiB
from casweights.database.archives import Archives
from casweights.database.cache import ChunkCache
from casweights.database.packs import PackContents, read_snapshot_index
from casweights.database.read_plan import END_BYTES, end_bytes, pack_ends, small_packs
from casweights.errors import ErrorCode, IntegrityError
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.format.file_entry import PAGE_IDS
from casweights.format.pack_table import PackTable
from casweights.format.snapshot import (
    StoredSnapshot,
    carried_locations,
    decode_snapshot,
    encode_snapshot,
    parse_snapshot,
)
from casweights.ids import SnapshotId
from casweights.stores.base import ObjectInfo
from casweights.stores.optional import SupportsLocators, ahead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.config import StoreConfig
    from casweights.database.chain import Node
    from casweights.database.expired import ExpiredStore
    from casweights.database.index import ChunkIndex
    from casweights.database.merged import Merged
    from casweights.database.reader import ChunkReader
    from casweights.format.lineage import Origin
    from casweights.format.manifest import Snapshot
    from casweights.format.pack import Location, OpenPack
    from casweights.ids import ChunkId, PackId
    from casweights.stores.base import ObjectStore, Parts
    from casweights.system.buffers import Buffer

MIN_PREFIX = 4  # hexadecimal digits of an ID that users must write at least
_STRUCTURE_BYTES = 32 * MiB  # of structure chunks in memory: twice those of a very large model
_STRUCTURE_LEAST = 1 * MiB  # for small models
_STRUCTURE_VERSIONS = 4  # of which a handle keeps the structure chunks: a few heads and parents
_LEARNED = 8  # versions that the index does not forget: the current ones of all users of a handle
_RECENT = 16  # snapshots kept in memory: the head of a followed branch, and versions it builds on


class SnapshotStore:
    """Snapshots by ID; the last few stay in memory. Safe for use from several threads.

    Old snapshots may be in an archive instead of an object of their own; callers see no difference.
    To read the chunks of a snapshot, call `load` with `with_locations` first, so that the index
    learns where they are. To write a snapshot, write all packs with its chunks first, and then
    call `save`, which writes the last frames in the snapshot's own object. (Or call `encode`, write
    the object, and call `saved`.) After each version, call `retain` to bound the memory of the
    index.

    Attributes:
        archives: Where old versions are that have no object of their own.
        structure: Structure chunks that were read or written recently. Most of them are also part
            of the next version, or bases of its structure chunks.
    """

    def __init__(
        self,
        store: ObjectStore,
        index: ChunkIndex,
        reader: ChunkReader,
        config: StoreConfig,
        expired: ExpiredStore,
    ) -> None:
        self._store = store
        self.archives = Archives(store, expired)
        self._reader = reader
        self.structure = ChunkCache(_STRUCTURE_LEAST, PAGE_IDS * 32)
        self._local = [self.structure]
        self._config = config
        self._lock = threading.Lock()
        self._index = index
        self._learned: OrderedDict[SnapshotId, PackTable] = OrderedDict()
        self._shallow: set[SnapshotId] = set()  # snapshots whose parents may be missing here
        self._recent: OrderedDict[SnapshotId, StoredSnapshot] = OrderedDict()

    def load(self, snapshot_id: SnapshotId, *, with_locations: bool = False) -> Snapshot:
        """Return a snapshot, from memory or from the store.

        Args:
            snapshot_id: The snapshot's ID.
            with_locations: Whether its chunks will be read. Then the index learns their packs.

        Raises:
            NotFoundError: The store does not contain the snapshot.
            IntegrityError: The object is damaged, or contains another snapshot.
        """
        stored = self._recent.get(snapshot_id) or self.load_stored(snapshot_id)
        if with_locations:
            self._index.expect()
            with suppress(IntegrityError):  # a caller that uses its chunks gets the error
                if snapshot_id not in self._learned:
                    self._learn(stored.table, PackContents.of(stored))
                self._note_learned(stored)
        return stored.snapshot

    @contextmanager
    def reading(self, snapshot_id: SnapshotId) -> Iterator[Snapshot]:
        """Provide a snapshot most of whose chunks the caller reads in the ``with`` block.

        Over a network, a small pack, or object of a version, is then fetched once: for its index,
        for headers and lists of chunks, and for the chunks themselves.

        Raises:
            NotFoundError: The store does not contain the snapshot.
            IntegrityError: The object is damaged, or contains another snapshot.
        """
        end = end_bytes(self._store)
        stored = self._recent.get(snapshot_id) or self.load_stored(snapshot_id, end)
        with ahead(self._store) as fetch:
            if snapshot_id not in self._learned:
                lacking = self._reader.with_local(*self._local).lacking(stored.snapshot.structure())
                self._learn(stored.structure_table().own_part(lacking), PackContents.of(stored))
                fetch(small_packs(self._store, self._index, lacking))
            yield self.load(snapshot_id, with_locations=True)

    def locate(self, snapshot_id: SnapshotId) -> None:
        """Let the index learn the packs of a snapshot, and raise the errors of `load`.

        Where reads are cheap, it also looks up whether the packs still exist, and searches the
        chunks of those that are gone.
        """
        if snapshot_id not in self._learned:
            self.load(snapshot_id, with_locations=True)
        table = self._learned.get(snapshot_id)
        is_cheap = self._store.capabilities.cheap_reads
        if table is not None and is_cheap and self._index.recheck(table.packs):
            self._index.prepare_all()
            self._index.find_again(list(table.chunks))

    def load_stored(self, snapshot_id: SnapshotId, end: int = END_BYTES) -> StoredSnapshot:
        """Read a snapshot's object: the snapshot, its encoded manifest and its pack table.

        Args:
            snapshot_id: The snapshot's ID.
            end: Bytes of the object's end to read at once.

        Raises:
            NotFoundError: The store does not contain the snapshot.
            IntegrityError: The object is damaged, contains another snapshot, or was made with
                another digest or chunk size than the store's.
        """
        own = partial(self._read_own, snapshot_id, end)
        parse = partial(self._parse_archived, snapshot_id)
        return self._checked(self.archives.load(snapshot_id, own, parse))

    def load_own(self, snapshot_id: SnapshotId) -> StoredSnapshot:
        """Do the same, but look into no archive."""
        return self._checked(self._read_own(snapshot_id, END_BYTES, False))

    def load_archived(self, snapshot_id: SnapshotId, archive: str) -> StoredSnapshot:
        """Do the same, but look only into one archive, which the last listing has shown."""
        parse = partial(self._parse_archived, snapshot_id)
        return self._checked(self.archives.load_from(archive, snapshot_id, parse))

    def _checked(self, stored: StoredSnapshot) -> StoredSnapshot:
        """Check that a version belongs to this store, and remember it."""
        if stored.snapshot.config != self._config:
            name = names.snapshot_name(stored.snapshot.id)
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT,
                f"{name} does not belong here: it was made with {stored.snapshot.config}, but the "
                f"store has {self._config}",
            )
        self._keep(stored)
        if stored.shallow:
            self._shallow.add(stored.snapshot.id)
        return stored

    def _read_own(self, snapshot_id: SnapshotId, end: int, is_aside: bool) -> StoredSnapshot:
        name = names.snapshot_name(snapshot_id)
        read = partial(self._read, snapshot_id, name, end, is_aside)
        try:
            return read()
        except IntegrityError:
            if not self._store.forget(name):
                raise
        return read()  # the damaged bytes came from a cache

    def _read(self, snapshot_id: SnapshotId, name: str, end: int, is_aside: bool) -> StoredSnapshot:
        """Read the end of a snapshot's object, over a network with structure chunks before it."""
        whole = self._store.get(name) if is_aside else b""
        tail, size = (whole, len(whole)) if whole else self._store.read_end(name, end)
        trusting = not self._store.capabilities.cheap_reads
        info = ObjectInfo(name, size)
        index = read_snapshot_index(self._store, info, tail, trusting=trusting)
        contents = PackContents(info, 0, carried_locations(snapshot_id, index.frames))
        stored = parse_snapshot(index, snapshot_id, name, partial(self._read_structure, contents))
        stored.nbytes = size
        return stored

    def _parse_archived(self, snapshot_id: SnapshotId, data: bytes, name: str) -> StoredSnapshot:
        """Parse a snapshot's object that an archive contains."""
        read = partial(self._read_structure, PackContents(ObjectInfo(name, len(data)), 0, []))
        stored = decode_snapshot(data, snapshot_id, name, read)
        if stored.frames:
            raise corrupt(name, "it carries frames")
        stored.nbytes = len(data)
        return stored

    def _learn(self, table: PackTable, contents: PackContents) -> None:
        """Let the index learn a snapshot's packs; it knows the one that the snapshot carries."""
        self._index.learn(table)
        if contents.locations and self._index.unread([contents.locations[0].pack]):
            self._index.add(contents.info.name, contents.info.size, contents.locations)

    def make_room(self, structure: int) -> None:
        """Let `structure` hold the chunks of a few versions that have this many bytes of them."""
        self.structure.grow(min(_STRUCTURE_BYTES, _STRUCTURE_VERSIONS * structure))

    def _read_structure(
        self, contents: PackContents, table: PackTable, wanted: Mapping[ChunkId, int]
    ) -> Mapping[ChunkId, bytes]:
        """Read structure chunks and check them against their IDs."""
        if not wanted:
            return {}
        self.make_room(sum(wanted.values()))
        reader, found = self._reader.with_local(*self._local), {}
        lacking = reader.lacking(wanted)
        with ahead(self._store) as fetch, reader.ahead() as announce:
            # The bases of lists of chunks are often local, and then their packs are not read.
            for part in (table.own_part(lacking), table):
                self._learn(part, contents)
                fetch(pack_ends(self._store, self._index, part.packs))
                self._index.prepare_packs(part.packs)
                if reader.reaches(lacking):
                    break
            announce(lacking)
            for chunk, size in wanted.items():
                found[chunk] = reader.read(chunk, size)
                self.structure.put(chunk, memoryview(found[chunk]))
        return found

    @contextmanager
    def sharing(self, other: SnapshotStore) -> Iterator[None]:
        """Use the structure chunks that another store has in memory, in the ``with`` block."""
        before, self._local = self._local, [*self._local, other.structure]
        try:
            yield
        finally:
            self._local = before

    def _keep(self, stored: StoredSnapshot) -> None:
        with self._lock:
            self._recent[stored.snapshot.id] = stored
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)

    def encode(
        self, snapshot: Snapshot, manifest: bytes, last: OpenPack | None = None, *origins: Origin
    ) -> tuple[StoredSnapshot, Parts]:
        """Return a new version with the content of its object, which carries the last frames.

        Args:
            snapshot: The snapshot. All its chunks must be in the index or in `last`.
            manifest: Its encoded manifest, from `EncodedSnapshot.of`.
            last: Frames that are in no object yet, if any.
            origins: The versions that its frames were made from, the largest first.

        Raises:
            IntegrityError: A chunk or one of its bases is missing.
        """
        frames, payloads = ((), ()) if last is None else (last.frames, last.payloads)
        table = self.pack_table(snapshot, last)
        stored = StoredSnapshot(snapshot, manifest, table, frames, origins)
        return self.encode_copy(stored, payloads)

    def saved(self, stored: StoredSnapshot) -> None:
        """Remember a version whose object is now in the store."""
        contents = PackContents.of(stored)
        if stored.frames:
            self._index.add(contents.info.name, contents.info.size, contents.locations)
        self._note_learned(stored)  # the index has its chunks, also those just written
        self._keep(stored)

    def save(
        self,
        stored: StoredSnapshot,
        parts: Parts,
        companions: Sequence[tuple[str, Parts]] = (),
        *,
        assume_absent: bool = False,
    ) -> None:
        """Write a new version, as `encode` returned it, under its own name.

        Args:
            stored: The version.
            parts: The content of its object.
            companions: Other objects to put in the same batch, after it.
            assume_absent: Whether no part of it is there, see `ObjectStore.batch`.
        """
        name = names.snapshot_name(stored.snapshot.id)
        self._store.put_all([(name, parts), *companions], assume_absent=assume_absent)
        self.saved(stored)

    def save_copy(self, stored: StoredSnapshot, payloads: Sequence[Buffer] = ()) -> None:
        """Write a snapshot from another store, with this store's locators of its packs.

        Args:
            stored: The snapshot, with the table for this store.
            payloads: The stored bytes of the frames that it carries.
        """
        _, parts = self.encode_copy(stored, payloads)
        self._store.put(names.snapshot_name(stored.snapshot.id), parts)

    def encode_copy(
        self, stored: StoredSnapshot, payloads: Sequence[Buffer] = ()
    ) -> tuple[StoredSnapshot, Parts]:
        """Return a version, with its table for this store, and the content of its object.

        Args:
            stored: The snapshot, with the table for this store except for locators.
            payloads: The stored bytes of the frames that it carries.
        """
        placed = stored.with_table(self.placed(stored.table))
        parts = encode_snapshot(placed, payloads)
        placed.nbytes = sum(map(len, parts))
        return placed, parts

    def placed(self, table: PackTable) -> PackTable:
        """Return a pack table with the locators that this store knows of its packs."""
        locators = self._store.ability(SupportsLocators)
        if locators is None:
            return table._replace(places={})
        found = {pack: locators.locator(names.pack_name(pack)) for pack in table.packs}
        places = {pack: locator for pack, locator in found.items() if locator is not None}
        return table._replace(places=places)

    def pack_table(self, version: Snapshot, last: OpenPack | None = None) -> PackTable:
        """Return the pack table of a version, with all packs that its chains need.

        Args:
            version: The version. Its chunks must be in the index or in `last`.
            last: Frames that the version's object will carry, if any.

        Raises:
            IntegrityError: A chunk or one of its bases is missing.
        """
        carried = [] if last is None else carried_locations(version.id, last.frames)
        return self.pack_table_of(version.stored_chunks(), len(version.structure()), carried)

    def pack_table_of(
        self, wanted: Iterable[ChunkId], structure: int, carried: Sequence[Location] = ()
    ) -> PackTable:
        """Return the same for distinct chunks, of which the first `structure` are structure."""
        seen: set[Node] = set()
        # Reversed, so that the first of several frames of one chunk is used.
        new = {at.frame.chunk: at for at in carried[::-1]}
        found = iter(self._index.packs([chunk for chunk in wanted if chunk not in new], seen))

        def packs(chunk: ChunkId) -> Sequence[PackId]:
            known = () if chunk in new else next(found)
            return known or [at.pack for at in self._frames(chunk, new.get(chunk), seen)]

        chains = ((chunk, packs(chunk)) for chunk in wanted)
        return PackTable.collect(chains, structure, [at.pack for at in carried[:1]])

    def _frames(self, chunk: ChunkId, new: Location | None, seen: set[Node]) -> Sequence[Location]:
        """Return the frames of a chunk's chain from the last to the first.

        Args:
            chunk: The chunk.
            new: Its own frame if that is not in the index yet, otherwise None.
            seen: Limits the walk to frames that no earlier chain had, as in `Chain.back`.
        """
        frames = [] if new is None else [new]
        for base in (chunk,) if new is None else new.frame.bases:
            chain = self._index.chain(base) or self._index.find_chain(base)
            if chain is None:
                why = f"the store contained the chunk {base} when this version was encoded, and "
                why += "does not any more: repeat the command, which stores it again"
                raise IntegrityError(ErrorCode.MISSING_CHUNK, why)
            frames += chain.back(seen)
        return frames

    def _note_learned(self, stored: StoredSnapshot) -> None:
        with self._lock:
            self._learned[stored.snapshot.id] = stored.table
            self._learned.move_to_end(stored.snapshot.id)
            if len(self._learned) > _LEARNED:
                self._learned.popitem(last=False)

    def replace(self, merged: Merged) -> None:
        """Note that packs were merged, for the versions that the index does not forget."""
        with self._lock:
            for snapshot, table in self._learned.items():
                if not merged.gone.isdisjoint(table.packs):
                    self._learned[snapshot] = new = merged.table(table)
                    self._replace_recent(snapshot, new, merged)
            for snapshot, stored in list(self._recent.items()):
                if stored.carried in merged.gone:  # the next reader finds it elsewhere
                    del self._recent[snapshot]

    def _replace_recent(self, snapshot: SnapshotId, table: PackTable, merged: Merged) -> None:
        """Give a version in memory another table, and no frames if its object goes."""
        stored = self._recent.get(snapshot)
        if stored is not None:
            is_gone = stored.carried in merged.gone
            self._recent[snapshot] = stored.bare(table) if is_gone else stored.with_table(table)

    def retain(self) -> None:
        """Let the index forget what no version needs that was learned or saved recently."""
        with self._lock:
            tables = list(self._learned.values())
        self._index.retain(tables)

    def ids(self, prefix: str = "") -> Iterator[SnapshotId]:
        """Yield the IDs of the snapshots in the store that begin with these hexadecimal digits."""
        # Objects first: a version moves from an object of its own to an archive, and never back.
        own: set[SnapshotId] = set()
        for info in self._store.list(names.SNAPSHOTS + prefix):
            with suppress(IntegrityError):
                own.add(found := names.parse_id(SnapshotId, names.SNAPSHOTS, info.name))
                yield found
        yield from (found for found in self.archives.ids(prefix) if found not in own)

    def exists(self, snapshot_id: SnapshotId) -> bool:
        """Return whether the store contains a snapshot, damaged or not."""
        return bool(self.archives.present([snapshot_id]))

    def parents(self, snapshot: Snapshot) -> Sequence[SnapshotId]:
        """Return the parents of a snapshot.

        If it was copied without its history, parents that this store does not contain are left
        out.
        """
        if not self.is_shallow(snapshot.id):
            return snapshot.parents
        present = self.archives.present(snapshot.parents)
        return [parent for parent in snapshot.parents if parent in present]

    def is_shallow(self, snapshot: SnapshotId) -> bool:
        """Return whether a version that was loaded had been copied without its history."""
        return snapshot in self._shallow
