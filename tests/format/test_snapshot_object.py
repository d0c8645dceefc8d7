"""Snapshot objects: a manifest, and the table of the packs that contained its chunks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard

from casweights.config import KiB, StoreConfig
from casweights.errors import IntegrityError, UnsupportedError
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.file_entry import FileEntry
from casweights.format.hashing import checksum
from casweights.format.manifest import EncodedSnapshot, Manifest, Snapshot
from casweights.format.names import snapshot_name
from casweights.format.pack import TRAILER_SIZE, Frame, encode_frames
from casweights.format.pack_table import PackTable
from casweights.format.snapshot import (
    SnapshotEnd,
    StoredSnapshot,
    decode_snapshot,
    encode_snapshot,
    end_span,
    parse_end,
)
from casweights.ids import CarriedPackId, ChunkId, PackId, SnapshotId
from tests.structure import no_structure, reading_by_table, snapshot_object

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
    return b"".join(encode_snapshot(StoredSnapshot(snapshot, manifest, table))), snapshot.id


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
    data = b"".join(encode_snapshot(StoredSnapshot(snapshot, raw, PackTable([], {}))))
    stored = decode_snapshot(data, snapshot.id, NAME, no_structure)
    assert parts_of(stored) == (snapshot, raw, PackTable([], {}))


def test_the_id_does_not_commit_to_places() -> None:
    snapshot, manifest, table = make()
    moved = PackTable(PACKS[:1], dict.fromkeys(table.chunks, PACKS[0]))
    data = b"".join(encode_snapshot(StoredSnapshot(snapshot, manifest, moved)))
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


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the index of the snapshot of `make`, and its pack table."""
    data = encoded()[0]
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), NAME)
    index = msgpack.unpackb(data[start:stop])
    table = zstandard.ZstdDecompressor().decompress(index["table"])
    return index, msgpack.unpackb(table, strict_map_key=False)


def sealed(index: dict[str, Any] | bytes) -> bytes:
    """Return a snapshot object with any index."""
    return snapshot_object(index if isinstance(index, bytes) else msgpack.packb(index))


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

    data = b"".join(encode_snapshot(StoredSnapshot(snapshot, manifest, table)))
    stored = decode_snapshot(data, snapshot.id, NAME, read)
    assert tables == []
    assert stored.snapshot.files == snapshot.files
    packs = table.packs if structure is None else table.packs[: max(2, structure)]
    places = {pack: pack[:3] for pack in packs}
    own = dict(zip(snapshot.structure(), PACKS, strict=True))
    assert tables == [PackTable(packs, own, places)]
    assert stored.table == table


def with_table(changes: dict[str, Any]) -> bytes:
    index, table = parts()
    raw = msgpack.packb(table | changes)
    return sealed(index | {"table": zstandard.compress(raw), "table_size": len(raw)})


@pytest.mark.parametrize("part", ["manifest", "table"])
@pytest.mark.parametrize("claim", [1, -1, 1 << 32, 300 << 20, -(1 << 40), True, b"1", None])
def test_wrong_sizes_are_refused(part: str, claim: Any) -> None:
    """Wrong sizes are refused before memory is allocated."""
    index, _ = parts()
    size = index[f"{part}_size"] + claim if type(claim) is int else claim
    with pytest.raises(IntegrityError, match=NAME):
        decode(sealed(index | {f"{part}_size": size}), encoded()[1])


@pytest.mark.parametrize("part", ["manifest", "table"])
@pytest.mark.parametrize("packed", [b"", b"no zstd frame", None, 5, [b""], {}])
def test_other_values_than_compressed_bytes_are_refused(part: str, packed: Any) -> None:
    with pytest.raises(IntegrityError, match=NAME):
        decode(sealed(parts()[0] | {part: packed}), encoded()[1])


