"""Parsers of objects and model files turn any bytes into a value or a named error."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from casweights import CasweightsError, InvalidInputError, SnapshotId
from casweights.config import StoreConfig
from casweights.format.archive import ENDING_SIZE, ROW_SIZE, build_archive, parse_archive
from casweights.format.dtypes import DTYPES
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix, seal, unseal
from casweights.format.expired import decode_record
from casweights.format.file_entry import FileEntry
from casweights.format.file_paths import check_paths
from casweights.format.hashing import blake3_256, checksum
from casweights.format.manifest import EncodedSnapshot, Manifest, Snapshot
from casweights.format.pack import TRAILER_SIZE, Frame, build_index, index_span
from casweights.format.pack import parse_index as parse_pack_index
from casweights.format.pack_table import PackTable
from casweights.format.policy import decode_policy
from casweights.format.safetensors import build_header, header_size, parse_header
from casweights.format.snapshot import (
    StoredSnapshot,
    decode_snapshot,
    encode_snapshot,
    end_span,
)
from casweights.format.store_file import decode_store_file, encode_store_file
from casweights.ids import ChunkId, PackId
from tests.structure import sealed_snapshot, snapshot_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CHUNK = b"chunk" * 1000
CHUNK_ID = ChunkId(blake3_256(CHUNK))
HEADER = build_header([("t", DTYPES["U8"], (2, 3)), ("u", DTYPES["I8"], (5,))], {})
PAGE = b"t" * 32 + b"u" * 32
NAME = "packs/it"

numbers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 1, 2**31, 2**62, 2**63])
leaves = st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=9)
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
packable = st.recursive(
    leaves | st.binary(max_size=70) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3) | numbers, inner, max_size=3)
    ),
)


def edited(honest: bytes) -> st.SearchStrategy[bytes]:
    """Variants of `honest` with some bytes replaced, inserted or removed."""
    edits = st.tuples(st.integers(0, len(honest)), st.integers(0, 9), st.binary(max_size=9))

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        data = honest
        for start, length, new in changes:
            data = data[:start] + new + data[start + length :]
        return data

    return st.lists(edits, max_size=4).map(apply)


def with_some(honest: dict[str, Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Variants of the map `honest` with some fields replaced, removed or added."""
    keys = st.sampled_from([*honest, "more"])
    return st.tuples(st.dictionaries(keys, values, max_size=3), st.sets(keys, max_size=1)).map(
        lambda change: {k: v for k, v in {**honest, **change[0]}.items() if k not in change[1]}
    )


def parse(parser: Callable[..., object], *args: Any) -> None:
    with suppress(CasweightsError):
        parser(*args)


MANIFEST: dict[str, Any] = {
    "number": 2,
    "parents": [bytes(32)],
    "time": 1_700_000_000_000_000,
    "author": "author",
    "message": "message",
    "metadata": {"step": 1},
    "digest": "blake3",
    "chunk_size": 1 << 16,
    "files": [
        ["a/b", len(CHUNK), None, b"", 1, CHUNK_ID],
        ["c", len(HEADER) + 11, len(HEADER), blake3_256(HEADER), 2, blake3_256(PAGE)],
    ],
}
STRUCTURE = {blake3_256(content): content for content in (HEADER, PAGE)}
FRAME = Frame(CHUNK_ID, len(CHUNK), 0, 8, len(CHUNK), checksum(CHUNK))
TABLE: dict[str, Any] = {"packs": bytes(32), "pack": [0, 0, 0, 0, 0], "structure": 1}
INDEX: dict[str, Any] = {
    "digest_size": 32,
    "chunk": CHUNK_ID,
    "raw_size": len(CHUNK).to_bytes(4, "little"),
    "size": len(CHUNK).to_bytes(4, "little"),
    "encoding": b"\0",
    "checksum": checksum(CHUNK),
    "based": b"\0",
    "base": b"",
}


