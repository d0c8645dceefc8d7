"""Builds stores of arbitrary objects, with valid IDs and checksums."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

import casweights
from casweights.config import KiB, StoreConfig
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix, seal
from casweights.format.hashing import blake3_256, checksum
from casweights.format.names import HEADS, move_name, pack_name, snapshot_name
from casweights.format.pack import Frame, build_index, trailer
from casweights.format.zstd import compress
from casweights.ids import ChunkId, PackId, SnapshotId

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_SIZE = 64 * KiB
EMPTY_TABLE = {"packs": b"", "pack": []}


def chunk_id(raw: bytes) -> ChunkId:
    """Return the ID of a chunk."""
    return ChunkId(blake3_256(raw))


class Stored(NamedTuple):
    """The fields of a frame to forge: ID and size of a chunk, encoding, payload and base."""

    chunk: ChunkId
    raw_size: int
    encoding: int
    payload: bytes
    base: ChunkId | None = None


def whole(raw: bytes) -> Stored:
    """Return an uncompressed frame of a chunk."""
    return Stored(chunk_id(raw), len(raw), 0, raw)


def row(path: str, raw: bytes = b"") -> list[Any]:
    """Return the row of a file with one chunk, or of an empty file, for a manifest."""
    return [path, len(raw), None, chunk_id(raw) if raw else b""]


class Forger:
    """A store in a folder, to which any objects can be added.

    Args:
        root: The folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        casweights.open(root, create=True, config=StoreConfig(chunk_size=CHUNK_SIZE)).close()

    def put(self, name: str, data: bytes) -> None:
        """Add an object."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def pack(self, frames: list[Stored]) -> PackId:
        """Add a pack of these frames; return its ID."""
        placed, offset = [], PREFIX_SIZE
        for frame in frames:
            size, check = len(frame.payload), checksum(frame.payload)
            placed.append(
                Frame(frame.chunk, frame.raw_size, frame.encoding, offset, size, check, frame.base)
            )
            offset += size
        pack, ending = build_index(placed)
        payloads = b"".join(frame.payload for frame in frames)
        self.put(pack_name(pack), prefix(ObjectKind.PACK) + payloads + ending)
        return pack

    def version(
        self,
        files: list[list[Any]] | bytes | None = None,
        *,
        table: Any = None,
        branch: str | None = "main",
        **fields: Any,
    ) -> SnapshotId:
        """Add a version and a branch that names it. Bytes count as already encoded."""
        manifest = {
            "parents": [],
            "time": 1_700_000_000_000_000,
            "author": "",
            "message": "",
            "metadata": {},
            "digest": "blake3",
            "chunk_size": CHUNK_SIZE,
            "files": files if isinstance(files, bytes) else sorted(files or []),
            **fields,
        }
        encoded = b"\x88" + b"".join(
            msgpack.packb(key) + (value if isinstance(value, bytes) else msgpack.packb(value))
            for key, value in manifest.items()
        )
        packed_table = msgpack.packb(table or EMPTY_TABLE)
        fields = {
            "manifest": compress(encoded, 3),
            "manifest_size": len(encoded),
            "table": compress(packed_table, 3),
            "table_size": len(packed_table),
        }
        snapshot, index = SnapshotId(blake3_256(encoded)), msgpack.packb(fields)
        first_bytes = prefix(ObjectKind.SNAPSHOT)
        ending = index + checksum(first_bytes + index) + trailer(index)
        self.put(snapshot_name(snapshot), first_bytes + ending)
        if branch is not None:
            self.move(branch, snapshot)
        return snapshot

    def holding(self, packs: list[PackId], raws: list[bytes]) -> SnapshotId:
        """Add a version with one file for each of these chunks, all in the first of the packs."""
        rows = [row(f"{number:08}", raw) for number, raw in enumerate(raws)]
        distinct = len(set(raws))
        return self.version(rows, table={"packs": b"".join(packs), "pack": [0] * distinct})

    def move(self, ref: str, snapshot: SnapshotId, position: int = 1, kind: str = HEADS) -> None:
        """Add a move of a branch or tag."""
        payload = msgpack.packb({"snapshot": snapshot, "time": 0})
        self.put(move_name(kind, ref, position), seal(ObjectKind.REF, payload))


def safetensors(table: dict[str, Any] | bytes, size: int = 0) -> list[Any]:
    """Return the row of a safetensors file with this header and without data."""
    text = table if isinstance(table, bytes) else json.dumps(table, separators=(",", ":")).encode()
    header = len(text).to_bytes(8, "little") + text
    return ["model.safetensors", len(header) + size, header, b""]
