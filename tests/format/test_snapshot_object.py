"""Snapshot objects: a manifest, and the table of the packs that contained its chunks."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard

from casweights.config import KiB, StoreConfig
from casweights.errors import IntegrityError
from casweights.format.envelope import ObjectKind, seal, unseal
from casweights.format.file_entry import FileEntry
from casweights.format.manifest import EncodedSnapshot, Manifest, Snapshot
from casweights.format.names import snapshot_name
from casweights.format.snapshot import PackTable, StoredSnapshot, decode_snapshot, encode_snapshot
from casweights.ids import ChunkId, PackId, SnapshotId
from tests.structure import no_structure, reading_by_table

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNKS = [ChunkId(bytes([n]) * 32) for n in range(3)]
PACKS = [PackId(b"p" * 32), PackId(b"q" * 32)]
NAME = "snapshots/some"


def make() -> tuple[Snapshot, bytes, PackTable]:
    """Return two files that share a chunk, with a list of chunks each.

    The frames are in two packs, the bases in a third.
    """
    size = 64 * KiB
    manifest = Manifest(
        number=1,
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
    chunks = {c: PACKS[n % 2] for n, c in enumerate(manifest.stored_chunks())}
    table = PackTable([*PACKS, PackId(b"r" * 32)], chunks, structure=2)
    return *EncodedSnapshot.of(manifest), table


def decode(data: bytes, snapshot_id: SnapshotId) -> StoredSnapshot:
    return decode_snapshot(data, snapshot_id, NAME, reading_by_table(make()[0]))


def parts_of(stored: StoredSnapshot) -> tuple[Snapshot, bytes, PackTable]:
    return stored.snapshot, stored.encoded_manifest, stored.table


def encoded() -> tuple[bytes, SnapshotId]:
    snapshot, manifest, table = make()
    return encode_snapshot(StoredSnapshot(snapshot, manifest, table)), snapshot.id


def test_decode_returns_the_encoded_snapshot() -> None:
    snapshot, raw, table = make()
    data, snapshot_id = encoded()
    stored = decode(data, snapshot_id)
    assert (stored.packs, stored.shallow) == (table.packs, table.shallow)
    assert parts_of(stored) == (snapshot, raw, table)


def test_a_snapshot_without_chunks_comes_back() -> None:
    manifest = Manifest(
        number=1,
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
    stored = decode_snapshot(data, snapshot.id, NAME, no_structure)
    assert parts_of(stored) == (snapshot, raw, PackTable([], {}))


def test_the_id_does_not_commit_to_places() -> None:
    snapshot, manifest, table = make()
    moved = PackTable(PACKS[:1], dict.fromkeys(table.chunks, PACKS[0]))
    data = encode_snapshot(StoredSnapshot(snapshot, manifest, moved))
    assert parts_of(decode(data, snapshot.id)) == (snapshot, manifest, moved)


def test_every_flipped_bit_is_found() -> None:
    data, snapshot_id = encoded()
    for n in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[n // 8] ^= 1 << n % 8
        with pytest.raises(IntegrityError, match=NAME):
            decode(bytes(damaged), snapshot_id)


def test_a_snapshot_with_another_id_is_refused() -> None:
    data, _ = encoded()
    with pytest.raises(IntegrityError, match="do not match its ID"):
        decode(data, SnapshotId(bytes(32)))


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
        {"pack": [0]},  # there are two lists of chunks
        {"pack": [0, 1, 0, 1, -1]},
        {"pack": [0, 1, 0, 1, 3]},
        {"pack": [0, 1, 0, 1, "0"]},
        {"pack": [0, 1, 0, 1, True]},
        {"pack": None},
        {"places": {3: b"beyond"}},
        {"places": {-1: b"before"}},
        {"structure": 4},
        {"structure": -1},
        {"structure": True},
        {"structure": None},
    ],
)
def test_forged_pack_tables_are_refused(changes: dict[str, Any]) -> None:
    """The manifest is intact, and the table is not part of the identity."""
    with pytest.raises(IntegrityError, match="its pack table is not valid"):
        decode(with_table(changes), encoded()[1])


@pytest.mark.parametrize("count", [2, 4, 6])
def test_a_pack_table_for_other_chunks_is_refused_when_it_is_used(count: int) -> None:
    """How many chunks there are is known when the lists of chunks are read."""
    stored = decode(with_table({"pack": [0] * count}), encoded()[1])
    name = snapshot_name(stored.snapshot.id)
    with pytest.raises(IntegrityError, match=f"{name}.*its pack table is not valid"):
        _ = stored.table


@pytest.mark.parametrize("structure", [None, 0, 1, 2, 3])
def test_structure_is_read_with_the_packs_that_the_table_names_for_it(
    structure: int | None,
) -> None:
    """The packs of the structure chunks themselves are never left out."""
    snapshot, manifest, table = make()
    table = table._replace(
        structure=structure, places={pack: pack[:3] for pack in table.packs}, shallow=True
    )
    tables = []

    def read(part: PackTable, wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
        tables.append(part)
        return reading_by_table(snapshot)(part, wanted)

    data = encode_snapshot(StoredSnapshot(snapshot, manifest, table))
    stored = decode_snapshot(data, snapshot.id, NAME, read)
    assert tables == []
    assert stored.snapshot.files == snapshot.files
    packs = table.packs if structure is None else table.packs[: max(2, structure)]
    places = {pack: pack[:3] for pack in packs}
    own = dict(zip(snapshot.structure(), PACKS, strict=True))
    assert tables == [PackTable(packs, own, places)]
    assert stored.table == table


def with_table(changes: dict[str, Any]) -> bytes:
    sizes, manifest, table = parts()
    raw = msgpack.packb(table | changes)
    packed = zstandard.compress(raw)
    return sealed([*sizes[:2], len(raw), len(packed)], manifest, packed)


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
            decode(sealed(wrong, manifest, packed), encoded()[1])


@pytest.mark.parametrize("payload", [b"", b"short", bytes(16), bytes(100)])
def test_other_payloads_are_not_a_snapshot(payload: bytes) -> None:
    with pytest.raises(IntegrityError, match=NAME):
        decode(seal(ObjectKind.SNAPSHOT, payload), encoded()[1])