HONEST_MANIFEST = msgpack.packb(MANIFEST)
HONEST_ID = SnapshotId(blake3_256(HONEST_MANIFEST))
HONEST_SNAPSHOT = sealed_snapshot(HONEST_MANIFEST, msgpack.packb(TABLE))
SNAPSHOT: dict[str, Any] = {
    "frames": msgpack.packb(INDEX),
    "manifest": zstandard.compress(HONEST_MANIFEST),
    "manifest_size": len(HONEST_MANIFEST),
    "table": zstandard.compress(msgpack.packb({**TABLE, "packs": b""})),
    "table_size": len(msgpack.packb({**TABLE, "packs": b""})),
    "lineage": [[bytes(32), 7], [b"o" * 32, 1]],
}
CARRYING_SNAPSHOT = snapshot_object(msgpack.packb(SNAPSHOT), CHUNK)


def decode_manifest(encoded: bytes, header: bytes = HEADER, page: bytes = PAGE) -> Snapshot:
    """Decode a manifest with all that its structure chunks say.

    They come with the sizes that the manifest claims, as they do from a store.
    """

    def read(wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
        contents = itertools.cycle((header, page))
        return {
            chunk: content.ljust(size, b"\0")[:size]
            for (chunk, size), content in zip(wanted.items(), contents, strict=False)
        }

    snapshot = Snapshot.decode(encoded, SnapshotId(blake3_256(encoded)), read)
    for file in snapshot.files:
        assert file.chunks is not None
    return snapshot


def decode_object(data: bytes) -> StoredSnapshot:
    """Decode the honest snapshot's object with all of its pack table."""

    def read(_: PackTable, wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
        return {chunk: STRUCTURE[chunk] for chunk in wanted}

    stored = decode_snapshot(data, HONEST_ID, NAME, read)
    assert len(stored.table.chunks) == 5
    return stored


def parse_index(index: bytes) -> list[Frame]:
    pack = PackId(blake3_256(prefix(ObjectKind.PACK) + index))
    return list(parse_pack_index(prefix(ObjectKind.PACK), index, 8 + len(CHUNK), pack, NAME))


def test_unedited_values_are_accepted() -> None:
    """Thus the tests below are refused only because of their edits."""
    stored = decode_object(HONEST_SNAPSHOT)
    snapshot, table = stored.snapshot, stored.table
    pack = PackId(bytes(32))
    chunks = [ChunkId(c) for c in (*STRUCTURE, CHUNK_ID, b"t" * 32, b"u" * 32)]
    assert table == PackTable([pack], dict.fromkeys(chunks, pack), structure=1)
    fields = {name: getattr(snapshot, name) for name in Manifest.__dataclass_fields__}
    rebuilt, encoded = EncodedSnapshot.of(Manifest(**fields))
    assert (rebuilt, encoded) == (snapshot, HONEST_MANIFEST)
    assert snapshot == decode_manifest(HONEST_MANIFEST)
    assert snapshot.files == (
        FileEntry("a/b", len(CHUNK), None, None, (CHUNK_ID,)),
        FileEntry(
            "c",
            len(HEADER) + 11,
            HEADER,
            parse_header(HEADER, 11),
            (ChunkId(b"t" * 32), ChunkId(b"u" * 32)),
        ),
    )
    assert snapshot.time == datetime.fromtimestamp(1_700_000_000, UTC)
    again = decode_object(b"".join(encode_snapshot(StoredSnapshot(rebuilt, encoded, table))))
    assert (again.snapshot, again.table) == (snapshot, table)
    assert parse_index(msgpack.packb(INDEX)) == [FRAME]
    assert build_index([FRAME])[1][:-TRAILER_SIZE] == msgpack.packb(INDEX)


ARCHIVE = b"".join(
    build_archive({HONEST_ID: HONEST_SNAPSHOT, SnapshotId(b"o" * 32): b"o"}, 1).parts
)


@given(st.binary() | edited(ARCHIVE))
def test_edited_archive_gives_a_value_or_a_named_error(data: bytes) -> None:
    parse(partial(parse_archive, name=NAME), data)


@given(edited(ARCHIVE[-ENDING_SIZE - 2 * ROW_SIZE : -ENDING_SIZE]), st.integers(0, 2**32 - 1))
def test_edited_rows_with_a_valid_checksum_give_a_value_or_a_named_error(
    rows: bytes, count: int
) -> None:
    first_bytes, generation = prefix(ObjectKind.ARCHIVE), bytes(4)
    for claimed in (count, len(rows) // ROW_SIZE):
        ending = generation + checksum(first_bytes + rows + generation)
        data = first_bytes + HONEST_SNAPSHOT + rows + ending + claimed.to_bytes(4, "little")
        parse(partial(parse_archive, name=NAME), data + b"cver")


@given(st.binary() | edited(HONEST_SNAPSHOT))
def test_edited_snapshot_gives_a_value_or_a_named_error(data: bytes) -> None:
    parse(decode_object, data)


@given(st.data())
def test_edited_snapshot_with_a_valid_checksum_gives_a_value_or_a_named_error(
    data: st.DataObject,
) -> None:
    """Bare or not: the frames may be missing, or not those that the index lists."""
    honest = data.draw(st.sampled_from([HONEST_SNAPSHOT, CARRYING_SNAPSHOT]))
    start, stop = end_span(honest[-TRAILER_SIZE:], len(honest), NAME)
    frames = data.draw(st.sampled_from([honest[PREFIX_SIZE:start], b"", b"f" * 12]))
    index = data.draw(edited(honest[start:stop]) | with_some(SNAPSHOT, packable).map(msgpack.packb))
    parse(decode_object, snapshot_object(index, frames))


@given(edited(CARRYING_SNAPSHOT))
def test_edited_snapshot_with_frames_gives_a_value_or_a_named_error(data: bytes) -> None:
    parse(decode_object, data)


def test_the_snapshot_that_is_edited_carries_a_frame() -> None:
    stored = decode_object(CARRYING_SNAPSHOT)
    assert (stored.snapshot, [*stored.frames]) == (decode_manifest(HONEST_MANIFEST), [FRAME])


@given(st.binary() | edited(msgpack.packb(TABLE)) | with_some(TABLE, packable).map(msgpack.packb))
def test_edited_pack_table_gives_a_value_or_a_named_error(table: bytes) -> None:
    parse(decode_object, snapshot_object(HONEST_MANIFEST, table))


@given(packable.map(msgpack.packb) | with_some(MANIFEST, packable).map(msgpack.packb))
@example(msgpack.packb({**MANIFEST, "files": [[name, 0, None, b"", 0, b""] for name in "aA"]}))
def test_manifest_with_other_values_gives_a_value_or_a_named_error(encoded: bytes) -> None:
    parse(decode_manifest, encoded)


@given(st.binary() | edited(HONEST_MANIFEST))
def test_manifest_with_other_bytes_gives_a_value_or_a_named_error(encoded: bytes) -> None:
    parse(decode_manifest, encoded)


@given(st.binary() | edited(HEADER), st.binary() | edited(PAGE))
def test_edited_structure_gives_a_value_or_a_named_error(header: bytes, page: bytes) -> None:
    parse(decode_manifest, HONEST_MANIFEST, header, page)


@given(st.lists(st.lists(packable, min_size=5, max_size=7) | packable, max_size=3))
def test_file_rows_give_a_value_or_a_named_error(rows: list[Any]) -> None:
    parse(decode_manifest, msgpack.packb({**MANIFEST, "files": rows}))


ROOTS = {"root_of": bytes(8), "root": 2 * CHUNK_ID, "root_size": b"\7\0\0\0" * 2}
indexes = with_some(INDEX, packable) | with_some(INDEX | ROOTS, packable)


@given((packable | indexes).map(msgpack.packb))
def test_pack_index_with_other_values_gives_a_value_or_a_named_error(index: bytes) -> None:
    parse(parse_index, index)


@given(st.binary() | edited(msgpack.packb(INDEX)) | edited(msgpack.packb(INDEX | ROOTS)))
def test_pack_index_with_other_bytes_gives_a_value_or_a_named_error(index: bytes) -> None:
    parse(parse_index, index)


@given(st.binary(max_size=20), st.integers(0, 2**40))
def test_pack_trailer_gives_a_value_or_a_named_error(trailer: bytes, size: int) -> None:
    parse(index_span, trailer, size, NAME)


@given(st.binary() | edited(seal(ObjectKind.REF, b"payload")), st.sampled_from(ObjectKind))
def test_sealed_object_gives_a_value_or_a_named_error(data: bytes, kind: ObjectKind) -> None:
    parse(unseal, kind, data, NAME)


HONEST_STORE_FILE = encode_store_file(StoreConfig(), "0" * 32)


@given(st.binary() | json_values.map(lambda v: json.dumps(v).encode()) | edited(HONEST_STORE_FILE))
@example(b"[]")
@example(b"[" * 100_000)
@example(b'{"checksum": NaN}')
@example(b"1" * 5000)
def test_store_file_gives_a_value_or_a_named_error(data: bytes) -> None:
    parse(decode_store_file, data)


STORE_FIELDS = {"format": 2, "store_id": "0" * 32, "digest": "blake3", "chunk_size": 1 << 16}


@given(with_some(STORE_FIELDS, json_values))
def test_store_file_with_a_valid_checksum_gives_a_value_or_a_named_error(
    fields: dict[str, Any],
) -> None:
    fields.pop("checksum", None)
    total = checksum(json.dumps(fields, indent=2).encode()).hex()
    parse(decode_store_file, json.dumps({**fields, "checksum": total}, indent=2).encode())


HONEST_HEADER = build_header([("t", DTYPES["F32"], (2, 3)), ("u", DTYPES["U8"], (5,))], {"a": "b"})


def parse_file(header: bytes, data_size: int) -> None:
    """Parse a header in the two steps in which readers do."""
    total = len(header) + data_size
    size = header_size(header[:8], total)
    parse_header(header[:size], total - size)


@given(st.binary() | edited(HONEST_HEADER), st.integers(0, 100))
def test_safetensors_header_gives_a_value_or_a_named_error(header: bytes, data_size: int) -> None:
    with suppress(InvalidInputError):
        parse_file(header, data_size)


TENSOR = {"dtype": "U8", "shape": [2, 3], "data_offsets": [0, 6]}


@given(
    st.dictionaries(
        st.text(max_size=3) | st.just("__metadata__"),
        json_values | with_some(TENSOR, json_values | st.lists(numbers, max_size=4)),
        max_size=4,
    )
)
def test_safetensors_header_with_other_values_gives_a_value_or_a_named_error(
    table: dict[str, Any],
) -> None:
    text = json.dumps(table).encode()
    with suppress(InvalidInputError):
        parse_file(len(text).to_bytes(8, "little") + text, 6)


@given(st.lists(st.text(st.characters(), max_size=9), max_size=4))
def test_paths_give_a_value_or_a_named_error(paths: list[str]) -> None:
    with suppress(InvalidInputError):
        check_paths(paths)


RECORD: dict[str, Any] = {
    "id": bytes(32) + b"u" * 32,
    "number": [1, 2],
    "parents": bytes(32),
    "parent_count": b"\0\1",
    "run": [0, 0],
    "runs": [[0, "last 1"]],
}
POLICY: dict[str, Any] = {"time": 0, "keep": [{"branches": "*", "last": 3, "where": "x"}]}


@given(
    st.binary().map(partial(seal, ObjectKind.EXPIRED))
    | edited(msgpack.packb(RECORD)).map(partial(seal, ObjectKind.EXPIRED))
    | with_some(RECORD, packable).map(msgpack.packb).map(partial(seal, ObjectKind.EXPIRED))
    | edited(seal(ObjectKind.EXPIRED, msgpack.packb(RECORD)))
)
def test_record_of_expired_versions_gives_a_value_or_a_named_error(data: bytes) -> None:
    parse(decode_record, data, f"expired/{blake3_256(data).hex()}")


@given(
    edited(msgpack.packb(POLICY)).map(partial(seal, ObjectKind.POLICY))
    | with_some(POLICY, packable).map(msgpack.packb).map(partial(seal, ObjectKind.POLICY))
    | edited(seal(ObjectKind.POLICY, msgpack.packb(POLICY)))
)
def test_policy_gives_a_value_or_a_named_error(data: bytes) -> None:
    parse(decode_policy, data, "policies/it")
