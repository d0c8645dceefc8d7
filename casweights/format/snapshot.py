"""Snapshot objects: a manifest, and a table of the packs that its chunks lay in.

The manifest is what the snapshot's ID commits to. The pack table is not part of the identity: it
saves readers from looking through all packs, and where it is out of date they do look.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgpack
import zstandard

from casweights.config import MAX_CHUNK_SIZE
from casweights.format.envelope import Kind, corrupt, seal, unseal
from casweights.format.fields import expect
from casweights.format.manifest import MAX_MANIFEST_SIZE, Snapshot, check_size
from casweights.ids import ChunkId, PackId, SnapshotId

_SIZES = struct.Struct("<4I")  # manifest: raw, stored; pack table: raw, stored
_LEVEL = 3


class PackTable(NamedTuple):
    """Which packs a version was in when it was written.

    Attributes:
        packs: All of them: those of its chunks' own frames, and those of frames that these are
            differences from.
        chunks: The pack of each chunk's own frame.
        places: Where packs lie, as the store may tell: see `ObjectStore.place`.
        shallow: Whether the version was copied without its history, so that parents may be missing.
    """

    packs: list[PackId]
    chunks: dict[ChunkId, PackId]
    places: dict[PackId, bytes] = {}  # noqa: RUF012  never changed
    shallow: bool = False


def encode_snapshot(snapshot: Snapshot, encoded_manifest: bytes, table: PackTable) -> bytes:
    """A snapshot object.

    Args:
        snapshot: The snapshot.
        encoded_manifest: Its manifest, as `Snapshot.of` gave it.
        table: Where each of its chunks can be read.
    """
    numbers = {pack: n for n, pack in enumerate(table.packs)}
    fields: dict[str, Any] = {
        "packs": b"".join(table.packs),
        "pack": [numbers[table.chunks[chunk]] for chunk in _distinct(snapshot)],
    }
    if table.places:
        fields["places"] = {numbers[pack]: place for pack, place in table.places.items()}
    if table.shallow:
        fields["shallow"] = True
    encoded_table: bytes = msgpack.packb(fields)
    parts = [encoded_manifest, check_size(encoded_table, "pack table")]
    packed = [zstandard.ZstdCompressor(level=_LEVEL).compress(part) for part in parts]
    sizes = [len(part) for pair in zip(parts, packed, strict=True) for part in pair]
    return seal(Kind.SNAPSHOT, _SIZES.pack(*sizes) + b"".join(packed))


def _distinct(snapshot: Snapshot) -> dict[ChunkId, None]:
    """Distinct chunks in order of first appearance."""
    return dict.fromkeys(chunk for file in snapshot.files for chunk in file.chunks)


class StoredSnapshot(NamedTuple):
    """What a snapshot object holds.

    Attributes:
        snapshot: The snapshot.
        encoded_manifest: Its manifest as it was written.
        table: Where its chunks lay.
    """

    snapshot: Snapshot
    encoded_manifest: bytes
    table: PackTable


def decode_snapshot(data: bytes, snapshot_id: SnapshotId, name: str) -> StoredSnapshot:
    """The inverse of `encode_snapshot`.

    Args:
        data: The object.
        snapshot_id: The ID that was asked for.
        name: The object's name in the store, for error messages.

    Raises:
        IntegrityError: The object is damaged or is not this snapshot.
        UnsupportedError: A newer casweights wrote it.
    """
    payload = unseal(Kind.SNAPSHOT, data, name)
    if len(payload) < _SIZES.size:
        raise corrupt(name, "it is too short")
    manifest_raw, manifest_size, table_raw, table_size = _SIZES.unpack_from(payload)
    body = memoryview(payload)[_SIZES.size :]
    if len(body) != manifest_size + table_size:
        raise corrupt(name, "its sizes do not add up")
    manifest = _decompress(body[:manifest_size], manifest_raw, name)
    snapshot = Snapshot.decode(manifest, snapshot_id)
    try:
        table = msgpack.unpackb(
            _decompress(body[manifest_size:], table_raw, name), strict_map_key=False
        )
        return StoredSnapshot(snapshot, manifest, _decode_table(expect(table, dict), snapshot))
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise corrupt(name, f"its pack table is not valid: {error}") from error


def _decode_table(table: dict[str, Any], snapshot: Snapshot) -> PackTable:
    joined, numbers = expect(table["packs"], bytes), expect(table["pack"], list)
    packs = [PackId(joined[n : n + 32]) for n in range(0, len(joined), 32)]
    for n in numbers:
        _natural(n)
    chunks = {c: packs[n] for c, n in zip(_distinct(snapshot), numbers, strict=True)}
    places = {
        packs[_natural(n)]: expect(place, bytes)
        for n, place in expect(table.get("places", {}), dict).items()
    }
    return PackTable(packs, chunks, places, expect(table.get("shallow", False), bool))


def _natural(n: object) -> int:
    number: int = expect(n, int)
    if number < 0:
        raise ValueError("it has a negative number of a pack")
    return number


def _decompress(data: memoryview, raw_size: int, name: str) -> bytes:
    if raw_size > MAX_MANIFEST_SIZE:
        raise corrupt(name, f"it claims {raw_size} bytes")
    try:
        if zstandard.frame_content_size(data) != raw_size:
            raise corrupt(name, "its sizes do not add up")
        return zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK_SIZE).decompress(
            data, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise corrupt(name, str(error)) from error
