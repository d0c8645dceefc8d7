"""Builds stores of arbitrary objects, with valid IDs and checksums."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import torch

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

    from casweights.format.roots import Root

CHUNK_SIZE = 64 * KiB
MODEL = {"t": torch.arange(1 << 17).float().view(512, 256)}
EMPTY_TABLE = {"packs": b"", "pack": []}


def chunk_id(raw: bytes) -> ChunkId:
    """Return the ID of a chunk."""
    return ChunkId(blake3_256(raw))


class Stored(NamedTuple):
    """The fields of a frame to forge: ID and size of a chunk, encoding, payload, base and roots."""

    chunk: ChunkId
    raw_size: int
    encoding: int
    payload: bytes
    base: ChunkId | None = None
    roots: tuple[Root, ...] = ()


def whole(raw: bytes) -> Stored:
    """Return an uncompressed frame of a chunk."""
    return Stored(chunk_id(raw), len(raw), 0, raw)


def row(path: str, raw: bytes = b"") -> list[Any]:
    """Return the row of a file with one chunk, or of an empty file, for a manifest."""
    return [path, len(raw), None, b"", int(bool(raw)), chunk_id(raw) if raw else b""]


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
            placed.append(Frame(*frame[:3], offset, size, check, *frame[4:]))
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
        number: int = 1,
        **fields: Any,
    ) -> SnapshotId:
        """Add a version and a branch that names it. Bytes count as already encoded."""
        manifest = {
            "number": number,
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
        encoded = (0x80 | len(manifest)).to_bytes() + b"".join(
            msgpack.packb(key) + (value if isinstance(value, bytes) else msgpack.packb(value))
            for key, value in manifest.items()
        )
        packed_table = msgpack.packb(table or EMPTY_TABLE)
        columns = {
            "manifest": compress(encoded, 3),
            "manifest_size": len(encoded),
            "table": compress(packed_table, 3),
            "table_size": len(packed_table),
        }
        snapshot, index = SnapshotId(blake3_256(encoded)), msgpack.packb(columns)
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

    def safetensors(self, table: dict[str, Any] | bytes) -> SnapshotId:
        """Add a version with one safetensors file, with this header and without data."""
        text = table if isinstance(table, bytes) else json.dumps(table).encode()
        header = len(text).to_bytes(8, "little") + text
        chunks = [header[n : n + CHUNK_SIZE] for n in range(0, len(header), CHUNK_SIZE)]
        pack = self.pack(list(map(whole, dict.fromkeys(chunks))))
        ids = b"".join(map(chunk_id, chunks))
        file = ["model.safetensors", len(header), len(header), ids, 0, b""]
        return self.version([file], table={"packs": pack, "pack": [0] * len(set(chunks))})

    def move(self, ref: str, snapshot: SnapshotId, position: int = 1, kind: str = HEADS) -> None:
        """Add a move of a branch or tag."""
        self._move(move_name(kind, ref, position), {"snapshot": snapshot, "time": 0})

    def delete(self, ref: str, snapshot: SnapshotId, position: int) -> None:
        """Add a move that deletes a branch, which named this version before."""
        name = move_name(HEADS, ref, position)
        self._move(name, {"snapshot": bytes(32), "time": 0, "before": snapshot})

    def _move(self, name: str, fields: dict[str, Any]) -> None:
        self.put(name, seal(ObjectKind.REF, msgpack.packb(fields)))