@pytest.mark.parametrize("index", [b"", b"short", bytes(16), bytes(100), msgpack.packb([1])])
def test_other_indexes_are_not_a_snapshot(index: bytes) -> None:
    with pytest.raises(IntegrityError, match=NAME):
        decode(sealed(index), encoded()[1])


def test_unknown_keys_of_the_index_are_skipped() -> None:
    index, _ = parts()
    assert parts_of(decode(sealed(index | {"later": [1]}), encoded()[1])) == make()


# Snapshots that carry frames.


def carrying() -> tuple[StoredSnapshot, list[bytes]]:
    """Return the snapshot of `make` with frames of two of its chunks, and their payloads."""
    snapshot, manifest, table = make()
    own, payloads = CarriedPackId(snapshot.id), [b"first", b"second, which is longer"]
    frames, offset = [], PREFIX_SIZE
    for chunk, payload in zip(CHUNKS, payloads, strict=False):
        frames.append(Frame(chunk, 100, 1, offset, len(payload), checksum(payload)))
        offset += len(payload)
    other = CarriedPackId(b"o" * 32)
    chunks = {**table.chunks, CHUNKS[0]: own, CHUNKS[1]: own, CHUNKS[2]: other}
    places = {PACKS[1]: b"place of q", other: b"place of the other snapshot"}
    table = PackTable([own, *PACKS, other], chunks, places=places, structure=3)
    return StoredSnapshot(snapshot, manifest, table, frames), payloads


def carried() -> tuple[bytes, SnapshotId]:
    stored, payloads = carrying()
    return b"".join(encode_snapshot(stored, payloads)), stored.snapshot.id


def test_a_snapshot_comes_back_with_the_frames_that_it_carries() -> None:
    stored, payloads = carrying()
    data, snapshot_id = carried()
    found = decode(data, snapshot_id)
    assert parts_of(found) == parts_of(stored)
    assert list(found.frames) == list(stored.frames)
    assert [data[f.offset : f.offset + f.size] for f in found.frames] == payloads
    assert [type(pack) for pack in found.packs] == [CarriedPackId, PackId, PackId, CarriedPackId]
    assert type(found.table.chunks[CHUNKS[2]]) is CarriedPackId
    assert found.carried == CarriedPackId(snapshot_id)


def test_the_pack_of_the_object_itself_has_number_0_and_is_not_listed() -> None:
    data, _ = carried()
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), NAME)
    index = msgpack.unpackb(data[start:stop])
    table = msgpack.unpackb(zstandard.decompress(index["table"]), strict_map_key=False)
    assert table["packs"] == b"p" * 32 + b"q" * 32 + b"o" * 32
    assert (table["pack"][2:], table["carried"]) == ([0, 0, 3], [3])


@pytest.mark.parametrize("structure", [0, 1, 2, 3])
def test_the_number_of_packs_of_structure_covers_the_object_itself(structure: int) -> None:
    stored, payloads = carrying()
    packs = [PACKS[0], PACKS[1], CarriedPackId(b"o" * 32), CarriedPackId(stored.snapshot.id)]
    table = stored.table._replace(packs=packs, structure=structure)
    data = b"".join(encode_snapshot(stored.with_table(table), payloads))
    found = decode(data, stored.snapshot.id).table
    assert found.structure == structure + 1
    assert set(found.packs[: found.structure]) == {packs[3], *packs[:structure]}


def test_a_reader_of_the_frames_alone_gets_the_same() -> None:
    data, _ = carried()
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), NAME)
    end = SnapshotEnd(start, data[start:stop], data[stop:-TRAILER_SIZE])
    assert [*parse_end(data[:PREFIX_SIZE], end, NAME).frames] == [*carrying()[0].frames]
    bare, _ = encoded()
    start, stop = end_span(bare[-TRAILER_SIZE:], len(bare), NAME)
    end = SnapshotEnd(start, bare[start:stop], bare[stop:-TRAILER_SIZE])
    assert not parse_end(bare[:PREFIX_SIZE], end, NAME).frames


