"""Manifests: their encoding, identity and validation."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from casweights.config import KiB, StoreConfig
from casweights.errors import ErrorCode, IntegrityError, InvalidInputError
from casweights.format import manifest as manifest_module
from casweights.format.file_entry import FileEntry
from casweights.format.hashing import blake3_256
from casweights.format.manifest import EncodedSnapshot, Manifest, Snapshot, encode_manifest
from casweights.format.safetensors import MAX_HEADER_SIZE, parse_header
from casweights.ids import ChunkId, SnapshotId
from casweights.testing.strategies import encode_header
from tests.structure import reading

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK = 64 * KiB


def chunk(n: int, size: int = 32) -> ChunkId:
    return ChunkId(bytes([n]) * size)


def tensor_file(path: str = "model.safetensors", nbytes: int = CHUNK + 1) -> FileEntry:
    table = {"w": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}
    raw = encode_header(table, padding=3)
    chunks = tuple(chunk(n) for n in range(-(-nbytes // CHUNK)))
    return FileEntry(path, len(raw) + nbytes, raw, parse_header(raw, nbytes), chunks)


def manifest(**changes: Any) -> Manifest:
    original = Manifest(
        number=5,
        parents=(SnapshotId(b"p" * 32),),
        time=datetime(2026, 8, 1, 12, 30, 0, 123_456, tzinfo=UTC),
        author="somebody",
        message="größer",
        metadata={"step": 7, "lr": 1e-4, "tags": ["a", None, True], "nested": {"b": 1, "a": -0.0}},
        config=StoreConfig(chunk_size=CHUNK),
        files=(
            FileEntry("empty", 0, None, None, ()),
            tensor_file(),
            FileEntry("notes/readme", 5, None, None, (chunk(9),)),
        ),
    )
    return replace(original, **changes)


def roundtrip(original: Manifest) -> Snapshot:
    snapshot, encoded = EncodedSnapshot.of(original)
    decoded = Snapshot.decode(encoded, snapshot.id, reading(original))
    assert decoded == snapshot
    return decoded


def test_a_decoded_manifest_equals_the_original() -> None:
    original = manifest()
    snapshot = roundtrip(original)
    assert all(getattr(snapshot, f.name) == getattr(original, f.name) for f in fields(Manifest))
    assert snapshot.size == sum(file.size for file in original.files)


def test_the_id_is_the_digest_of_the_bytes() -> None:
    snapshot, encoded = EncodedSnapshot.of(manifest())
    assert snapshot.id == blake3_256(encoded)
    assert encoded == encode_manifest(manifest())


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 6},
        {"parents": ()},
        {"parents": (SnapshotId(b"q" * 32),)},
        {"time": datetime(2026, 8, 1, 12, 30, 0, 123_457, tzinfo=UTC)},
        {"author": "somebody else"},
        {"message": ""},
        {"metadata": {}},
        {"config": StoreConfig(chunk_size=2 * CHUNK), "files": ()},
        {"files": ()},
        {"files": (tensor_file("other.safetensors"),)},
        {"files": (FileEntry("notes/readme", 5, None, None, (chunk(8),)),)},
        {"files": (FileEntry("notes/readme", 4, None, None, (chunk(9),)),)},
    ],
)
def test_the_id_commits_to_everything(changes: dict[str, Any]) -> None:
    assert roundtrip(manifest(**changes)).id != roundtrip(manifest()).id


def test_equivalent_manifests_have_the_same_id() -> None:
    """The order of files and keys, the time zone, and lists or tuples make no difference."""
    zone = timezone(timedelta(hours=5, minutes=30))
    first, second = manifest(), manifest(time=manifest().time.astimezone(zone))
    second = replace(
        second, files=first.files[::-1], metadata=dict([*first.metadata.items()][::-1])
    )
    second.metadata["tags"] = tuple(second.metadata["tags"])
    assert EncodedSnapshot.of(first)[0].id == EncodedSnapshot.of(second)[0].id


@pytest.mark.parametrize(
    "time",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
def test_time_is_exact_to_the_microsecond(time: datetime) -> None:
    assert roundtrip(manifest(time=time)).time == time


@pytest.mark.parametrize(
    "metadata",
    [
        {"n": (1 << 64) - 1, "m": -(1 << 63)},
        {"f": [1.5, float("inf"), 5e-324]},
        {"": {"": [[], {}]}},
        {"é💾": "\0\n"},
    ],
)
def test_json_like_metadata_comes_back(metadata: dict[str, Any]) -> None:
    assert roundtrip(manifest(metadata=metadata)).metadata == metadata


@pytest.mark.parametrize(
    ("metadata", "where"),
    [
        ({"n": 1 << 64}, "metadata.n"),
        ({"n": -(1 << 63) - 1}, "metadata.n"),
        ({"b": b"bytes"}, "metadata.b"),
        ({"a": [1, {"deep": object()}]}, r"metadata.a\[1\].deep"),
        ({1: "x"}, "metadata is dict"),
        ({"s": {1, 2}}, "metadata.s"),
        ({"t": "\ud800"}, "metadata.t"),
        ({"\ud800": 1}, "metadata is dict"),
        ({"time": datetime.now(UTC)}, "metadata.time"),
    ],
)
def test_other_metadata_is_refused_with_its_place(metadata: dict[Any, Any], where: str) -> None:
    with pytest.raises(InvalidInputError, match=where) as caught:
        encode_manifest(manifest(metadata=metadata))
    assert caught.value.code is ErrorCode.BAD_ARGUMENT


def test_a_long_key_is_not_copied_for_each_value_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise forged metadata would need memory for the square of its size."""
    canonical, copied = manifest_module._canonical, 0

    def counted(value: Any, where: Any, *rest: Any) -> Any:
        nonlocal copied
        copied += sys.getsizeof(where)
        return canonical(value, where, *rest)

    monkeypatch.setattr(manifest_module, "_canonical", counted)
    encode_manifest(manifest(metadata={"k" * 5000: [[] for _ in range(1000)]}))
    assert 0 < copied < 200_000


