"""Structure chunks of versions that are not stored, and objects of forged versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import zstandard

from casweights.format.envelope import ObjectKind, prefix
from casweights.format.hashing import checksum
from casweights.format.pack import trailer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casweights.format.file_entry import ReadStructure
    from casweights.format.manifest import Manifest
    from casweights.format.pack_table import PackTable
    from casweights.format.snapshot import ReadChunks
    from casweights.ids import ChunkId


def reading(manifest: Manifest) -> ReadStructure:
    """Return a function that returns the structure chunks of a version from memory."""
    contents = dict(pair for file in manifest.files for pair in file.structure(manifest.config))
    return lambda wanted: {chunk: contents[chunk] for chunk in wanted}


def reading_by_table(manifest: Manifest) -> ReadChunks:
    """Return the same for `decode_snapshot`; pack tables make no difference."""
    read = reading(manifest)

    def by_table(table: PackTable, wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
        assert table.chunks.keys() == wanted.keys()
        return read(wanted)

    return by_table


def no_structure(*wanted: Mapping[ChunkId, int] | PackTable) -> Mapping[ChunkId, bytes]:
    """Return nothing, for versions without structure chunks."""
    assert not wanted[-1]
    return {}


def sealed_snapshot(
    manifest: bytes, table: bytes, compress: Callable[[bytes], bytes] = zstandard.compress
) -> bytes:
    """Return the bare object of a manifest and a pack table, both encoded, of any content."""
    sizes = {"manifest_size": len(manifest), "table_size": len(table)}
    packed = {"manifest": compress(manifest), "table": compress(table)}
    return snapshot_object(msgpack.packb(packed | sizes))


def snapshot_object(index: bytes, frames: bytes = b"") -> bytes:
    """Return a snapshot object with any bytes as its index and frames."""
    first_bytes = prefix(ObjectKind.SNAPSHOT)
    return first_bytes + frames + index + checksum(first_bytes + index) + trailer(index)
