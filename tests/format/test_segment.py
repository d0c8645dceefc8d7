"""Segments: rows by chunk ID, found from the end of the object."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from casweights.errors import IntegrityError, UnsupportedError
from casweights.format import segment as module
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.pack import TRAILER_SIZE
from casweights.format.segment import (
    MAX_ROWS,
    SegmentBuilder,
    SegmentIndex,
    fanout_bits,
    parse_segment,
    rows_of,
    segment_id,
    segment_index_span,
)
from casweights.format.segment_rows import ROW_SIZE, make_rows
from casweights.ids import ChunkId, PackId, SegmentId

PACKS = [PackId(bytes([n]) * 32) for n in (9, 3, 7)]


def ids(count: int, size: int = 32) -> list[ChunkId]:
    data = np.random.default_rng(count).bytes(size * count)
    return [ChunkId(data[n : n + size]) for n in range(0, len(data), size)]


def build(chunks: list[ChunkId], bits: int | None = None, parts: int = 1) -> bytes:
    rows = sorted(make_rows([chunk], n % 3) for n, chunk in enumerate(chunks))
    width = 256 // parts
    divided = [[row for row in rows if row[0] // width == n] for n in range(parts)]
    bits = fanout_bits(len(rows)) if bits is None else bits
    return encode(divided, bits, 1)


def encode(parts: list[list[bytes]], bits: int, generation: int) -> bytes:
    builder = SegmentBuilder(PACKS, bits, generation)
    for rows in parts:
        builder.add(b"".join(rows))
    _, content = builder.finish()
    return b"".join(content)


def parse(data: bytes, segment: SegmentId | None = None) -> SegmentIndex:
    start, stop = segment_index_span(data[-TRAILER_SIZE:], len(data), "segments/x")
    index = data[start:stop]
    segment = segment or segment_id(data[:PREFIX_SIZE], index)
    return parse_segment(data[:PREFIX_SIZE], index, start, segment)


def find(data: bytes, chunk: ChunkId, index: SegmentIndex | None = None) -> list[PackId]:
    index = index or parse(data)
    bucket = index.bucket(chunk)
    start, stop = index.span(bucket, bucket)
    index.check(bucket, data[start:stop])
    return [index.pack(row) for row in rows_of(chunk, data[start:stop])]


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("size", [16, 32])
def test_every_chunk_is_found_in_its_packs_and_no_other(count: int, size: int) -> None:
    chunks = ids(count, size)
    data = build(chunks)
    index = parse(data)
    for n, chunk in enumerate(chunks):
        assert find(data, chunk, index) == [PACKS[n % 3]]
    assert find(data, ids(count + 1, size)[-1]) == []


@pytest.mark.parametrize(("bits", "parts"), [(0, 1), (4, 1), (4, 16), (16, 4), (9, 2)])
def test_the_division_into_buckets_and_parts_changes_nothing_that_is_found(
    bits: int, parts: int
) -> None:
    chunks = ids(700)
    data = build(chunks, bits, parts)
    assert data == build(chunks, bits)
    index = parse(data)
    assert all(find(data, chunk, index) == [PACKS[n % 3]] for n, chunk in enumerate(chunks))


def test_a_chunk_in_several_packs_has_a_row_for_each() -> None:
    chunk = ids(1)[0]
    data = encode([sorted(make_rows([chunk], n) for n in (2, 0))], 0, 0)
    assert find(data, chunk) == [PACKS[0], PACKS[2]]
    assert [pack.rows for pack in parse(data).packs] == [1, 0, 1]


def test_the_layout_is_the_one_on_the_page() -> None:
    chunk = ids(1)[0]
    data = build([chunk], 1)
    rows = chunk[:16] + struct.pack("<I", 0)
    assert data[:8] == b"caswi\2\0\0"
    assert data[8 : 8 + ROW_SIZE] == rows
    first = chunk[0] >> 7
    check = [module._check(rows if n == first else b"") for n in (0, 1)]
    ends = [1 if n >= first else 0 for n in (0, 1)]
    fanout = b"".join(struct.pack("<I4s", e, c) for e, c in zip(ends, check, strict=True))
    packs = b"".join(
        bytes(pack) + b"\0" + struct.pack("<I", rows)
        for pack, rows in zip(PACKS, (1, 0, 0), strict=True)
    )
    index = fanout + packs + struct.pack("<4I", 1, 3, 1, 1)
    assert data[8 + ROW_SIZE :] == index + struct.pack("<I", len(index)) + b"cidx"


def test_flipping_any_bit_is_detected() -> None:
    chunks = ids(20)
    data = build(chunks, 2)
    segment = parse(data).segment
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((IntegrityError, UnsupportedError)):
            read_all(bytes(damaged), segment)


def read_all(data: bytes, segment: SegmentId) -> None:
    index = parse(data, segment)
    for bucket in range(1 << index.bits):
        start, stop = index.span(bucket, bucket)
        index.check(bucket, data[start:stop])


def test_cutting_it_anywhere_is_detected() -> None:
    data = build(ids(20), 2)
    segment = parse(data).segment
    for size in range(len(data)):
        with pytest.raises(IntegrityError):
            read_all(data[:size], segment)


@pytest.mark.parametrize(
    "counts",
    [
        (MAX_ROWS + 1, 3, 2, 0),
        (20, 1 << 17, 2, 0),
        (20, 3, 17, 0),
        (20, 3, 3, 0),
        (20, 2, 2, 0),
        (19, 3, 2, 0),
        (1 << 31, 3, 2, 0),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts: tuple[int, int, int, int]) -> None:
    data = build(ids(20), 2)
    start, stop = segment_index_span(data[-TRAILER_SIZE:], len(data), "")
    index = data[start : stop - 16] + struct.pack("<4I", *counts)
    with pytest.raises(IntegrityError):
        parse_segment(data[:8], index, start, segment_id(data[:8], index))


def test_an_unknown_kind_of_pack_is_refused() -> None:
    data = build(ids(20), 2)
    start, stop = segment_index_span(data[-TRAILER_SIZE:], len(data), "")
    index = bytearray(data[start:stop])
    index[4 * 8 + 32] = 77
    with pytest.raises(IntegrityError, match="unknown kind 77"):
        parse_segment(data[:8], bytes(index), start, segment_id(data[:8], bytes(index)))


def test_a_row_of_a_pack_that_is_not_listed_is_refused() -> None:
    index = parse(build(ids(20), 2))
    with pytest.raises(IntegrityError, match="its pack 3 of 3"):
        index.pack(make_rows(ids(1), 3))


def test_fanouts_have_about_64_rows_in_a_bucket() -> None:
    assert [fanout_bits(n) for n in (0, 1, 64, 65, 128, 129, 1 << 20, MAX_ROWS)] == [
        *(0, 0, 0, 1, 1, 2, 14, 16)
    ]
