"""Snapshot objects: a manifest, and a table of the packs that contained its chunks.

The snapshot's ID commits to the manifest. The pack table is not part of the identity: it saves
readers from searching all packs, and if it is out of date, they search them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.manifest import MAX_MANIFEST_SIZE, Snapshot, check_size
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.format.zstd import compress_object, decompress_object, most_content
from casweights.ids import ChunkId, PackId, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """

    packs: list[PackId]
    chunks: dict[ChunkId, PackId]
    places: dict[PackId, bytes] = {}  # noqa: RUF012  never changed
    shallow: bool = False


class StoredSnapshot(NamedTuple):
    """The content of a snapshot object.

    Attributes:
        snapshot: The snapshot.
        encoded_manifest: The bytes of its manifest, to which its ID commits.
        table: The packs that contained its chunks when it was written.
    """

    snapshot: Snapshot
    encoded_manifest: bytes
    table: PackTable


def encode_snapshot(stored: StoredSnapshot) -> bytes:
    """Return the object that contains a snapshot."""
    snapshot, encoded_manifest, table = stored
    numbers = {pack: n for n, pack in enumerate(table.packs)}
    fields: dict[str, Any] = {
        "packs": b"".join(table.packs),
        "pack": [numbers[table.chunks[chunk]] for chunk in snapshot.chunks()],
    }
    if table.places:
        fields["places"] = {numbers[pack]: place for pack, place in table.places.items()}
    if table.shallow:
        fields["shallow"] = True
    encoded_table: bytes = msgpack.packb(fields)
    parts = [encoded_manifest, check_size(encoded_table, "pack table")]
    packed = [compress_object(part, _LEVEL) for part in parts]
    sizes = [len(part) for pair in zip(parts, packed, strict=True) for part in pair]
    return seal(ObjectKind.SNAPSHOT, _SIZES.pack(*sizes) + b"".join(packed))


def decode_snapshot(data: bytes, snapshot_id: SnapshotId, name: str) -> StoredSnapshot:
    """Parse a snapshot object and check it against its ID.

    Args:
        data: The object.
        snapshot_id: The ID that the snapshot must have.
        name: The object's name in the store, for error messages.

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
    snapshot = Snapshot.decode(manifest, snapshot_id)
    encoded_table = _decompress(parts[1], table_raw, name)
    try:
        return StoredSnapshot(snapshot, manifest, _decode_table(encoded_table, snapshot))
    except MALFORMED as error:
        raise corrupt(name, f"its pack table is not valid: {error}") from error


def _decode_table(encoded: bytes, snapshot: Snapshot) -> PackTable:
    data = Unpacker(encoded)
    readers: dict[str, Callable[[], Any]] = {
        "packs": lambda: data.scalar(bytes),
        "pack": data.ints,
        "places": lambda: {data.scalar(int): data.scalar(bytes) for _ in data.pairs(len(encoded))},
        "shallow": lambda: data.scalar(bool),
    }
    table = data.fields(readers, optional={"places", "shallow"})
    data.finish()
    joined, numbers, places = table["packs"], table["pack"], table.get("places", {})
    if min([*numbers, *places], default=0) < 0:
        raise ValueError("it has a negative pack number")
    packs = [PackId(joined[n : n + 32]) for n in range(0, len(joined), 32)]
    chunks = {c: packs[n] for c, n in zip(snapshot.chunks(), numbers, strict=True)}
    placed = {packs[n]: place for n, place in places.items()}
    return PackTable(packs, chunks, placed, table.get("shallow", False))


def _decompress(data: memoryview, raw_size: int, name: str) -> bytes:
    try:
        return decompress_object(data, raw_size)
    except ValueError as error:
        raise corrupt(name, str(error)) from error
