"""Make histories with synthetic chunk IDs, by the format layer alone.

The objects are those that the library writes for a run that changes every chunk at each step. Only
hashing, encoding, and durability are left out, so that a version of 1,000 chunks takes some
milliseconds. Nothing can decode these versions.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.format.codecs import Encoding
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.file_entry import FileEntry
from casweights.format.hashing import checksum
from casweights.format.manifest import EncodedSnapshot, Manifest
from casweights.format.names import pack_name, snapshot_name
from casweights.format.pack import Frame, build_index
from casweights.format.pack_table import PackTable
from casweights.format.safetensors import parse_header
from casweights.format.snapshot import StoredSnapshot, encode_snapshot
from casweights.ids import ChunkId
from tools.bench.hub.clients import note_progress
from tools.bench.lifecycle.chunky import ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from casweights import SnapshotId
    from casweights.config import StoreConfig
    from casweights.database import Database
    from casweights.database.moves import Head
    from casweights.ids import PackId
    from casweights.system.buffers import Buffer

    Put = Callable[[str, Sequence[Buffer]], object]

_PAYLOAD = 24  # bytes of a difference: a step changes few elements of a chunk
_CHAIN = 16  # longest chain; those of real runs have up to 64 frames
_MOVES = 200  # that a branch keeps
_START = datetime(2024, 1, 1, tzinfo=UTC)
_PROGRESS = 500  # versions


class _Link(NamedTuple):
    """A frame, without its offset."""

    chunk: ChunkId
    raw_size: int
    encoding: Encoding
    payload: bytes
    base: ChunkId | None


def add_synthetic(
    db: Database, file: Path, count: int, head: Head | None = None, put: Put | None = None
) -> Head | None:
    """Write versions of a file whose chunk IDs and frames are random bytes.

    Their file and its tensors have other names, so that real versions after them do not use its
    chunks as bases.

    Args:
        db: The store.
        file: The file whose size and header they have.
        count: Number of versions.
        head: The head of the branch ``main``, which becomes their parent.
        put: Writes an object; `put` of the store by default.

    Returns:
        The new head of the branch.
    """
    history = _History(db.config, file, put or db.store.put)
    version = None if head is None else head.snapshot
    number = 0 if version is None else db.snapshots.load(version).number
    for n in range(count):
        version = history.add(version, number + n + 1)
        if count - n <= _MOVES:
            head = db.refs.advance("main", head, version, ready=lambda: None)
        if n % _PROGRESS == _PROGRESS - 1:
            note_progress(f"synthetic versions: {n + 1} of {count}")
    return head


class _History:
    """Adds one version after the other.

    Args:
        config: Configuration of the store.
        file: The file whose size and header the versions have.
        put: Writes an object.
    """

    def __init__(self, config: StoreConfig, file: Path, put: Put) -> None:
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        raw_header = data[:start].replace(b'"layer.', b'"block.')
        header = parse_header(raw_header, len(data) - start)
        self._entry = FileEntry("synthetic.safetensors", len(data), raw_header, header, ())
        self._sizes = [tensor.nbytes for tensor in header.tensors]
        self._config = config
        self._put = put
        self._rng = np.random.default_rng(0)
        self._first: PackId | None = None  # it contains the header
        self._recent: deque[PackId] = deque(maxlen=_CHAIN)
        self._count = 0

    def add(self, parent: SnapshotId | None, number: int) -> SnapshotId:
        """Write the next version; return its ID."""
        before = self._entry
        chunks = self._random_ids()
        self._entry = FileEntry(before.path, before.size, before.raw_header, before.header, chunks)
        structure = dict(self._entry.structure(self._config))
        links = [self._link(n, chunk, before.chunks) for n, chunk in enumerate(chunks)]
        links += [
            _Link(chunk, len(content), Encoding.RAW, bytes(content), None)
            for n, (chunk, content) in enumerate(structure.items())
            if n or self._first is None
        ]
        pack = self._put_pack(links)
        self._first = self._first or pack
        self._recent.appendleft(pack)
        self._count += 1
        return self._put_snapshot(parent, number, list(structure), chunks)

    def _random_ids(self) -> tuple[ChunkId, ...]:
        data = self._rng.bytes(32 * len(self._sizes))
        return tuple(ChunkId(data[n : n + 32]) for n in range(0, len(data), 32))

    def _link(self, n: int, chunk: ChunkId, before: Sequence[ChunkId]) -> _Link:
        if not before or (self._count + n) % _CHAIN == 0:
            return _Link(chunk, self._sizes[n], Encoding.RAW, self._rng.bytes(2 * ELEMENTS), None)
        payload = self._rng.bytes(_PAYLOAD)
        return _Link(chunk, self._sizes[n], Encoding.SPARSE, payload, before[n])

    def _put_pack(self, links: Sequence[_Link]) -> PackId:
        frames, offset = [], PREFIX_SIZE
        for chunk, raw_size, encoding, payload, base in links:
            size, check = len(payload), checksum(payload)
            frames.append(Frame(chunk, raw_size, encoding, offset, size, check, base))
            offset += size
        pack, ending = build_index(frames)
        payloads = (link.payload for link in links)
        self._put(pack_name(pack), [prefix(ObjectKind.PACK), *payloads, ending])
        return pack

    def _put_snapshot(
        self,
        parent: SnapshotId | None,
        number: int,
        structure: Sequence[ChunkId],
        chunks: Sequence[ChunkId],
    ) -> SnapshotId:
        manifest = Manifest(
            number=number,
            parents=() if parent is None else (parent,),
            time=_START + timedelta(seconds=number),
            author="",
            message="",
            metadata={"step": number},
            config=self._config,
            files=(self._entry,),
        )
        snapshot, encoded = EncodedSnapshot.of(manifest)
        assert self._first
        own = self._recent[0]
        packs = dict.fromkeys([own, self._first, *self._recent])
        places = {structure[0]: self._first, **dict.fromkeys([*structure[1:], *chunks], own)}
        table = PackTable(list(packs), places, structure=min(2, len(packs)))
        stored = StoredSnapshot(snapshot, encoded, table)
        self._put(snapshot_name(snapshot.id), encode_snapshot(stored))
        return snapshot.id