@pytest.mark.parametrize("field", ["author", "message"])
def test_text_with_lone_surrogates_is_refused(field: str) -> None:
    with pytest.raises(InvalidInputError, match="not valid Unicode"):
        encode_manifest(manifest(**{field: "\udcff"}))


def test_encoding_refuses_bad_paths() -> None:
    for path in ("../up", "Notes/README"):
        files = (*manifest().files, FileEntry(path, 0, None, None, ()))
        with pytest.raises(InvalidInputError, match=r"file name"):
            EncodedSnapshot.of(manifest(files=files))


def test_pieces_pair_chunks_with_positions() -> None:
    file = tensor_file()
    pairs = list(file.pieces(CHUNK))
    assert [c for c, _ in pairs] == [chunk(0), chunk(1)]
    assert [p.nbytes for _, p in pairs] == [CHUNK, 1]
    assert sum(1 for _ in roundtrip(manifest()).pieces()) == 3


def forged(change: dict[str, Any], *, drop: str = "") -> tuple[bytes, SnapshotId]:
    """Return an encoded manifest with other values, and its ID."""
    table = msgpack.unpackb(encode_manifest(manifest())) | change
    table.pop(drop, None)
    encoded: bytes = msgpack.packb(table)
    return encoded, SnapshotId(blake3_256(encoded))


