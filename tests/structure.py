"""Structure chunks of versions that are not stored, and objects of forged versions."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import zstandard

from casweights.format.envelope import ObjectKind, seal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casweights.format.file_entry import ReadStructure
    from casweights.format.manifest import Manifest
    from casweights.format.snapshot import PackTable, ReadChunks
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


def sealed_snapshot(manifest: bytes, table: bytes) -> bytes:
    """Return the object of a manifest and a pack table, both encoded, of any content."""
    packed = [zstandard.compress(part) for part in (manifest, table)]
    sizes = struct.pack("<4I", len(manifest), len(packed[0]), len(table), len(packed[1]))
    return seal(ObjectKind.SNAPSHOT, sizes + b"".join(packed))
