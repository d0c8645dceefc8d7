"""The names and bytes of signatures."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import hypothesis
import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import strategies as st

from casweights.errors import CasweightsError, IntegrityError, UnsupportedError
from casweights.format.dtypes import DTYPES
from casweights.format.features import coarse_row
from casweights.format.hashing import blake3_256
from casweights.format.sampling import MAX_ELEMENTS, Grid, count
from casweights.format.signature import Signature, decode_signature
from casweights.format.signatures import (
    COARSE_SIZE,
    MAX_SIGNATURE,
    MAX_VERSIONS,
    EncodedSignatures,
    Entry,
    Row,
    decode_rows,
    encode_many,
    encode_one,
    parse_signatures_name,
    rows_size,
    signature_name,
)
from casweights.ids import SnapshotId
from tests.faults.test_fuzz import edited, packable, with_some

A, B, C = (SnapshotId(bytes([n]) * 32) for n in (1, 2, 3))
BF16, U8 = DTYPES["BF16"], DTYPES["U8"]
SMALL = Signature(
    (Grid(1, 4, BF16), Grid(2, 1, U8), Grid(1, 4, BF16)), np.arange(10, dtype=np.uint16)
)
FIELDS: dict[str, Any] = {
    "grids": [[1, 4, "BF16"], [2, 1, "U8"]],
    "tensors": bytes([0, 0, 1, 0, 0, 0]),
    "samples": struct.pack("<10H", *range(10)),
}

grids = st.builds(
    Grid, st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.sampled_from(list(DTYPES.values()))
)


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    table = draw(st.lists(grids, min_size=1, max_size=4))
    chosen = tuple(draw(st.lists(st.sampled_from(table), max_size=6)))
    size = sum(map(count, chosen))
    return Signature(chosen, np.random.default_rng(size).integers(0, 1 << 16, size, np.uint16))


ids = st.binary(min_size=32, max_size=32).map(SnapshotId)


def whole(encoded: EncodedSignatures) -> bytes:
    return b"".join(encoded.parts)


def read(name: str, data: bytes) -> dict[SnapshotId, Signature]:
    """Read all of an object, as a reader of ranges does."""
    rows = decode_rows(data[: rows_size(parse_signatures_name(name).versions)], name)
    contents = ((row, data[row.offset : row.offset + row.size]) for row in rows)
    return {row.snapshot: decode_signature(content, row, name) for row, content in contents}


def built(content: bytes, snapshot: SnapshotId = A) -> tuple[str, bytes]:
    """Return an object with one signature, honest or not."""
    encoded = encode_one(Entry(snapshot, bytes(COARSE_SIZE), content))
    return encoded.name, whole(encoded)


def test_encode_writes_the_specified_bytes() -> None:
    encoded = encode_one(SMALL.entry(A))
    content = msgpack.packb(FIELDS)
    check = xxhash.xxh3_64_digest(content)
    body = b"caswg\2\0\0" + struct.pack("<I", 1) + A + coarse_row(SMALL.features)
    body += struct.pack("<I", len(content)) + check
    assert encoded.name == f"signatures/{'01' * 32}"
    assert whole(encoded) == body + xxhash.xxh3_64_digest(body) + content


def test_the_object_of_several_is_named_by_their_number_and_its_rows() -> None:
    entries = [SMALL.entry(snapshot) for snapshot in (B, C, A, B)]
    encoded = encode_many(entries)
    assert encoded.name == f"signatures/3-{blake3_256(encoded.parts[0]).hex()}"
    assert encode_many(entries[::-1]) == encoded
    assert list(read(encoded.name, whole(encoded))) == [A, B, C]


@hypothesis.given(st.dictionaries(ids, signatures(), min_size=1, max_size=4))
def test_any_signatures_come_back(wanted: dict[SnapshotId, Signature]) -> None:
    entries = [signature.entry(snapshot) for snapshot, signature in wanted.items()]
    encoded = encode_many(entries)
    assert read(encoded.name, whole(encoded)) == wanted
    rows = decode_rows(encoded.parts[0], encoded.name)
    assert {row.snapshot: row.coarse for row in rows} == {e.snapshot: e.coarse for e in entries}
    for entry in entries:
        one = encode_one(entry)
        assert one.name == signature_name(entry.snapshot)
        assert read(one.name, whole(one)) == {entry.snapshot: wanted[entry.snapshot]}


@pytest.mark.parametrize("many", [False, True])
def test_each_flipped_bit_and_each_missing_byte_is_found(many: bool) -> None:
    encoded = encode_one(SMALL.entry(A))
    if many:
        encoded = encode_many([SMALL.entry(A), SMALL.entry(B)])
    data = whole(encoded)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises((IntegrityError, UnsupportedError)):
            read(encoded.name, bytes(damaged))
        with pytest.raises(IntegrityError):
            read(encoded.name, data[:at])


@pytest.mark.parametrize(
    "name",
    [
        "signatures/",
        "signatures/off",
        f"signatures/{'0' * 63}",
        f"signatures/{'0' * 65}",
        f"signatures/{'A' * 64}",
        f"signatures/0-{'0' * 64}",
        f"signatures/01-{'0' * 64}",
        f"signatures/{MAX_VERSIONS + 1}-{'0' * 64}",
        f"signatures/-1-{'0' * 64}",
        f"signature/{'0' * 64}",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="its name is not that of signatures"):
        parse_signatures_name(name)


def test_an_object_under_the_name_of_another_is_refused() -> None:
    one, two = (encode_many([SMALL.entry(snapshot)]) for snapshot in (A, B))
    with pytest.raises(IntegrityError, match="another ID"):
        decode_rows(one.parts[0], two.name)
    with pytest.raises(IntegrityError, match="another version"):
        decode_rows(one.parts[0], signature_name(B))
    with pytest.raises(IntegrityError, match="checksum"):
        decode_rows(one.parts[0], one.name.replace("/1-", "/2-"))


@pytest.mark.parametrize(
    "change",
    [
        {"grids": [[1, 4, "BF16"]]},
        {"grids": [[1, 4, "BF16"], [0, 1, "U8"]]},
        {"grids": [[1, 4, "BF16"], [2, 1, "U9"]]},
        {"grids": [[1, 4, "BF16"], [2, MAX_ELEMENTS, "U8"]]},
        {"grids": [[1, 4, "BF16"], [2, 1, "U8", 0]]},
        {"grids": [[1, 4, "BF16"], [2.0, 1, "U8"]]},
        {"tensors": bytes(4)},
        {"tensors": bytes(5)},
        {"tensors": bytes([9, 0, 1, 0, 0, 0])},
        {"samples": bytes(18)},
        {"samples": bytes(21)},
        {"samples": [0] * 10},
    ],
)
def test_malformed_signatures_are_refused(change: dict[str, Any]) -> None:
    name, data = built(msgpack.packb(FIELDS))
    assert read(name, data) == {A: SMALL}
    name, data = built(msgpack.packb(FIELDS | change))
    with pytest.raises(IntegrityError, match=f"{name} is damaged: it has no signature of {A}"):
        read(name, data)


def test_keys_that_are_not_known_are_skipped() -> None:
    assert read(*built(msgpack.packb(FIELDS | {"more": [1, {"a": None}]}))) == {A: SMALL}


def test_sizes_beyond_the_limit_are_refused_before_anything_is_read() -> None:
    for size in (0, MAX_SIGNATURE + 1):
        body = b"caswg\2\0\0" + struct.pack("<I", 1) + A + bytes(256)
        body += struct.pack("<I", size) + bytes(8)
        with pytest.raises(IntegrityError, match=f"a signature of {size} bytes"):
            decode_rows(body + xxhash.xxh3_64_digest(body), signature_name(A))


def test_a_newer_format_is_named() -> None:
    name, data = built(msgpack.packb(FIELDS))
    body = data[:5] + b"\3" + data[6 : rows_size(1) - 8]
    with pytest.raises(UnsupportedError, match="upgrade casweights"):
        decode_rows(body + xxhash.xxh3_64_digest(body), name)


@hypothesis.given(
    edited(msgpack.packb(FIELDS)) | with_some(FIELDS, packable).map(msgpack.packb) | st.binary()
)
def test_any_bytes_are_a_signature_or_a_named_error(content: bytes) -> None:
    hypothesis.assume(content)
    row = Row(A, bytes(COARSE_SIZE), 0, len(content), xxhash.xxh3_64_digest(content))
    with suppress(CasweightsError):
        decode_signature(content, row, signature_name(A))


@hypothesis.given(edited(encode_many([SMALL.entry(A), SMALL.entry(B)]).parts[0]))
def test_any_rows_are_rows_or_a_named_error(data: bytes) -> None:
    body = data[:-8]
    for name in (signature_name(A), f"signatures/2-{blake3_256(data).hex()}"):
        with suppress(CasweightsError):
            decode_rows(body + xxhash.xxh3_64_digest(body), name)
