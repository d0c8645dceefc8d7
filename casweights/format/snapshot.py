"""Snapshot objects: a manifest, and a table of the packs that contained its chunks.

The snapshot's ID commits to the manifest. The pack table is not part of the identity: it saves
readers from searching all packs, and if it is out of date, they search them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from casweights.errors import IntegrityError
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.manifest import MAX_MANIFEST_SIZE, Snapshot, check_size
from casweights.format.names import snapshot_name
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.format.zstd import compress_object, decompress_object, most_content
from casweights.ids import ChunkId, PackId, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    ReadChunks = Callable[["PackTable", Mapping[ChunkId, int]], Mapping[ChunkId, bytes]]

_SIZES = struct.Struct("<4I")  # manifest: raw, stored; pack table: raw, stored
_LEVEL = 3  # zstd level: higher levels do not make digests smaller


class PackTable(NamedTuple):
    """The packs that contained a version when it was written.

    Attributes:
        packs: All of these packs: those of the chunks' own frames, and those of the frames that
            these build on.
        chunks: The pack of each chunk's own frame.
        places: Locators of packs, in stores that implement `SupportsLocators`.
        shallow: Whether the version was copied without its history, so that parents may be missing.
        structure: How many of `packs`, from the first, the version's structure chunks need; None if
            that may be any of them.
    """

    packs: list[PackId]
    chunks: dict[ChunkId, PackId]
    places: dict[PackId, bytes] = {}  # noqa: RUF012  never changed
    shallow: bool = False
    structure: int | None = None


class PackNumbers(NamedTuple):
    """A pack table as it is stored: by the order of the chunks in the version, without their IDs.

    Attributes:
        packs: As in `PackTable`.
        numbers: For each of `Manifest.stored_chunks`, the number of its pack in `packs`.
        places: As in `PackTable`.
        shallow: As in `PackTable`.
        structure: As in `PackTable`.
    """

    packs: list[PackId]
    numbers: list[int]
    places: dict[PackId, bytes]
    shallow: bool
    structure: int | None

    def of(self, chunks: Iterable[ChunkId]) -> PackTable:
        """Return the table, given all chunks of the version, as from `Manifest.stored_chunks`.

        Raises:
            ValueError: The number of chunks is not that of the table.
        """
        packs = {c: self.packs[n] for c, n in zip(chunks, self.numbers, strict=True)}
        return PackTable(self.packs, packs, self.places, self.shallow, self.structure)

    def of_structure(self, chunks: Iterable[ChunkId]) -> PackTable:
        """Return the part of the table for structure chunks, given all of these in order."""
        own = {c: self.packs[n] for c, n in zip(chunks, self.numbers, strict=False)}
        packs = list(dict.fromkeys([*self.packs[: self.structure], *own.values()]))
        places = {pack: self.places[pack] for pack in packs if pack in self.places}
        return PackTable(packs, own, places)


class StoredSnapshot:
    """The content of a snapshot object.

    Args:
        snapshot: The snapshot.
        encoded_manifest: The bytes of its manifest, to which its ID commits.
        table: The packs that contained its chunks when it was written.

    Attributes:
        snapshot: The snapshot.
        encoded_manifest: The bytes of its manifest.
        packs: The packs of `table`, which is not needed to know them.
        shallow: Whether the version was copied without its history.
    """

    def __init__(
        self, snapshot: Snapshot, encoded_manifest: bytes, table: PackTable | PackNumbers
    ) -> None:
        self.snapshot = snapshot
        self.encoded_manifest = encoded_manifest
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

    def with_table(self, table: PackTable) -> StoredSnapshot:
        """Return the same version with its chunks in other packs."""
        return StoredSnapshot(self.snapshot, self.encoded_manifest, table)


def _resolve(numbers: PackNumbers, snapshot: Snapshot) -> PackTable:
    try:
        return numbers.of(snapshot.stored_chunks())
    except ValueError as error:
        name = snapshot_name(snapshot.id)
        raise corrupt(name, f"its pack table is not valid: {error}") from error


def encode_snapshot(stored: StoredSnapshot) -> bytes:
    """Return the object that contains a snapshot."""
    snapshot, encoded_manifest, table = stored.snapshot, stored.encoded_manifest, stored.table
    numbers = {pack: n for n, pack in enumerate(table.packs)}
    fields: dict[str, Any] = {
        "packs": b"".join(table.packs),
        "pack": [numbers[table.chunks[chunk]] for chunk in snapshot.stored_chunks()],
    }
    if table.places:
        fields["places"] = {numbers[pack]: place for pack, place in table.places.items()}
    if table.shallow:
        fields["shallow"] = True
    if table.structure is not None:
        fields["structure"] = table.structure
    encoded_table: bytes = msgpack.packb(fields)
    parts = [encoded_manifest, check_size(encoded_table, "pack table")]
    packed = [compress_object(part, _LEVEL) for part in parts]
    sizes = [len(part) for pair in zip(parts, packed, strict=True) for part in pair]
    return seal(ObjectKind.SNAPSHOT, _SIZES.pack(*sizes) + b"".join(packed))


def decode_snapshot(
    data: bytes, snapshot_id: SnapshotId, name: str, read: ReadChunks
) -> StoredSnapshot:
    """Parse a snapshot object and check it against its ID.

    Args:
        data: The object.
        snapshot_id: The ID that the snapshot must have.
        name: The object's name in the store, for error messages.
        read: Returns checked structure chunks, given their packs and the size of each. Called when
            a file's header or chunks are first used.

    Raises:
        IntegrityError: The object is damaged or is not this snapshot.
        UnsupportedError: A newer casweights wrote it.
    """
    payload = unseal(ObjectKind.SNAPSHOT, data, name)
    if len(payload) < _SIZES.size:
        raise corrupt(name, "it is too short")
    manifest_raw, manifest_size, table_raw, table_size = _SIZES.unpack_from(payload)
    body = memoryview(payload)[_SIZES.size :]
    if len(body) != manifest_size + table_size:
        raise corrupt(name, "its sizes do not add up")
    parts = body[:manifest_size], body[manifest_size:]
    for what, raw, stored in (
        (f"the manifest of snapshot {snapshot_id}", manifest_raw, manifest_size),
        ("its pack table", table_raw, table_size),
    ):
        if raw > min(MAX_MANIFEST_SIZE, most_content(stored)):
            raise corrupt(name, f"{what} is not valid: it claims {raw} bytes in {stored}")
    manifest = _decompress(parts[0], manifest_raw, name)
    encoded_table = _decompress(parts[1], table_raw, name)

    def structure(wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
        try:
            return read(numbers.of_structure(wanted), wanted)
        except IntegrityError as error:
            message = f"{name}: its headers and lists of chunks cannot be read: {error.message}"
            raise IntegrityError(error.code, message) from error

    snapshot = Snapshot.decode(manifest, snapshot_id, structure)
    try:
        numbers = _decode_table(encoded_table)
        if len(numbers.numbers) < len(snapshot.structure()):
            raise ValueError("it lists fewer packs than the version has headers and pages")
    except MALFORMED as error:
        raise corrupt(name, f"its pack table is not valid: {error}") from error
    return StoredSnapshot(snapshot, manifest, numbers)


def _decode_table(encoded: bytes) -> PackNumbers:
    data = Unpacker(encoded)
    readers: dict[str, Callable[[], Any]] = {
        "packs": lambda: data.scalar(bytes),
        "pack": data.ints,
        "places": lambda: {data.scalar(int): data.scalar(bytes) for _ in data.pairs(len(encoded))},
        "shallow": lambda: data.scalar(bool),
        "structure": lambda: data.scalar(int),
    }
    table = data.fields(readers, optional={"places", "shallow", "structure"})
    data.finish()
    joined, numbers, places = table["packs"], table["pack"], table.get("places", {})
    if min([*numbers, *places], default=0) < 0:
        raise ValueError("it has a negative pack number")
    packs = [PackId(joined[n : n + 32]) for n in range(0, len(joined), 32)]
    if max([*numbers, *places], default=-1) >= len(packs):
        raise ValueError("it has a number without a pack")
    structure = table.get("structure")
    if structure is not None and not 0 <= structure <= len(packs):
        raise ValueError(f"it has {structure} packs of structure chunks among {len(packs)}")
    placed = {packs[n]: place for n, place in places.items()}
    return PackNumbers(packs, numbers, placed, table.get("shallow", False), structure)


def _decompress(data: memoryview, raw_size: int, name: str) -> bytes:
    try:
        return decompress_object(data, raw_size)
    except ValueError as error:
        raise corrupt(name, str(error)) from error
