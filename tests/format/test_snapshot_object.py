"""Snapshot objects: a manifest, and the table of the packs that contained its chunks."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
import zstandard

from casweights.config import KiB, StoreConfig
from casweights.errors import IntegrityError
from casweights.format.envelope import ObjectKind, seal, unseal
from casweights.format.manifest import EncodedSnapshot, FileEntry, Manifest, Snapshot
from casweights.format.snapshot import PackTable, StoredSnapshot, decode_snapshot, encode_snapshot
from casweights.ids import ChunkId, PackId, SnapshotId

CHUNKS = [ChunkId(bytes([n]) * 32) for n in range(3)]
PACKS = [PackId(b"p" * 32), PackId(b"q" * 32)]
NAME = "snapshots/some"


def make() -> tuple[Snapshot, bytes, PackTable]:
    """Return two files that share a chunk; their frames are in two packs, the bases in a third."""
    size = 64 * KiB
    manifest = Manifest(
        parents=(),
        time=datetime(2026, 8, 1, tzinfo=UTC),
        author="",
        message="",
        metadata={},
        config=StoreConfig(chunk_size=size),
        files=(
            FileEntry("a", 2 * size, None, None, (CHUNKS[0], CHUNKS[1])),
            FileEntry("b", size + 7, None, None, (CHUNKS[0], CHUNKS[2])),
        ),
    )
    table = PackTable([*PACKS, PackId(b"r" * 32)], {c: PACKS[n % 2] for n, c in enumerate(CHUNKS)})
    return *EncodedSnapshot.of(manifest), table


def encoded() -> tuple[bytes, SnapshotId]:
    snapshot, manifest, table = make()
    return encode_snapshot(StoredSnapshot(snapshot, manifest, table)), snapshot.id


def test_decode_returns_the_encoded_snapshot() -> None:
    snapshot, raw, table = make()
    data, snapshot_id = encoded()
    assert decode_snapshot(data, snapshot_id, NAME) == (snapshot, raw, table)


def test_a_snapshot_without_chunks_comes_back() -> None:
    manifest = Manifest(
        parents=(),
        time=datetime(2026, 8, 1, tzinfo=UTC),
        author="",
        message="",
        metadata={},
        config=StoreConfig(),
        files=(FileEntry("empty", 0, None, None, ()),),
    )
    snapshot, raw = EncodedSnapshot.of(manifest)
    data = encode_snapshot(StoredSnapshot(snapshot, raw, PackTable([], {})))
    assert decode_snapshot(data, snapshot.id, NAME) == (snapshot, raw, PackTable([], {}))


def test_the_id_does_not_commit_to_places() -> None:
    snapshot, manifest, table = make()
    moved = PackTable(PACKS[:1], dict.fromkeys(table.chunks, PACKS[0]))
    data = encode_snapshot(StoredSnapshot(snapshot, manifest, moved))
    assert decode_snapshot(data, snapshot.id, NAME) == (snapshot, manifest, moved)


def test_every_flipped_bit_is_found() -> None:
    data, snapshot_id = encoded()
    for n in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[n // 8] ^= 1 << n % 8
        with pytest.raises(IntegrityError, match=NAME):
            decode_snapshot(bytes(damaged), snapshot_id, NAME)


def test_a_snapshot_with_another_id_is_refused() -> None:
    data, _ = encoded()
    with pytest.raises(IntegrityError, match="do not match its ID"):
        decode_snapshot(data, SnapshotId(bytes(32)), NAME)


def parts() -> tuple[list[int], bytes, dict[str, Any]]:
    """Return the sizes, compressed manifest and pack table of the snapshot of `make`."""
    payload = unseal(ObjectKind.SNAPSHOT, encoded()[0], NAME)
    sizes = list(struct.unpack_from("<4I", payload))
    manifest = payload[16 : 16 + sizes[1]]
    table = zstandard.ZstdDecompressor().decompress(payload[16 + sizes[1] :])
    return sizes, manifest, msgpack.unpackb(table, strict_map_key=False)


def sealed(sizes: list[int], manifest: bytes, table: bytes) -> bytes:
    return seal(ObjectKind.SNAPSHOT, struct.pack("<4I", *sizes) + manifest + table)


@pytest.mark.parametrize(
    "changes",
    [
        {"packs": b"p" * 31},
        {"packs": b"p" * 32},  # then number 1 is beyond
        {"packs": []},
        {"packs": None},
        {"pack": [0, 1]},
        {"pack": [0, 1, 0, 1]},
        {"pack": [0, 1, -1]},
        {"pack": [0, 1, 3]},
        {"pack": [0, 1, "0"]},
        {"pack": [0, 1, True]},
        {"pack": None},
    ],
)
def test_forged_pack_tables_are_refused(changes: dict[str, Any]) -> None:
    """The manifest is intact, and the table is not part of the identity."""
    sizes, manifest, table = parts()
    raw = msgpack.packb(table | changes)
    packed = zstandard.compress(raw)
    data = sealed([*sizes[:2], len(raw), len(packed)], manifest, packed)
    with pytest.raises(IntegrityError, match="its pack table is not valid"):
        decode_snapshot(data, encoded()[1], NAME)


@pytest.mark.parametrize(
    "claims",
    [(1, 0), (-1, 0), ((1 << 32) - 1, 0), (300 << 20, 0), (0, 1), (0, -1), (0, 5)],
)
def test_wrong_sizes_are_refused(claims: tuple[int, int]) -> None:
    """Wrong sizes are refused before memory is allocated."""
    sizes, manifest, table = parts()
    packed = zstandard.compress(msgpack.packb(table))
    sizes = [sizes[0], sizes[1], sizes[2], len(packed)]
    for n in (0, 2):
        wrong = list(sizes)
        wrong[n] = min(max(0, wrong[n] + claims[0]), (1 << 32) - 1)
        wrong[n + 1] += claims[1]
        with pytest.raises(IntegrityError, match=NAME):
            decode_snapshot(sealed(wrong, manifest, packed), encoded()[1], NAME)


@pytest.mark.parametrize("payload", [b"", b"short", bytes(16), bytes(100)])
def test_other_payloads_are_not_a_snapshot(payload: bytes) -> None:
    with pytest.raises(IntegrityError, match=NAME):
        decode_snapshot(seal(ObjectKind.SNAPSHOT, payload), encoded()[1], NAME)
