"""Snapshot objects: a manifest, the table of its packs, and perhaps frames.

The snapshot's ID commits to the manifest. A snapshot object that carries frames is a pack as well;
one without frames is *bare*. To read the manifest, the object's end is enough, from the index on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from casweights.errors import IntegrityError
from casweights.format.envelope import (
    PREFIX_SIZE,
    ObjectKind,
    check_kind,
    check_version,
    corrupt,
    prefix,
)
from casweights.format.hashing import CHECKSUM_SIZE, blake3_256, checksum
from casweights.format.lineage import Origin, check_lineage, encode_lineage, read_lineage
from casweights.format.manifest import MAX_MANIFEST_SIZE, Snapshot, check_size
from casweights.format.names import snapshot_name
from casweights.format.pack import (
    MAX_INDEX_SIZE,
    TRAILER_SIZE,
    Frame,
    FrameColumns,
    Location,
    encode_frames,
    index_span,
    parse_frames,
    trailer,
)
from casweights.format.pack_table import (
    PackNumbers,
    PackTable,
    decode_table,
    encode_numbers,
    encode_table,
)
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.format.zstd import compress_object, decompress_object, most_content
from casweights.ids import CarriedPackId, ChunkId, PackId, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from casweights.system.buffers import Buffer

    ReadChunks = Callable[["PackTable", Mapping[ChunkId, int]], Mapping[ChunkId, bytes]]

_LEVEL = 3  # zstd level: higher levels do not make digests smaller
_MAX_END_SIZE = 2 * MAX_MANIFEST_SIZE  # bytes of the index: manifest and pack table of that size
ENDING_SIZE = CHECKSUM_SIZE + TRAILER_SIZE  # bytes after the index


class StoredSnapshot:
    """The content of a snapshot object.

    Args:
        snapshot: The snapshot.
        encoded_manifest: The bytes of its manifest, to which its ID commits.
        table: The packs that contained its chunks when it was written.
        frames: The frames that the object carries, in order.
        lineage: The versions that its frames were made from, the largest first; none if they were
            made from the first parent alone.

    Attributes:
        snapshot: The snapshot.
        encoded_manifest: The bytes of its manifest.
        frames: The frames that the object carries; none if it is bare.
        lineage: The versions that its frames were made from. Nobody has checked that they were.
        nbytes: Bytes of the object; 0 if it is not made yet.
        packs: The packs of `table`, which is not needed to know them.
        shallow: Whether the version was copied without its history.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        encoded_manifest: bytes,
        table: PackTable | PackNumbers,
        frames: Sequence[Frame] = (),
        lineage: Sequence[Origin] = (),
    ) -> None:
        self.snapshot = snapshot
        self.encoded_manifest = encoded_manifest
        self.frames = frames
        self.lineage = tuple(lineage)
        self.nbytes = 0
        self.packs = table.packs
        self.shallow = table.shallow
        self._table = table

    @property
    def table(self) -> PackTable:
        """The packs that contained the chunks at commit time. Reads the structure chunks.

        Raises:
            IntegrityError: The table or the structure of the version is not valid.
            StoreError: The store could not be read.
        """
        if isinstance(self._table, PackNumbers):
            self._table = _resolve(self._table, self.snapshot)
        return self._table

    def structure_table(self) -> PackTable:
        """Where the version's structure chunks lay; reads none of them."""
        structure = self.snapshot.structure()
        if isinstance(self._table, PackNumbers):
            return self._table.of_structure(structure)
        return self._table._replace(chunks={c: self._table.chunks[c] for c in structure})

    @property
    def carried(self) -> CarriedPackId | None:
        """The pack of the frames that the object carries; None if it is bare."""
        return CarriedPackId(self.snapshot.id) if self.frames else None

    @property
    def locations(self) -> list[Location]:
        """The locations of the frames that the object carries."""
        return carried_locations(self.snapshot.id, self.frames)

    def with_table(self, table: PackTable) -> StoredSnapshot:
        """Return the same version, with the same frames, and its chunks in other packs."""
        same = StoredSnapshot(
            self.snapshot, self.encoded_manifest, table, self.frames, self.lineage
        )
        same.nbytes = self.nbytes
        return same

    def with_lineage(self, lineage: Sequence[Origin]) -> StoredSnapshot:
        """Return the same version with another lineage, and without frames."""
        return StoredSnapshot(self.snapshot, self.encoded_manifest, self._table, (), lineage)

    def archived(self, into: Mapping[PackId, PackId]) -> StoredSnapshot:
        """Return the same version without frames, after packs were merged. Reads no chunk.

        Args:
            into: For each pack that was merged, the pack that has its frames now.
        """
        numbers = decode_table(self.encode_table(), self.carried).merged(into)
        return StoredSnapshot(self.snapshot, self.encoded_manifest, numbers, (), self.lineage)

    def encode_table(self) -> bytes:
        """Return the encoded pack table. Reads no chunk of a version that was just read."""
        if isinstance(self._table, PackNumbers):
            return encode_numbers(self._table, self.carried)
        return encode_table(self._table, self.snapshot.stored_chunks(), self.carried)

    def bare(self, table: PackTable) -> StoredSnapshot:
        """Return the same version without frames, all its chunks being in other objects."""
        return StoredSnapshot(self.snapshot, self.encoded_manifest, table, (), self.lineage)


