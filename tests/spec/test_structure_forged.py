"""The library and the independent reader refuse the same forged rows, headers and pages."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import casweights
from casweights import CasweightsError
from casweights.config import KiB
from casweights.errors import ErrorCode
from tests.forged_chains import difference, whole
from tests.spec.forging import Row, forge, forge_files, ids, pieces, read_parts
from tests.spec.readers import assert_both_read, assert_both_refuse, the_object

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from tests.forged_chains import Link

pytestmark = pytest.mark.usefixtures("store")

Forgery = tuple[list[Row], list[bytes]]

CHUNK = 64 * KiB
CONTENT = random.Random(7).randbytes(2 * CHUNK + 100)
CHUNKS = pieces(CONTENT, CHUNK)
PAGE = ids(CHUNKS)
PLAIN: Row = ["a", len(CONTENT), None, b"", 3, ids([PAGE])]


def encode_header(tensors: dict[str, Any], padding: int = 0) -> bytes:
    text = json.dumps({"__metadata__": {"padding": " " * padding}, **tensors}).encode()
    return len(text).to_bytes(8, "little") + text


W = {"dtype": "U8", "shape": [CHUNK + 9], "data_offsets": [0, CHUNK + 9]}
V = {"dtype": "I8", "shape": [CHUNK + 91], "data_offsets": [CHUNK + 9, 2 * CHUNK + 100]}
TENSORS = [CONTENT[: CHUNK + 9], CONTENT[CHUNK + 9 :]]
MODEL_CHUNKS = [chunk for tensor in TENSORS for chunk in pieces(tensor, CHUNK)]
MODEL_PAGE = ids(MODEL_CHUNKS)
HEADER = encode_header({"w": W, "v": V}, padding=CHUNK)
HEADER_CHUNKS = pieces(HEADER, CHUNK)
MODEL: Row = [
    *("a", len(HEADER) + len(CONTENT), len(HEADER), ids(HEADER_CHUNKS)),
    *(4, ids([MODEL_PAGE])),
]


def changed(row: Row, changes: dict[int, Any]) -> Row:
    return [changes.get(n, item) for n, item in enumerate(row)]


def test_the_rows_that_others_are_forged_from_are_read(tmp_path: Path) -> None:
    assert len(HEADER_CHUNKS) == 2
    rows = [PLAIN, ["b", *MODEL[1:]]]
    contents = [*CHUNKS, PAGE, *MODEL_CHUNKS[1:], MODEL_PAGE, *HEADER_CHUNKS]
    version = forge_files(tmp_path, rows, list(map(whole, contents)))
    assert_both_read(tmp_path, version, {"a": CONTENT, "b": HEADER + CONTENT})


MANY = 268_435_456 // 32  # chunk IDs, as many as a version may list


def claims(path: str, chunks: int) -> Row:
    """Return the row of a file of many equal pages, and perhaps a shorter one."""
    whole_pages, rest = divmod(chunks, 4096)
    pages = bytes(32) * whole_pages + bytes([rest % 256] * 32) * bool(rest)
    return [path, chunks * CHUNK, None, b"", chunks, pages]


# Claims that contradict each other or exceed limits, so that no structure chunk need be read.
CLAIMS: dict[str, list[Row]] = {
    "negative size": [changed(PLAIN, {1: -1})],
    "too large": [changed(MODEL, {1: 2**63})],
    "size is a bool": [["a", True, None, b"", 1, ids(CHUNKS[:1])]],
    "size is a float": [changed(PLAIN, {1: float(len(CONTENT))})],
    "no size": [changed(PLAIN, {1: None})],
    "a header of nothing": [changed(MODEL, {2: 0, 3: b""})],
    "a header without all length bytes": [changed(MODEL, {2: 7, 3: ids(HEADER_CHUNKS[:1])})],
    "a header larger than the file": [changed(MODEL, {1: len(HEADER) - 1, 4: 0, 5: b""})],
    "a header above the limit": [changed(MODEL, {1: 2**40, 2: 100_000_009, 3: bytes(1526 * 32)})],
    "a header's size is a bool": [changed(MODEL, {2: True, 3: ids(HEADER_CHUNKS[:1])})],
    "a header in the row": [changed(MODEL, {2: HEADER, 3: b""})],
    "header chunks without a header": [changed(PLAIN, {3: ids(HEADER_CHUNKS)})],
    "a header without chunks": [changed(MODEL, {3: b""})],
    "a header with a chunk too few": [changed(MODEL, {3: ids(HEADER_CHUNKS[:1])})],
    "a header with a chunk too many": [changed(MODEL, {3: ids(HEADER_CHUNKS + CHUNKS[:1])})],
    "part of an ID of a header": [changed(MODEL, {3: ids(HEADER_CHUNKS)[:-1]})],
    "header chunks as text": [changed(MODEL, {3: "a" * 64})],
    "no header chunks": [changed(PLAIN, {3: None})],
    "one header chunk of two sizes": [changed(MODEL, {3: ids(HEADER_CHUNKS[:1] * 2)})],
    "a negative number of chunks": [changed(PLAIN, {4: -1})],
    "the number of chunks is a bool": [["a", 100, None, b"", True, ids(CHUNKS[2:])]],
    "the number of chunks is a float": [changed(PLAIN, {4: 3.0})],
    "no page": [changed(PLAIN, {5: b""})],
    "two pages": [changed(PLAIN, {5: ids([PAGE, PAGE])})],
    "chunks instead of pages": [changed(PLAIN, {5: PAGE})],
    "a page for no chunks": [["a", 0, None, b"", 0, ids([PAGE])]],
    "two chunks instead of one": [["a", 100, None, b"", 1, ids(CHUNKS[1:])]],
    "part of an ID of a page": [changed(PLAIN, {5: ids([PAGE])[:-1]})],
    "pages as text": [changed(PLAIN, {5: "a" * 32})],
    "pages as an array": [changed(PLAIN, {5: [ids([PAGE])]})],
    "too few items": [PLAIN[:5]],
    "too many items": [[*PLAIN, None]],
    "a row of format 1": [["a", len(CONTENT), None, PAGE]],
    "a page that is a page of another size": [PLAIN, ["b", 2 * CHUNK, None, b"", 2, PLAIN[5]]],
    "a page that is a header of another size": [PLAIN, ["b", 50, 50, PLAIN[5], 0, b""]],
    "too many chunks": [claims("a", MANY + 1)],
    "too many chunks in two files": [claims("a", MANY // 2), claims("b", MANY // 2 + 1)],
    "too many chunks and bytes of headers": [
        claims("a", MANY - 1),
        ["b", 100, 50, ids(CHUNKS[2:]), 1, ids(CHUNKS[2:])],
    ],
}


@pytest.mark.parametrize("rows", CLAIMS.values(), ids=CLAIMS)
def test_false_claims_are_refused_before_anything_is_read(
    reader: ModuleType, tmp_path: Path, rows: list[Row]
) -> None:
    version = forge(tmp_path, manifest={"files": rows})
    the_object(tmp_path, "packs/*").unlink()
    with casweights.open(tmp_path / "store") as repo, pytest.raises(CasweightsError) as caught:
        repo.checkout(version, tmp_path / "by-library")
    assert caught.value.code is ErrorCode.CORRUPT_OBJECT
    with pytest.raises(reader.FAILURES, match=r"^(?!.*no pack contains)"):
        reader.check_out(tmp_path / "store", version, tmp_path / "by-reader")


def test_claims_at_the_limit_are_accepted(reader: ModuleType, tmp_path: Path) -> None:
    rows = [claims("a", MANY // 2), claims("b", MANY // 2)]
    encoded = msgpack.packb(read_parts(the_object(tmp_path, "snapshots/*"))[0] | {"files": rows})
    version = forge(tmp_path, manifest={"files": rows})
    with casweights.open(tmp_path / "store") as repo:
        manifest = repo.snapshot(version)
        assert [file.size for file in manifest.files] == [row[1] for row in rows]
    parsed = reader.parse_manifest(encoded, reader.Chunking("blake3", CHUNK))
    assert [row.chunk_count for row in parsed] == [MANY // 2] * 2


def with_page(chunks: list[bytes]) -> Forgery:
    """Return the row of a plain file with a page of other chunks."""
    page = ids(chunks)
    return [changed(PLAIN, {5: ids([page])})], [page, *chunks]


def with_header(header: bytes, chunks: list[bytes] = MODEL_CHUNKS) -> Forgery:
    """Return the row of a model with another header, or with other chunks."""
    parts, page = pieces(header, CHUNK), ids(chunks)
    size = len(header) + len(CONTENT)
    row = ["a", size, len(header), ids(parts), len(chunks), ids([page])]
    return [row], [*parts, page, *chunks]


def resized(size: int, count: int = 3) -> Forgery:
    """Return the row of a plain file whose size is not that of its chunks."""
    page = ids(CHUNKS[:count])
    return [["a", size, None, b"", count, ids([page])]], [*CHUNKS[:count], page]


# Rows that agree with themselves, and the only chunks that are stored.
FORGED: dict[str, Forgery] = {
    "a size of fewer chunks": resized(len(CONTENT) - 100),
    "a size of more chunks": resized(len(CONTENT) + CHUNK),
    "fewer chunks than the size": resized(len(CONTENT), count=2),
    "a last chunk of another size": resized(len(CONTENT) - 1),
    "a shorter page": with_page(CHUNKS[:2]),
    "a longer page": with_page([*CHUNKS, HEADER_CHUNKS[0]]),
    "a chunk of two sizes in a page": with_page([CHUNKS[2], CHUNKS[1], CHUNKS[2]]),
    "a chunk of two sizes in two files": (
        [PLAIN, ["b", 99, None, b"", 1, ids(CHUNKS[2:])]],
        [*CHUNKS, PAGE],
    ),
    "a missing page": ([PLAIN], CHUNKS),
    "a missing chunk of a page": ([PLAIN], [*CHUNKS[1:], PAGE]),
    "a missing header": ([MODEL], [*MODEL_CHUNKS, MODEL_PAGE, HEADER_CHUNKS[0]]),
    "a header without JSON": with_header(len(CONTENT).to_bytes(8, "little") + b"{]"),
    "a header that is shorter than its length": with_header(HEADER[:-1]),
    "a header that is longer than its length": with_header(HEADER + b" "),
    "a header that leaves a hole": with_header(encode_header({"v": V}), MODEL_CHUNKS[2:]),
    "a header for fewer bytes": with_header(encode_header({"w": W}), MODEL_CHUNKS[:2]),
    "a header with an unknown dtype": with_header(
        encode_header({"w": {**W, "dtype": "U7"}, "v": V})
    ),
    "a header whose tensors have more chunks": with_header(HEADER, MODEL_CHUNKS[:3]),
    "a header whose tensors are cut elsewhere": with_header(HEADER, CHUNKS),
}


@pytest.mark.parametrize(("rows", "contents"), FORGED.values(), ids=FORGED)
def test_forged_structure_is_refused(
    reader: ModuleType, tmp_path: Path, rows: list[Row], contents: list[bytes]
) -> None:
    version = forge_files(tmp_path, rows, list(map(whole, contents)))
    assert_both_refuse(reader, tmp_path, version)


EMPTY = encode_header({})
NEAR = PAGE[:-1] + bytes([PAGE[-1] ^ 1])  # so that differences between it and the page are small

# Unusual versions: their rows, frames of all their chunks, and what is read.
UNUSUAL: dict[str, tuple[list[Row], list[Link], dict[str, bytes]]] = {
    "two files with one page": (
        [PLAIN, ["b", *PLAIN[1:]]],
        list(map(whole, [*CHUNKS, PAGE])),
        {"a": CONTENT, "b": CONTENT},
    ),
    "a file whose only chunk is a page": (
        [PLAIN, ["b", len(PAGE), None, b"", 1, ids([PAGE])]],
        list(map(whole, [*CHUNKS, PAGE])),
        {"a": CONTENT, "b": PAGE},
    ),
    "a file whose only chunk is a header": (
        [
            ["a", len(EMPTY), len(EMPTY), ids([EMPTY]), 0, b""],
            ["b", len(EMPTY), None, b"", 1, ids([EMPTY])],
        ],
        [whole(EMPTY)],
        {"a": EMPTY, "b": EMPTY},
    ),
    "empty files": (
        [["a", 0, None, b"", 0, b""], ["b", *PLAIN[1:]], ["c", 0, None, b"", 0, b""]],
        list(map(whole, [*CHUNKS, PAGE])),
        {"a": b"", "b": CONTENT, "c": b""},
    ),
    "a page that is a difference from no page": (
        [PLAIN, ["b", 96, None, b"", 1, ids([NEAR])]],
        [*map(whole, [*CHUNKS, NEAR]), difference(PAGE, NEAR)],
        {"a": CONTENT, "b": NEAR},
    ),
    "a chunk that is a difference from a page": (
        [PLAIN, ["b", 96, None, b"", 1, ids([NEAR])]],
        [*map(whole, [*CHUNKS, PAGE]), difference(NEAR, PAGE)],
        {"a": CONTENT, "b": NEAR},
    ),
}


@pytest.mark.parametrize(("rows", "links", "expected"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_structure_is_read(
    tmp_path: Path, rows: list[Row], links: list[Link], expected: dict[str, bytes | None]
) -> None:
    assert_both_read(tmp_path, forge_files(tmp_path, rows, links), expected)


LINKS = list(map(whole, [PAGE, *CHUNKS]))


@pytest.mark.parametrize("rows", [1, len(LINKS) - 1, len(LINKS) + 1])
def test_versions_are_read_whose_tables_have_another_number_of_rows(
    tmp_path: Path, rows: int
) -> None:
    version = forge_files(tmp_path, [PLAIN], LINKS, table={"pack": [0] * rows})
    assert_both_read(tmp_path, version, {"a": CONTENT})


def test_tables_without_a_row_for_each_structure_chunk_are_refused(
    reader: ModuleType, tmp_path: Path
) -> None:
    version = forge_files(tmp_path, [PLAIN], LINKS, table={"pack": []})
    assert_both_refuse(reader, tmp_path, version)
