"""Forge versions of a store: manifests, pack tables, and structure chunks under matching IDs."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack
import xxhash
import zstandard
from blake3 import blake3

from casweights.stores.local import LocalStore
from tests.forged_chains import add_pack
from tests.spec.readers import the_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.forged_chains import Link

Row = list[Any]


def read_parts(snapshot: Path) -> list[dict[str, Any]]:
    """Return the manifest and the pack table of a snapshot."""
    data = snapshot.read_bytes()
    _, split, _, stored = struct.unpack_from("<4I", data, 8)
    packed = (data[24 : 24 + split], data[24 + split : 24 + split + stored])
    return [msgpack.unpackb(zstandard.decompress(p), strict_map_key=False) for p in packed]


def forge(
    root: Path, *, manifest: dict[str, Any] | None = None, table: dict[str, Any] | None = None
) -> str:
    """Change fields of the manifest or pack table; return the new version's ID."""
    path = the_object(root, "snapshots/*")
    parts = [
        old | (new or {}) for old, new in zip(read_parts(path), (manifest, table), strict=True)
    ]
    encoded = [msgpack.packb(value) for value in parts]
    packed = [zstandard.compress(value) for value in encoded]
    sizes = [len(value) for pair in zip(encoded, packed, strict=True) for value in pair]
    body = path.read_bytes()[:8] + struct.pack("<4I", *sizes) + b"".join(packed)
    forged = path.with_name(blake3(encoded[0]).hexdigest())
    forged.write_bytes(body + xxhash.xxh3_64_digest(body))
    return forged.name


def forge_files(
    root: Path, rows: list[Row], links: Sequence[Link], *, table: dict[str, Any] | None = None
) -> str:
    """Add a version with these file rows, and a pack with a frame of each of its chunks.

    Fields in `table` replace those of the pack table.
    """
    pack = add_pack(LocalStore(root / "store"), links)
    sound = {"packs": bytes(pack), "pack": [0] * len(links), "structure": 1}
    return forge(root, manifest={"files": rows}, table=sound | (table or {}))


def ids(contents: Sequence[bytes]) -> bytes:
    """Return the IDs of chunks, concatenated."""
    return b"".join(blake3(raw).digest() for raw in contents)


def pieces(raw: bytes, size: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, len(raw), size)]
