"""Forge versions of a store: manifests, pack tables, and structure chunks under matching IDs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import zstandard
from blake3 import blake3

from casweights.format.snapshot import end_span
from casweights.stores.local import LocalStore
from tests.forged_chains import add_pack
from tests.spec.readers import the_object
from tests.structure import snapshot_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.forged_chains import Link

Row = list[Any]


def read_end(snapshot: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a snapshot object before its index, and the index."""
    data = snapshot.read_bytes()
    start, stop = end_span(data[-8:], len(data), snapshot.name)
    return data[:start], msgpack.unpackb(data[start:stop])


def read_parts(snapshot: Path) -> list[dict[str, Any]]:
    """Return the manifest and the pack table of a snapshot."""
    _, index = read_end(snapshot)
    packed = (index["manifest"], index["table"])
    return [msgpack.unpackb(zstandard.decompress(p), strict_map_key=False) for p in packed]


def forge(
    root: Path,
    *,
    manifest: dict[str, Any] | None = None,
    table: dict[str, Any] | None = None,
    fields: dict[str, Any] | None = None,
) -> str:
    """Change fields of the manifest, pack table or index; return the new version's ID.

    The forged version has the frames of the original one, if that carries some.
    """
    path = the_object(root, "snapshots/*")
    parts = [
        old | (new or {}) for old, new in zip(read_parts(path), (manifest, table), strict=True)
    ]
    encoded = [msgpack.packb(value) for value in parts]
    before, index = read_end(path)
    for key, value in zip(("manifest", "table"), encoded, strict=True):
        index |= {key: zstandard.compress(value), f"{key}_size": len(value)}
    forged = path.with_name(blake3(encoded[0]).hexdigest())
    forged.write_bytes(snapshot_object(msgpack.packb(index | (fields or {})), before[8:]))
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