def never(wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
    raise AssertionError(f"{len(wanted)} structure chunks are read")


ID = b"c" * 32
HEADER = tensor_file().raw_header or b""
NO_TENSORS = encode_header({})
EMPTY = [None, b"", 0, b""]  # the end of the row of an empty file
MAX_IDS = (256 << 20) // 32  # in a manifest


def page_ids(count: int) -> bytes:
    return ID * -(-count // 4096)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 0},
        {"number": -1},
        {"number": 1 << 63},
        {"number": True},
        {"number": 1.0},
        {"number": None},
        {"parents": [b"short"]},
        {"parents": [b"p" * 32] * 17},
        {"parents": None},
        {"time": "now"},
        {"time": True},
        {"time": 1 << 62},
        {"author": b"bytes"},
        {"message": 5},
        {"metadata": []},
        {"digest": "md5"},
        {"digest": "xxh3-128"},  # then the IDs have the wrong length
        {"chunk_size": 1000},
        {"chunk_size": True},
        {"files": {}},
        {"files": [[]]},
        {"files": [["a", 0, None, b""]]},  # the row of format 1
        {"files": [["a", 0, *EMPTY], ["a", 0, *EMPTY]]},
        {"files": [["A", 0, *EMPTY], ["a", 0, *EMPTY]]},
        {"files": [["b", 0, *EMPTY], ["a", 0, *EMPTY]]},
        {"files": [["../up", 0, *EMPTY]]},
        {"files": [["/root", 0, *EMPTY]]},
        {"files": [["a", 0, *EMPTY], ["a/b", 0, *EMPTY]]},
        {"files": [[b"a", 0, *EMPTY]]},
        {"files": [["a", -1, *EMPTY]]},
        {"files": [["a", 1 << 63, *EMPTY]]},
        {"files": [["a", 1 << 62, *EMPTY]]},
        {"files": [["a", 5, *EMPTY]]},
        {"files": [["a", 0, None, b"", 1, ID]]},
        {"files": [["a", 0, None, b"", 0, ID]]},
        {"files": [["a", 5, None, b"", 1, b""]]},
        {"files": [["a", 5, None, b"", 1, ID * 2]]},
        {"files": [["a", 5, None, b"", 2, ID]]},
        {"files": [["a", 5, None, b"", -1, b""]]},
        {"files": [["a", 5, None, b"", 1, b"c" * 31]]},
        {"files": [["a", 5, None, b"", 1, "c" * 32]]},
        {"files": [["a", 5, None, b"", True, ID]]},
        {"files": [["a", 5, None, b"", None, ID]]},
        {"files": [["a", 5, None, None, 1, ID]]},
        {"files": [["a", 5, None, ID, 1, ID]]},  # pieces of a header that it does not have
        {"files": [["a", True, None, b"", 1, ID]]},
        {"files": [["a", 5, b"", b"", 1, ID]]},
        {"files": [["a", 5, True, b"", 1, ID]]},
        {"files": [["a", 9, 0, b"", 1, ID]]},
        {"files": [["a", 9, 7, ID, 1, ID]]},
        {"files": [["a", 9, -1, b"", 1, ID]]},
        {"files": [["a", 9, 10, ID, 1, ID]]},  # longer than the file
        {"files": [["a", 9, 8, b"", 1, ID]]},
        {"files": [["a", 9, 8, ID * 2, 1, ID]]},
        {"files": [["a", 9, 8, b"c" * 31, 1, ID]]},
        {"files": [["a", 3 * CHUNK, CHUNK + 1, ID, 1, ID]]},  # two pieces
        {"files": [["a", 1 << 40, MAX_HEADER_SIZE + 9, ID * 1526, 1, ID]]},
        {"files": [["a", 4097 * CHUNK, None, b"", 4097, ID]]},  # two pages
        {"files": [["a", 4096 * CHUNK, None, b"", 4096, ID * 2]]},
        {"files": [["a", (1 << 63) - 1, None, b"", 1 << 47, ID * 2]]},
        {"files": [["a", (MAX_IDS + 1) * CHUNK, None, b"", MAX_IDS + 1, page_ids(MAX_IDS + 1)]]},
        # A structure chunk of two sizes:
        {"files": [["a", CHUNK + 9, CHUNK + 9, ID * 2, 0, b""]]},
        {"files": [["a", 4097 * CHUNK, None, b"", 4097, ID * 2]]},
        {"files": [["a", 2 * CHUNK, 8, ID, 2, ID]]},
        {"files": [["a", 9, 8, ID, 0, b""], ["b", 10, 9, ID, 0, b""]]},
        {"more": 1},
    ],
)
def test_forged_manifests_are_refused(change: dict[str, Any]) -> None:
    """No structure chunk is read for that."""
    with pytest.raises(IntegrityError, match="is not valid"):
        Snapshot.decode(*forged(change), never)