def test_every_flipped_bit_outside_the_frames_is_found() -> None:
    """Each frame has a checksum of its own."""
    data, snapshot_id = carried()
    frames = range(8 * PREFIX_SIZE, 8 * (PREFIX_SIZE + sum(f.size for f in carrying()[0].frames)))
    for n in range(8 * len(data)):
        if n in frames:
            continue
        damaged = bytearray(data)
        damaged[n // 8] ^= 1 << n % 8
        with pytest.raises(IntegrityError, match=NAME):
            decode(bytes(damaged), snapshot_id)


@pytest.mark.parametrize("missing", [1, 4, 8, 16, 100])
@pytest.mark.parametrize("at_the_end", [True, False])
def test_truncated_objects_are_refused(missing: int, at_the_end: bool) -> None:
    data, snapshot_id = carried()
    with pytest.raises(IntegrityError, match=NAME):
        decode(data[:-missing] if at_the_end else data[missing:], snapshot_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"carried": [0]},  # the object itself
        {"carried": [4]},
        {"carried": [-1]},
        {"carried": 3},
        {"carried": [True]},
        {"pack": [0, 1, 0, 1, 4]},
        {"structure": 5},
    ],
)
def test_forged_tables_of_carried_packs_are_refused(changes: dict[str, Any]) -> None:
    data, snapshot_id = carried()
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), NAME)
    index = msgpack.unpackb(data[start:stop])
    table = msgpack.unpackb(zstandard.decompress(index["table"]), strict_map_key=False)
    raw = msgpack.packb(table | changes)
    index |= {"table": zstandard.compress(raw), "table_size": len(raw)}
    forged = snapshot_object(msgpack.packb(index), data[PREFIX_SIZE:start])
    with pytest.raises(IntegrityError, match="its pack table is not valid"):
        decode(forged, snapshot_id)


@pytest.mark.parametrize("wrong", [b"", b"frames", None, 7, "no frames", "another size"])
def test_forged_columns_of_frames_are_refused(wrong: Any) -> None:
    stored, payloads = carrying()
    index, _ = parts()
    if wrong == "no frames":
        columns = msgpack.unpackb(encode_frames(stored.frames), strict_map_key=False)
        wrong = msgpack.packb(
            {"digest_size": 32} | dict.fromkeys(columns.keys() - {"digest_size"}, b"")
        )
        payloads = []
    elif wrong == "another size":
        wrong = encode_frames([stored.frames[0]._replace(size=4), stored.frames[1]])
    forged = snapshot_object(msgpack.packb({**index, "frames": wrong}), b"".join(payloads))
    with pytest.raises(IntegrityError, match=NAME):
        decode(forged, stored.snapshot.id)


def test_frames_that_the_index_does_not_list_are_refused() -> None:
    index, _ = parts()
    forged = snapshot_object(msgpack.packb(index), b"more bytes")
    with pytest.raises(IntegrityError, match="do not end where its index begins"):
        decode(forged, encoded()[1])


def test_the_checksum_is_checked_before_the_version() -> None:
    data, snapshot_id = carried()
    newer = bytearray(data)
    newer[5] += 1
    with pytest.raises(IntegrityError, match="checksum"):
        decode(bytes(newer), snapshot_id)
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), NAME)
    newer[stop : stop + 8] = checksum(bytes(newer[:PREFIX_SIZE]) + data[start:stop])
    with pytest.raises(UnsupportedError, match="upgrade casweights"):
        decode(bytes(newer), snapshot_id)


def test_an_object_of_another_kind_is_refused() -> None:
    data, snapshot_id = carried()
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), NAME)
    other = bytearray(data)
    other[:PREFIX_SIZE] = prefix(ObjectKind.PACK)
    other[stop : stop + 8] = checksum(bytes(other[:PREFIX_SIZE]) + data[start:stop])
    with pytest.raises(IntegrityError, match="another kind"):
        decode(bytes(other), snapshot_id)
