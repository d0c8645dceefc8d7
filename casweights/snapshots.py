"""Snapshots in and out of the store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from casweights.errors import (
    ErrorCode,
    IntegrityError,
    NotFoundError,
)
from casweights.format import names
from casweights.format.fields import parse_id
from casweights.format.manifest import MAX_MANIFEST_SIZE, Manifest, Snapshot
from casweights.format.snapshot import PackTable, decode_snapshot, encode_snapshot
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.config import StoreConfig
    from casweights.ids import ChunkId, PackId
    from casweights.index import ChunkIndex
    from casweights.stores.base import ObjectStore

MIN_PREFIX = 4
_RECENT = 16
_MAX_OBJECT = 2 * MAX_MANIFEST_SIZE


class SnapshotStore:
    """Snapshots by ID; the last few are kept."""

    def __init__(self, store: ObjectStore, index: ChunkIndex, config: StoreConfig) -> None:
        self._store = store
        self._config = config
        self._lock = threading.Lock()
        self._index = index
        self._hinted: set[SnapshotId] = set()
        self._recent: OrderedDict[SnapshotId, Snapshot] = OrderedDict()

    def load(self, snapshot_id: SnapshotId, *, to_read: bool = False) -> Snapshot:
        """A snapshot.

        Args:
            snapshot_id: Its ID.
            to_read: Also tell the index where its chunks lie, because they will be read.

        Raises:
            NotFoundError: The store does not have it.
            IntegrityError: The object is damaged or is another snapshot's.
        """
        recent = self._recent.get(snapshot_id)
        if recent is not None and (not to_read or snapshot_id in self._hinted):
            return recent
        name = names.snapshot_name(snapshot_id)
        try:
            size = self._store.size(name)
        except NotFoundError:
            raise _unknown(str(snapshot_id)) from None
        if size > _MAX_OBJECT:
            raise IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name} has {size} bytes: too many")
        snapshot, table = decode_snapshot(self._store.get(name, 0, size), snapshot_id, name)
        if snapshot.config != self._config:
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT,
                f"{name} does not belong here: it has {snapshot.config}, the store has "
                f"{self._config}",
            )
        if to_read:
            self._index.hint(table)
            self._hinted.add(snapshot_id)
        self._keep(snapshot)
        return snapshot

    def _keep(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._recent[snapshot.id] = snapshot
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)

    def save(self, manifest: Manifest) -> Snapshot:
        """Write a snapshot; all its chunks must be in the index.

        Raises:
            InvalidInputError: The manifest holds something that the format cannot.
        """
        snapshot, encoded = Snapshot.of(manifest)
        data = encode_snapshot(snapshot, encoded, self._pack_table(snapshot))
        self._store.put(names.snapshot_name(snapshot.id), [data])
        self._keep(snapshot)
        return snapshot

    def _pack_table(self, snapshot: Snapshot) -> PackTable:
        packs: dict[PackId, None] = {}
        chunks: dict[ChunkId, PackId] = {}
        for chunk, _ in snapshot.pieces():
            path = self._index.path(chunk)
            if path is None:  # a version is saved after its chunks, so a writer beside us erred
                raise IntegrityError(
                    ErrorCode.MISSING_CHUNK, f"no pack holds the chunk {chunk}, written just now"
                )
            chunks[chunk] = path.frames[-1].pack
            packs.update(dict.fromkeys(location.pack for location in reversed(path.frames)))
        return PackTable(list(packs), chunks)

    def ids(self, prefix: str = "") -> Iterator[SnapshotId]:
        """IDs in the store that begin with these hexadecimal digits."""
        for info in self._store.list(names.SNAPSHOTS + prefix):
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
            raise NotFoundError(
                ErrorCode.AMBIGUOUS, f"{len(found)} snapshots begin with {prefix}: give more digits"
            )
        return found[0]

    def ancestry(self, start: SnapshotId) -> Iterator[Snapshot]:
        """A snapshot and its first parents, newest first."""
        seen: set[SnapshotId] = set()  # nothing but a forged store can be cyclic
        current: SnapshotId | None = start
        while current is not None and current not in seen:
            seen.add(current)
            snapshot = self.load(current)
            yield snapshot
            current = snapshot.parents[0] if snapshot.parents else None


def _unknown(text: str) -> NotFoundError:
    return NotFoundError(ErrorCode.SNAPSHOT_NOT_FOUND, f"the store has no snapshot {text}")
