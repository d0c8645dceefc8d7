"""Snapshot objects: a manifest, and a table of where the frames of its chunks lay.

The manifest is what the snapshot's ID commits to. The frame table is not part of the identity: it
saves readers from looking through packs, and where it is out of date they do look.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack
import zstandard

from casweights.config import MAX_CHUNK_SIZE
from casweights.format.envelope import Kind, corrupt, seal, unseal
from casweights.format.fields import expect
from casweights.format.manifest import MAX_MANIFEST_SIZE, Snapshot, check_size
from casweights.format.pack import Location, columns, frames_from_columns
from casweights.ids import ChunkId, PackId, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIZES = struct.Struct("<4I")  # manifest: raw, stored; frame table: raw, stored
_LEVEL = 3


def encode_snapshot(
    snapshot: Snapshot, encoded_manifest: bytes, locations: Mapping[ChunkId, Location]
) -> bytes:
    """A snapshot object.

    Args:
        snapshot: The snapshot.
        encoded_manifest: Its manifest, as `Snapshot.of` gave it.
        locations: Where each of its chunks can be read.
    """
    rows = [locations[chunk] for chunk in _distinct(snapshot)]
    packs = dict.fromkeys(row.pack for row in rows)
    numbers = {pack: n for n, pack in enumerate(packs)}
    table: bytes = msgpack.packb(
        {
            "packs": b"".join(packs),
            "pack": [numbers[row.pack] for row in rows],
            "offset": [row.frame.offset for row in rows],
            **columns([row.frame for row in rows]),
        }
    )
    parts = [encoded_manifest, check_size(table, "frame table")]
    packed = [zstandard.ZstdCompressor(level=_LEVEL).compress(part) for part in parts]
    sizes = [len(part) for pair in zip(parts, packed, strict=True) for part in pair]
    return seal(Kind.SNAPSHOT, _SIZES.pack(*sizes) + b"".join(packed))


def _distinct(snapshot: Snapshot) -> dict[ChunkId, int]:
    """Distinct chunks in order of first appearance, with their raw sizes."""
    return {chunk: piece.nbytes for chunk, piece in snapshot.pieces()}


def decode_snapshot(
    data: bytes, snapshot_id: SnapshotId, name: str
) -> tuple[Snapshot, dict[ChunkId, Location]]:
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
        return snapshot, _decode_locations(expect(table, dict), snapshot)
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise corrupt(name, f"its frame table is not valid: {error}") from error


def _decode_locations(table: dict[str, Any], snapshot: Snapshot) -> dict[ChunkId, Location]:
    chunks = _distinct(snapshot)
    joined = expect(table["packs"], bytes)
    packs = [PackId(joined[n : n + 32]) for n in range(0, len(joined), 32)]
    numbers = expect(table["pack"], list)
    frames = frames_from_columns(
        table, list(chunks), list(chunks.values()), expect(table["offset"], list)
    )
    if len(numbers) != len(frames) or any(expect(n, int) < 0 for n in numbers):
        raise ValueError("its columns differ in length")
    return {
        frame.chunk: Location(packs[n], frame) for n, frame in zip(numbers, frames, strict=True)
    }


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
