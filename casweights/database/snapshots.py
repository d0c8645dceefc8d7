"""Snapshots in and out of the store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.fields import parse_id
from casweights.format.manifest import MAX_MANIFEST_SIZE, Snapshot
from casweights.format.snapshot import (
    PackTable,
    StoredSnapshot,
    decode_snapshot,
    encode_snapshot,
)
from casweights.ids import SnapshotId
from casweights.stores.optional import SupportsLocators

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.config import StoreConfig
    from casweights.database.chains import Node
    from casweights.database.index import ChunkIndex
    from casweights.format.pack import Location, SealedPack
    from casweights.ids import ChunkId, PackId
    from casweights.stores.base import ObjectStore, Parts

MIN_PREFIX = 4  # digits of an ID that may stand for it
_RECENT = 16  # snapshots kept in memory: those of a branch that is followed, and its bases
_MAX_OBJECT = 2 * MAX_MANIFEST_SIZE  # bytes: a manifest and a pack table, each of that size


class SnapshotStore:
    """Snapshots by ID; the last few stay in memory. May be used from several threads at once.

    To read the chunks of a snapshot, `load` it with its locations, which the index learns. To write
    one, write its chunks first, then `save` it; its last pack may go along. Between versions,
    `retain` keeps the memory of the index bounded.
    """

    def __init__(self, store: ObjectStore, index: ChunkIndex, config: StoreConfig) -> None:
        self._store = store
        self._config = config
        self._lock = threading.Lock()
        self._index = index
        self._learned: set[SnapshotId] = set()
        self._shallow: set[SnapshotId] = set()
        self._recent: OrderedDict[SnapshotId, StoredSnapshot] = OrderedDict()

    def load(self, snapshot_id: SnapshotId, *, with_locations: bool = False) -> Snapshot:
        """A snapshot.

        Args:
            snapshot_id: Its ID.
            with_locations: Also tell the index where its chunks lie, because they will be read.

        Raises:
            NotFoundError: The store does not have it.
            IntegrityError: The object is damaged or is another snapshot's.
        """
        stored = self._recent.get(snapshot_id) or self.load_stored(snapshot_id)
        if with_locations:
            self._index.expect()
            if snapshot_id not in self._learned:
                self._index.learn(stored.table)
                self._learned.add(snapshot_id)
        return stored.snapshot

    def load_stored(self, snapshot_id: SnapshotId) -> StoredSnapshot:
        """All that a snapshot's object holds.

        Raises:
            NotFoundError: The store does not have it.
            IntegrityError: The object is damaged or is another snapshot's.
        """
        name = names.snapshot_name(snapshot_id)
        try:
            stored = self._read(snapshot_id, name)
        except NotFoundError:
            raise _unknown(str(snapshot_id)) from None
        except IntegrityError:
            if not self._store.forget(name):
                raise
            stored = self._read(snapshot_id, name)  # what was remembered of it was to blame
        if stored.snapshot.config != self._config:
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT,
                f"{name} does not belong here: it has {stored.snapshot.config}, the store has "
                f"{self._config}",
            )
        self._keep(stored)
        if stored.table.shallow:
            self._shallow.add(snapshot_id)
        return stored

    def _read(self, snapshot_id: SnapshotId, name: str) -> StoredSnapshot:
        return decode_snapshot(self._store.read(name, _MAX_OBJECT), snapshot_id, name)

    def _keep(self, stored: StoredSnapshot) -> None:
        with self._lock:
            self._recent[stored.snapshot.id] = stored
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)

    def save(
        self,
        snapshot: Snapshot,
        encoded: bytes,
        last: SealedPack | None = None,
        *,
        early: Sequence[Parts] = (),
        assume_absent: bool = False,
    ) -> None:
        """Write a snapshot; all its chunks must be in the index, or in its last pack.

        Args:
            snapshot: The snapshot.
            encoded: Its manifest, as `EncodedSnapshot.of` gave it.
            last: A pack that is not written yet: both go into the store in one go.
            early: What will be put right afterwards, see `Batch.send`.
            assume_absent: The caller guarantees that the store has neither, see
                `ObjectStore.batch`.
        """
        stored = StoredSnapshot(snapshot, encoded, self.pack_table(snapshot.chunks(), last))
        name, packs = names.snapshot_name(snapshot.id), [] if last is None else [last]
        objects = [*(pack.name for pack in packs), name]
        with self._store.batch(objects, assume_absent=assume_absent) as batch:
            for pack in packs:
                batch.put(pack.name, pack.parts)
            batch.put(name, self._content(stored))
            for parts in early:
                batch.send(parts)
        self._learned.add(snapshot.id)  # the index has its chunks, also those just written
        self._keep(stored)

    def save_copy(self, stored: StoredSnapshot) -> None:
        """Write a snapshot that comes from another store, where its packs had other places."""
        self._store.put(names.snapshot_name(stored.snapshot.id), self._content(stored))

    def _content(self, stored: StoredSnapshot) -> Parts:
        return [encode_snapshot(stored._replace(table=self.placed(stored.table)))]

    def placed(self, table: PackTable) -> PackTable:
        """The same with the locators of its packs that the store knows."""
        locators = self._store.ability(SupportsLocators)
        if locators is None:
            return table._replace(places={})
        found = {pack: locators.locator(names.pack_name(pack)) for pack in table.packs}
        places = {pack: locator for pack, locator in found.items() if locator is not None}
        return table._replace(places=places)

    def pack_table(self, wanted: Iterable[ChunkId], last: SealedPack | None = None) -> PackTable:
        """Where distinct chunks lie, as the index knows, or will once `last` is written."""
        packs: dict[PackId, None] = {}
        chunks: dict[ChunkId, PackId] = {}
        seen: set[Node] = set()
        new = {} if last is None else {place.frame.chunk: place for place in last.locations[::-1]}
        found = iter(self._index.packs([chunk for chunk in wanted if chunk not in new], seen))
        for chunk in wanted:
            known = () if chunk in new else next(found)
            if not known:
                frames = self._frames(chunk, new.get(chunk), seen)
                known = tuple(location.pack for location in frames)
            chunks[chunk] = known[0]
            packs.update(dict.fromkeys(known))
        return PackTable(list(packs), chunks)

    def _frames(self, chunk: ChunkId, new: Location | None, seen: set[Node]) -> Sequence[Location]:
        """The frames of a chunk's chain, the last one first, up to what was `seen`.

        Args:
            chunk: The chunk.
            new: Its own frame, if that is in a pack that is not written yet.
            seen: See `Chain.back`.
        """
        base = chunk if new is None else new.frame.base
        chain = None if base is None else self._index.chain(base) or self._index.find_chain(base)
        if chain is None and base is not None:
            raise IntegrityError(
                ErrorCode.MISSING_CHUNK,
                f"the store had the chunk {base} when this version was encoded, and has it no "
                "more: repeat the command, which stores it again",
            )
        return [*([new] if new else ()), *(chain.back(seen) if chain else ())]

    def retain(self, snapshot: Snapshot) -> None:
        """Let the index forget what only other versions than this one need.

        Where reads are cheap nothing is forgotten: there a commit reads the indexes of all packs.
        """
        reads_all = self._store.capabilities.cheap_reads
        if not reads_all and self._index.retain(snapshot.chunks()):
            self._learned = {snapshot.id}

    def ids(self, prefix: str = "") -> Iterator[SnapshotId]:
        """IDs in the store that begin with these hexadecimal digits; other names are left out."""
        for info in self._store.list(names.SNAPSHOTS + prefix):
            with suppress(IntegrityError):
                yield parse_id(SnapshotId, names.SNAPSHOTS, info.name)

    def find(self, prefix: str) -> SnapshotId:
        """The one ID that begins with `prefix`.

        Raises:
            NotFoundError: There is none, or more than one.
        """
        found = list(self.ids(prefix))
        if not found:
            raise _unknown(prefix)
        if len(found) > 1:
            error = NotFoundError(
                ErrorCode.AMBIGUOUS, f"{len(found)} snapshots begin with {prefix}: give more digits"
            )
            error.add_note(f"they are {_list_ids(found, len(prefix))}")
            raise error
        return found[0]

    def ancestry(self, start: SnapshotId) -> Iterator[Snapshot]:
        """A snapshot and its first parents, newest first."""
        seen: set[SnapshotId] = set()  # nothing but a forged store can be cyclic
        current: SnapshotId | None = start
        while current is not None and current not in seen:
            seen.add(current)
            snapshot = self.load(current)
            yield snapshot
            current = next(iter(self.parents(snapshot)), None)

    def parents(self, snapshot: Snapshot) -> Sequence[SnapshotId]:
        """The versions before one, as far as they can be had.

        Those of a version that was copied without its history are left out if they are not here.
        """
        if snapshot.id not in self._shallow:
            return snapshot.parents
        objects = {parent: names.snapshot_name(parent) for parent in snapshot.parents}
        there = self._store.sizes(objects.values())
        return [parent for parent, name in objects.items() if name in there]


def _list_ids(ids: Sequence[SnapshotId], common: int) -> str:
    """Some of these IDs, cut to a few more digits than the first `common`, which they share."""
    shown = [str(snapshot)[: max(12, common + 8)] for snapshot in ids[:5]]
    return ", ".join(shown) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _unknown(text: str) -> NotFoundError:
    return NotFoundError(ErrorCode.SNAPSHOT_NOT_FOUND, f"the store has no snapshot {text}")