@pytest.mark.parametrize(
    ("row", "structure"),
    [
        (["a", 9, 9, ID, 0, b""], b"no header"),
        (["a", len(HEADER), len(HEADER), ID, 0, b""], HEADER),  # there is no room for its tensor
        (["a", len(HEADER) + CHUNK + 1, len(HEADER), ID, 1, ID], HEADER),  # of two chunks
        (["a", len(HEADER) + CHUNK + 1, len(HEADER), ID, 0, b""], HEADER),
        (["a", len(NO_TENSORS) + 1, len(NO_TENSORS), ID, 1, ID], NO_TENSORS),
        (["a", len(NO_TENSORS), len(NO_TENSORS), ID, 1, ID], NO_TENSORS),
        (["a", 2 * CHUNK - 1, None, b"", 2, ID], ID * 2),  # a chunk of two sizes
        (["a", CHUNK, None, b"", 1, ID], b""),
    ],
)
def test_files_that_do_not_match_their_structure_are_refused(
    row: list[Any], structure: bytes
) -> None:
    """Other rows: what they claim is checked when the structure chunks are first read."""
    rows = [row, ["b", 1, None, b"", 1, ID]]
    snapshot = Snapshot.decode(
        *forged({"files": rows}), lambda wanted: dict.fromkeys(wanted, structure)
    )
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"{snapshot.id} is not valid"):
            _ = snapshot.files[1].chunks


def test_a_chunk_size_that_gives_another_number_of_chunks_is_refused() -> None:
    other = manifest(config=StoreConfig(chunk_size=2 * CHUNK))
    snapshot = Snapshot.decode(*forged({"chunk_size": 2 * CHUNK}), reading(other))
    with pytest.raises(IntegrityError, match=f"{snapshot.id} is not valid"):
        _ = snapshot.files[0].header


def test_structure_is_read_once_for_all_files_and_only_when_it_is_needed() -> None:
    original, reads = manifest(), []
    read = reading(original)

    def counted(wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
        reads.append(dict(wanted))
        return read(wanted)

    snapshot, encoded = EncodedSnapshot.of(original)
    decoded = Snapshot.decode(encoded, snapshot.id, counted)
    assert [(file.path, file.size) for file in decoded.files] == [
        (file.path, file.size) for file in snapshot.files
    ]
    assert (decoded.structure(), decoded.size) == (snapshot.structure(), snapshot.size)
    assert EncodedSnapshot.of(decoded)[1] == encoded
    assert reads == []
    assert decoded.files[2].chunks == (chunk(9),)
    assert decoded.files[1].raw_header == HEADER
    assert reads == [{**snapshot.structure()}]
    assert list(reads[0].values()) == [len(HEADER), 64]


def test_long_headers_and_lists_of_chunks_are_cut() -> None:
    """The header lies on the chunk grid, and a page holds 4,096 IDs."""
    table = {
        f"w{n:05}": {"dtype": ("U8", "I8")[n % 2], "shape": [1], "data_offsets": [n, n + 1]}
        for n in range(4097)  # of changing dtypes, so that each has a chunk
    }
    raw = encode_header(table, padding=0)
    ids = tuple(ChunkId(blake3_256(n.to_bytes(2, "little"))) for n in range(4097))
    file = FileEntry("a", len(raw) + 4097, raw, parse_header(raw, 4097), ids)
    snapshot = roundtrip(manifest(files=(file,)))
    header, tail = divmod(len(raw), CHUNK)
    assert header > 1
    assert list(snapshot.structure().values()) == [*[CHUNK] * header, tail, 4096 * 32, 32]
    contents = [content for _, content in file.structure(snapshot.config)]
    assert b"".join(contents[:-2]) == raw
    assert b"".join(contents[-2:]) == b"".join(ids)
    assert list(snapshot.structure()) == [blake3_256(content) for content in contents]


@pytest.mark.parametrize("key", ["number", "parents", "time", "files", "metadata", "digest"])
def test_manifests_with_missing_fields_are_refused(key: str) -> None:
    with pytest.raises(IntegrityError, match="is not valid"):
        Snapshot.decode(*forged({}, drop=key), never)


@pytest.mark.parametrize(
    "encoded",
    [b"", b"\xc0", b"\x90", b"\x80", b"\xff" * 10, b"\xc6\xff\xff\xff\xff", b"\x91" * 5000],
)
def test_other_bytes_are_not_a_manifest(encoded: bytes) -> None:
    with pytest.raises(IntegrityError, match="is not valid"):
        Snapshot.decode(encoded, SnapshotId(blake3_256(encoded)), never)


def test_a_manifest_with_another_id_is_refused() -> None:
    encoded = EncodedSnapshot.of(manifest())[1]
    with pytest.raises(IntegrityError, match="do not match its ID"):
        Snapshot.decode(encoded, SnapshotId(bytes(32)), never)
