"""Decoding forged MessagePack needs memory in proportion to its bytes, wherever a bomb is."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from casweights import IntegrityError, InvalidInputError, SnapshotId
from casweights.format.envelope import ObjectKind, prefix
from casweights.format.hashing import blake3_256
from casweights.format.manifest import (
    MAX_METADATA,
    MAX_NESTING,
    Snapshot,
    canonical_metadata,
)
from casweights.format.pack import pack_id, parse_index
from casweights.format.snapshot import decode_snapshot
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.format.zstd import compress_object, decompress_object, most_content
from tests.structure import no_structure, sealed_snapshot, snapshot_object

if TYPE_CHECKING:
    from collections.abc import Callable

BOMB = 1 << 18  # bytes
MAX_GROWTH = 12  # bytes of memory for each byte of a bomb
METADATA = 80 * MAX_METADATA

MANIFEST: dict[str, Any] = {
    "number": 1,
    "parents": [],
    "time": 0,
    "author": "",
    "message": "",
    "metadata": {},
    "digest": "blake3",
    "chunk_size": 65536,
    "files": [["a", 0, None, b"", 0, b""]],
}
TABLE: dict[str, Any] = {"packs": b"", "pack": [], "places": {}, "shallow": False, "structure": 0}
INDEX: dict[str, Any] = {
    "digest_size": 32,
    "chunk": b"",
    "raw_size": b"",
    "size": b"",
    "encoding": b"",
    "checksum": b"",
    "based": b"",
    "base": b"",
}


def array(count: int, items: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + items


def pairs(count: int, items: bytes) -> bytes:
    return b"\xdf" + count.to_bytes(4, "big") + items


BOMBS = {
    "empty arrays": array(BOMB, b"\x90" * BOMB),
    "empty maps": array(BOMB, b"\x80" * BOMB),
    "arrays of one": array(BOMB // 2, b"\x91\x90" * (BOMB // 2)),
    "maps of one": array(BOMB // 3, b"\x81\xa0\x90" * (BOMB // 3)),
    "short texts": array(BOMB // 3, b"\xa2ab" * (BOMB // 3)),
    "pairs": pairs(70_000, b"".join(b"\xa4%04x\x90" % (n % 65536) for n in range(70_000))),
    "row of arrays": array(1, array(BOMB, b"\x90" * BOMB)),
    "array in a row": array(
        1, b"\x96" + array(BOMB, b"\x90" * BOMB) + b"\x00\xc0\xc4\x00\x00\xc4\x00"
    ),
    "array at the end of a row": array(
        1, b"\x96\xa1a\x00\xc0\xc4\x00\x00" + array(BOMB, b"\x90" * BOMB)
    ),
    "array in a map": pairs(1, b"\xa1a" + array(BOMB, b"\x90" * BOMB)),
    "wide and deep": b"\x91" * 60 + array(BOMB, b"\x90" * BOMB),
    "deep": b"\x91" * BOMB + b"\x90",
}


def with_bomb(fields: dict[str, Any], key: str, bomb: bytes) -> bytes:
    """Return an encoded map in which one value is a bomb."""
    parts = [
        msgpack.packb(name) + (bomb if name == key else msgpack.packb(value))
        for name, value in {**fields, key: None}.items()
    ]
    return bytes((0x80 | len(parts),)) + b"".join(parts)


def refuse(decode: Callable[[], object], most: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            decode()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


def decode_manifest(encoded: bytes) -> Snapshot:
    return Snapshot.decode(encoded, SnapshotId(blake3_256(encoded)), no_structure)


@pytest.mark.parametrize("key", [*MANIFEST, "unknown"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_manifest_is_refused_where_the_bomb_begins(bomb: bytes, key: str) -> None:
    encoded = with_bomb(MANIFEST, key, bomb)
    refuse(
        lambda: decode_manifest(encoded), MAX_GROWTH * len(encoded) + (key == "metadata") * METADATA
    )


@pytest.mark.parametrize("key", INDEX)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_an_index_is_refused_where_the_bomb_begins(bomb: bytes, key: str) -> None:
    index, first = with_bomb(INDEX, key, bomb), prefix(ObjectKind.PACK)
    pack = pack_id(first, index)
    refuse(lambda: parse_index(first, index, 8, pack, "it"), MAX_GROWTH * len(index))


@pytest.mark.parametrize("key", TABLE)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_pack_table_is_refused_where_the_bomb_begins(bomb: bytes, key: str) -> None:
    manifest, table = msgpack.packb(MANIFEST), with_bomb(TABLE, key, bomb)
    data, snapshot = snapshot_of(manifest, table)
    refuse(lambda: decode_snapshot(data, snapshot, "it", no_structure), MAX_GROWTH * len(table))


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_unknown_keys_are_skipped_without_decoding(bomb: bytes) -> None:
    data, snapshot = snapshot_of(msgpack.packb(MANIFEST), with_bomb(TABLE, "later", bomb))
    tracemalloc.start()
    try:
        if bomb is BOMBS["deep"]:  # the decoder's own stack ends earlier
            with pytest.raises(IntegrityError):
                decode_snapshot(data, snapshot, "it", no_structure)
        else:
            assert decode_snapshot(data, snapshot, "it", no_structure).table.packs == []
        assert tracemalloc.get_traced_memory()[1] < MAX_GROWTH * len(bomb)
    finally:
        tracemalloc.stop()


def snapshot_of(
    manifest: bytes, table: bytes, compress: Callable[[bytes], bytes] | None = None
) -> tuple[bytes, SnapshotId]:
    data = sealed_snapshot(manifest, table, compress or (lambda part: compress_object(part, 3)))
    return data, SnapshotId(blake3_256(manifest))


@pytest.mark.parametrize(
    "key", ["frames", "manifest", "manifest_size", "table", "table_size", "lineage"]
)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_the_index_of_a_snapshot_is_refused_where_the_bomb_begins(bomb: bytes, key: str) -> None:
    manifest = msgpack.packb(MANIFEST)
    fields = {"frames": b"", "manifest": b"", "manifest_size": 0, "table": b"", "table_size": 0}
    index = with_bomb(fields, key, bomb)
    data, snapshot = snapshot_object(index), SnapshotId(blake3_256(manifest))
    refuse(lambda: decode_snapshot(data, snapshot, "it", no_structure), MAX_GROWTH * len(index))


@pytest.mark.parametrize("key", INDEX)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_carried_frames_are_refused_where_the_bomb_begins(bomb: bytes, key: str) -> None:
    columns = with_bomb(INDEX, key, bomb)
    fields = {"frames": columns, "manifest": b"", "manifest_size": 0, "table": b"", "table_size": 0}
    data, snapshot = snapshot_object(msgpack.packb(fields)), SnapshotId(bytes(32))
    refuse(lambda: decode_snapshot(data, snapshot, "it", no_structure), MAX_GROWTH * len(columns))


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("size", [5 << 20, 50 << 20, 200 << 20])
def test_a_small_object_that_claims_much_content_is_refused(part: int, size: int) -> None:
    """This holds even if the content is a single valid text."""
    parts = [msgpack.packb(MANIFEST), msgpack.packb(TABLE)]
    field = [{**MANIFEST, "message": " " * size}, {**TABLE, "later": bytes(size)}][part]
    parts[part] = msgpack.packb(field)
    data, snapshot = snapshot_of(parts[0], parts[1], zstandard.compress)
    del parts, field
    refuse(lambda: decode_snapshot(data, snapshot, "it", no_structure), 16 << 20)


@pytest.mark.parametrize("size", [0, 1, (4 << 20) + 1, (1 << 17) * 40, (1 << 17) * 40 + 1])
def test_content_that_compresses_too_well_is_stored_raw(size: int) -> None:
    packed = compress_object(bytes(size), 3)
    assert size <= most_content(len(packed))
    assert decompress_object(packed, size) == bytes(size)
    assert zstandard.ZstdDecompressor().decompress(packed) == bytes(size)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_nested_metadata_comes_back(value: Any) -> None:
    encoded = msgpack.packb(value)
    data = Unpacker(encoded)
    assert repr(data.tree(1 << 17, MAX_NESTING)) == repr(value)
    data.finish()


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused_by_one_of_few_errors(encoded: bytes) -> None:
    try:
        data = Unpacker(encoded)
        data.tree(100, 10)
        data.finish()
    except MALFORMED:
        return
    msgpack.unpackb(encoded, strict_map_key=True)


SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {
    "one list": lambda n: {"a": [0] * (n - 2)},
    "lists": lambda n: {"a": [[0] * 1023] * 127, "b": [0] * (n - 4 - 127 * 1024)},
    "keys": lambda n: {str(number): number for number in range((n + 1) // 2)},
    "keys within": lambda n: {"a": {"b": {str(key): [] for key in range((n - 3) // 2)}}},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_writers_and_readers_of_metadata_stop_at_the_same_number(
    shape: Callable[[int], dict[str, Any]],
) -> None:
    most, more = shape(MAX_METADATA), shape(MAX_METADATA + 1)
    assert decode_manifest(msgpack.packb({**MANIFEST, "metadata": most})).metadata == most
    assert canonical_metadata(most) == most
    with pytest.raises(InvalidInputError, match="above the limit of 131072"):
        canonical_metadata(more)
    with pytest.raises(IntegrityError, match="too many values"):
        decode_manifest(msgpack.packb({**MANIFEST, "metadata": more}))