def carried_locations(snapshot_id: SnapshotId, frames: Iterable[Frame]) -> list[Location]:
    """Return the locations of frames that the object of a snapshot carries."""
    pack = CarriedPackId(snapshot_id)
    return [Location(pack, frame) for frame in frames]


def _resolve(numbers: PackNumbers, snapshot: Snapshot) -> PackTable:
    try:
        return numbers.of(snapshot.stored_chunks())
    except ValueError as error:
        name = snapshot_name(snapshot.id)
        raise corrupt(name, f"its pack table is not valid: {error}") from error


def encode_snapshot(stored: StoredSnapshot, payloads: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the object that contains a snapshot, in parts.

    Args:
        stored: The snapshot.
        payloads: The stored bytes of its frames, in order.
    """
    table = check_size(stored.encode_table(), "pack table")
    fields: dict[str, Any] = {
        "manifest": compress_object(stored.encoded_manifest, _LEVEL),
        "manifest_size": len(stored.encoded_manifest),
        "table": compress_object(table, _LEVEL),
        "table_size": len(table),
    }
    if stored.lineage:
        fields["lineage"] = encode_lineage(stored.lineage)
    if stored.frames:
        fields = {"frames": encode_frames(stored.frames), **fields}
    first_bytes, index = prefix(ObjectKind.SNAPSHOT), msgpack.packb(fields)
    return [first_bytes, *payloads, index + checksum(first_bytes + index) + trailer(index)]


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The end of a snapshot object, of which nothing is checked yet.

    Attributes:
        start: Offset of the index in the object.
        index: The index.
        checksum: The checksum of the object's first bytes and its index.
    """

    start: int
    index: bytes
    checksum: bytes

    def fits(self, first_bytes: bytes) -> bool:
        """Whether the object's first `PREFIX_SIZE` bytes are these, and the index is intact."""
        return checksum(first_bytes + self.index) == self.checksum


def end_span(last_bytes: bytes, object_size: int, name: str) -> tuple[int, int]:
    """Return the start and end offset of a snapshot object's index, see `pack.index_span`."""
    return index_span(
        last_bytes, object_size, name, checksum_size=CHECKSUM_SIZE, limit=_MAX_END_SIZE
    )


NO_FRAMES = FrameColumns(
    {
        "digest_size": ChunkId.sizes[0],
        **dict.fromkeys(("chunk", "raw_size", "size", "encoding", "checksum"), b""),
        "based": b"",
        "base": b"",
    }
)


class SnapshotIndex(NamedTuple):
    """The index of a snapshot object, see `parse_end`; manifest and table are compressed.

    Attributes:
        manifest: The manifest.
        manifest_size: Its bytes before compression, as the index claims.
        table: The pack table.
        table_size: Its bytes before compression, as the index claims.
        lineage: The versions that its frames were made from.
        frames: The frames that the object carries.
    """

    manifest: bytes
    manifest_size: int
    table: bytes
    table_size: int
    lineage: tuple[Origin, ...]
    frames: FrameColumns


def parse_end(first_bytes: bytes, end: SnapshotEnd, name: str) -> SnapshotIndex:
    """Check the end of a snapshot object, and return its index.

    Args:
        first_bytes: The object's first `PREFIX_SIZE` bytes.
        end: Its end.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: The object is damaged.
        UnsupportedError: A newer casweights wrote it.
    """
    # The checksum comes first: a damaged version byte must not look like a newer format.
    if not end.fits(first_bytes):
        raise corrupt(name, "its checksum does not match")
    check_kind(ObjectKind.SNAPSHOT, first_bytes, name)
    check_version(first_bytes[5], name)
    try:
        index = _unpack_index(end.index)
    except MALFORMED as error:
        raise corrupt(name, f"its index is not valid: {error}") from error
    if index.frames.end != end.start:
        raise corrupt(name, "its frames do not end where its index begins")
    return index


def _unpack_index(encoded: bytes) -> SnapshotIndex:
    data = Unpacker(encoded)
    readers: dict[str, Callable[[], Any]] = {
        "frames": lambda: data.scalar(bytes),
        "manifest": lambda: data.scalar(bytes),
        "manifest_size": lambda: data.scalar(int),
        "table": lambda: data.scalar(bytes),
        "table_size": lambda: data.scalar(int),
        "lineage": lambda: read_lineage(data),
    }
    fields = {"lineage": (), **data.fields(readers, optional={"frames", "lineage"})}
    data.finish()
    if (columns := fields.pop("frames", None)) is None:
        return SnapshotIndex(**fields, frames=NO_FRAMES)
    if len(columns) > MAX_INDEX_SIZE:
        raise ValueError(f"its frames take {len(columns)} bytes")
    frames = parse_frames(columns)
    if not frames:
        raise ValueError("it lists no frames")
    return SnapshotIndex(**fields, frames=frames)


def parse_snapshot(
    index: SnapshotIndex, snapshot_id: SnapshotId, name: str, read: ReadChunks
) -> StoredSnapshot:
    """Decode the index of a snapshot object and check it against the snapshot's ID.

    Args:
        index: The index, from `parse_end`.
        snapshot_id: The ID that the snapshot must have.
        name: The object's name in the store, for error messages.
        read: Returns checked structure chunks, given their packs and the size of each. Called when
            a file's header or chunks are first used.

    Raises:
        IntegrityError: The object is not this snapshot.
    """
    manifest = _manifest(index, snapshot_id, name)
    encoded_table = _decompress(index.table, index.table_size, "its pack table", name)

    def structure(wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
        try:
            return read(numbers.of_structure(wanted), wanted)
        except IntegrityError as error:
            message = f"{name}: its headers and lists of chunks cannot be read: {error.message}"
            raise IntegrityError(error.code, message) from error

    snapshot = Snapshot.decode(manifest, snapshot_id, structure)
    try:
        numbers = decode_table(encoded_table, CarriedPackId(snapshot_id) if index.frames else None)
        if len(numbers.numbers) < len(snapshot.structure()):
            raise ValueError("it lists fewer packs than the version has headers and pages")
    except MALFORMED as error:
        raise corrupt(name, f"its pack table is not valid: {error}") from error
    try:
        check_lineage(index.lineage, snapshot)
    except ValueError as error:
        raise corrupt(name, str(error)) from error
    return StoredSnapshot(snapshot, manifest, numbers, index.frames, index.lineage)


def decode_snapshot(
    data: bytes, snapshot_id: SnapshotId, name: str, read: ReadChunks
) -> StoredSnapshot:
    """Parse a whole snapshot object; raise the errors of `parse_end` and `parse_snapshot`."""
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), name)
    end = SnapshotEnd(start, data[start:stop], data[stop:-TRAILER_SIZE])
    return parse_snapshot(parse_end(data[:PREFIX_SIZE], end, name), snapshot_id, name, read)


def check_manifest(index: SnapshotIndex, snapshot_id: SnapshotId, name: str) -> None:
    """Check that an object is the snapshot with this ID, without decoding its manifest.

    Raises:
        IntegrityError: It is not.
    """
    if blake3_256(_manifest(index, snapshot_id, name)) != snapshot_id:
        raise corrupt(name, "its manifest does not match its ID")


def _manifest(index: SnapshotIndex, snapshot_id: SnapshotId, name: str) -> bytes:
    what = f"the manifest of snapshot {snapshot_id}"
    return _decompress(index.manifest, index.manifest_size, what, name)


def _decompress(data: bytes, raw_size: int, what: str, name: str) -> bytes:
    if not 0 <= raw_size <= min(MAX_MANIFEST_SIZE, most_content(len(data))):
        raise corrupt(name, f"{what} is not valid: it claims {raw_size} bytes in {len(data)}")
    try:
        return decompress_object(data, raw_size)
    except ValueError as error:
        raise corrupt(name, str(error)) from error
