"""Records: fields that are differences by themselves, and blocks that are found by their bytes."""

from __future__ import annotations

import importlib
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casweights.format.blocks import FORMATS, find_blocks
from casweights.format.codecs import Encoding, decode
from casweights.format.derived import decode_derived
from casweights.format.derived import join as join_derived
from casweights.format.differences import encode_difference, encode_records
from casweights.format.dtypes import DTYPES
from casweights.format.elements import kind_of
from casweights.format.layout import Extent
from casweights.format.parts import split as split_parts
from casweights.format.patterns import Slice
from casweights.format.records import (
    Field,
    Records,
    Run,
    all_halves,
    elements,
    expected,
    join,
    split,
)
from casweights.kernels import dense_encode, sparse_encode
from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference.bits import varint
from tests.lengths import examples

U8 = DTYPES["U8"]
FIELDS = (Field(0, 2), Field(4, 6, 1), Field(8, 3, 1), Field(8, 2), Field(0, 1), Field(4, 2))
RECORD = 12  # bytes of these fields
SCALE = b"\x66\x2e"


def quantized(weights: np.ndarray, name: str) -> bytes:
    """Return the blocks of weights, as the reference implementation of the formats makes them."""
    rows = weights.reshape(-1, 32).astype(np.float32)
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    scales = np.abs(largest) / 127 if name == "Q8_0" else largest / -8
    exact = rows / np.where(scales, scales, 1)[:, None]
    if name == "Q8_0":
        numbers = np.rint(exact).astype(np.int8).view(np.uint8)
    else:
        halves = np.clip(np.rint(exact) + 8, 0, 15).astype(np.uint8)
        numbers = halves[:, :16] | halves[:, 16:] << 4
    return np.hstack([scales.astype(np.float16)[:, None].view(np.uint8), numbers]).tobytes()


def fine_tuned(blocks: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return weights before and after steps of about the same size everywhere."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.025, 0.1, (blocks // 64 + 1, 1)).repeat(64, axis=0)[:blocks]
    old = rng.normal(0, 1, (blocks, 32)) * sizes
    return old, old + rng.normal(0, 1e-4, old.shape)


def encode(raw: bytes, base: bytes) -> bytes:
    """Encode a difference as records, and check that the library and the page decode it."""
    encoded = encode_difference(memoryview(raw), base, U8)
    assert encoded is not None
    assert encoded[0] is Encoding.RECORDS
    return checked(bytes(encoded[1]), raw, base)


def checked(payload: bytes, raw: bytes, base: bytes) -> bytes:
    """Check that the library and the page decode a difference of records, and return it."""
    page = importlib.import_module("tools.spec.chunks")
    assert decoded(payload, base) == raw
    if len(raw) < 100_000:
        assert page.decode(payload, Encoding.RECORDS, len(raw), base) == raw
    return payload


def decoded(payload: bytes, base: bytes) -> bytes:
    out = bytearray(base)
    decode(Encoding.RECORDS, payload, memoryview(out))
    return bytes(out)


def found(data: bytes) -> tuple[int, list[range]]:
    """Return the bytes of a block, and the ranges of the runs that are found."""
    records = find_blocks(data)
    assert records is not None
    size = records.nbytes
    steps = [number for run in records.runs for number in (run.skipped, run.records * size)]
    ends = list(accumulate(steps))
    return size, [range(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("offset", [0, 1, 1000, 4096 + 33])
def test_blocks_are_found_wherever_they_begin(name: str, offset: int) -> None:
    blocks = quantized(fine_tuned(4000)[0], name)
    text = bytes(np.random.default_rng(2).integers(32, 127, offset, np.uint8))
    size, runs = found(text + blocks)
    assert (offset - runs[0].start) % size == 0
    assert sum(map(len, runs)) > len(blocks) - 2 * 4096


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_on_both_sides_of_other_tensors_are_found(name: str) -> None:
    parts = [quantized(fine_tuned(n, n)[0], name) for n in (9_000, 2_000, 11_111)]
    norm = np.random.default_rng(3).normal(1, 0.1, 4099).astype("<f4").tobytes()
    size, runs = found(norm.join(parts))
    starts = [0, len(parts[0]) + len(norm), len(parts[0] + parts[1]) + 2 * len(norm)]
    assert len(runs) == 3
    for run, start, part in zip(runs, starts, parts, strict=True):
        assert (run.start - start) % size == 0
        assert len(set(run) & set(range(start, start + len(part)))) > len(part) - 2 * 4096


def test_other_bytes_have_no_blocks() -> None:
    rng = np.random.default_rng(4)
    others = [
        b"",
        bytes(100),
        bytes(100_000),
        rng.bytes(100_000),
        rng.normal(0, 0.02, 50_000).astype("<f4").tobytes(),
        rng.normal(0, 0.02, 50_000).astype("<f2").tobytes(),
        rng.normal(0, 40, 100_000).astype(np.int8).tobytes(),
        b" the text of a file" * 5000,
        np.arange(50_000, dtype="<u4").tobytes(),
    ]
    assert [find_blocks(data) for data in others] == [None] * len(others)


@pytest.mark.parametrize(("name", "share"), [("Q8_0", 0.9), ("Q4_0", 0.8)])
def test_fine_tunes_are_smaller_as_records(name: str, share: float) -> None:
    old, new = (quantized(weights, name) for weights in fine_tuned(30_000))
    payload = encode(new, old)
    as_bytes = min(
        len(dense_encode(old, new, ElementKind.PLAIN_8)),
        len(sparse_encode(old, new, ElementKind.PLAIN_8)),
    )
    assert len(payload) < share * as_bytes


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", ["nothing", "one", "everything"])
def test_any_change_of_blocks_comes_back(name: str, change: str) -> None:
    rng = np.random.default_rng(5)
    old = rng.bytes(7) + quantized(fine_tuned(1000)[0], name) + rng.bytes(50)
    new = bytearray(old)
    if change == "one":
        new[2000] ^= 0xFF
    elif change == "everything":
        new[:] = rng.bytes(7) + quantized(fine_tuned(1000)[1], name) + rng.bytes(50)
    records = find_blocks(new)
    assert records is not None
    checked(encode_records(bytes(new), old, records), bytes(new), old)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0, 1e-4, 0.01, 0.2])
def test_records_are_not_used_where_they_are_larger(name: str, share: float) -> None:
    """All bytes are as likely to change, which fields do not predict."""
    rng = np.random.default_rng(8)
    old = np.frombuffer(quantized(fine_tuned(8000)[0], name), np.uint8)
    new = old ^ ((rng.random(len(old)) < share) * rng.integers(1, 256, len(old))).astype(np.uint8)
    encoded = encode_difference(memoryview(new.tobytes()), old.tobytes(), U8)
    assert encoded is not None
    kernels = (dense_encode, sparse_encode)
    as_bytes = min(len(kernel(old.data, new.data, ElementKind.PLAIN_8)) for kernel in kernels)
    assert len(encoded[1]) <= 1.01 * as_bytes


def test_a_tensor_that_changes_alone_has_records() -> None:
    old, new = (quantized(weights, "Q8_0") for weights in fine_tuned(3000))
    frozen = np.random.default_rng(9).bytes(400_000)
    extents = [Extent(len(frozen)), Extent(len(new))]
    base, raw = frozen + old, frozen + new
    encoded = encode_difference(memoryview(raw), memoryview(base), U8, extents)
    assert encoded is not None
    assert encoded[0] is Encoding.PARTS
    parts = [part.encoding for part in split_parts(encoded[1], len(raw))]
    assert parts == [Encoding.SPARSE, Encoding.RECORDS]
    out = bytearray(base)
    decode(*encoded, memoryview(out))
    assert out == raw
    page = importlib.import_module("tools.spec.chunks")
    assert page.decode(bytes(encoded[1]), Encoding.PARTS, len(raw), base) == raw


@pytest.mark.parametrize("share", [0.025, 0.04, 0.07, 0.11])
def test_many_numbers_have_the_better_encoding(share: float) -> None:
    """A sample of them decides, since both would take long."""
    rng = np.random.default_rng(10)
    old = rng.integers(0, 16, 1_500_000, np.uint8)
    moved = np.where(rng.random(len(old)) < share, old ^ 1, old)
    base, raw = ((n[::2] | n[1::2] << 4).astype(np.uint8).tobytes() for n in (old, moved))
    records = all_halves(len(raw))
    payload = encode_records(raw, base, records)
    assert decoded(payload, base) == raw
    known = expected(records.fields[0], base, None)
    found = elements(records.fields[0], raw, known)
    sides = known.data.cast("B"), found.data.cast("B")
    kernels = (dense_encode, sparse_encode)
    best = min(len(kernel(*sides, ElementKind.NUMBER)) for kernel in kernels)
    assert len(payload) < 1.01 * best + 40


def test_tensors_of_floats_have_no_records() -> None:
    old, new = (memoryview(quantized(weights, "Q8_0")) for weights in fine_tuned(2000))
    for dtype in DTYPES.values():
        if dtype.is_float and dtype.code != "F4":
            encoded = encode_difference(new, old, dtype)
            assert encoded is not None
            assert encoded[0] is not Encoding.RECORDS, dtype


@pytest.mark.parametrize("code", ["U8", "I32", "U32", "F4"])
def test_packs_of_numbers_of_4_bits_are_smaller_as_numbers(code: str) -> None:
    rng = np.random.default_rng(6)
    numbers = rng.integers(1, 15, 400_000, np.uint8)
    moved = numbers + rng.choice([-1, 0, 1], len(numbers), p=[0.01, 0.98, 0.01]).astype(np.uint8)
    old, new = ((n[::2] | n[1::2] << 4).tobytes() for n in (numbers, moved))
    encoded = encode_difference(memoryview(new), old, DTYPES[code])
    assert encoded is not None
    assert encoded[0] is Encoding.RECORDS
    assert decoded(bytes(encoded[1]), old) == new
    kind = kind_of(DTYPES[code])
    as_elements = min(len(dense_encode(old, new, kind)), len(sparse_encode(old, new, kind)))
    assert len(encoded[1]) < 0.9 * as_elements


def test_whole_numbers_that_move_have_no_records() -> None:
    rng = np.random.default_rng(7)
    for code, width in (("U8", 1), ("I32", 4), ("U32", 4)):
        old = rng.integers(0, 100, 200_000).astype(f"<u{width}")
        new = old + (rng.random(len(old)) < 0.2) * rng.integers(1, 27, len(old)).astype(old.dtype)
        encoded = encode_difference(memoryview(new.tobytes()), old.tobytes(), DTYPES[code])
        assert encoded is not None
        assert encoded[0] is not Encoding.RECORDS, code


def random_records(seed: int) -> tuple[Records, bytes, bytes]:
    """Return records with all sorts of fields in two runs, and two chunks that have them."""
    rng = np.random.default_rng(seed)
    records = Records(FIELDS, [Run(3, 40), Run(0, 7)])
    old = np.frombuffer(rng.bytes(3 + 47 * RECORD + 9), np.uint8).copy()
    rows = old[3 : 3 + 47 * RECORD].reshape(47, RECORD)
    rows[:, :2] = np.frombuffer(SCALE, np.uint8)
    new = np.where(rng.random(len(old)) < 0.2, rng.integers(0, 256, len(old)), old).astype(np.uint8)
    return records, old.tobytes(), new.tobytes()


def forged(seed: int, encoding: Encoding = Encoding.DENSE) -> tuple[bytes, bytes, bytes]:
    """Return a payload of such records, its base, and its chunk."""
    writer = importlib.import_module("tools.spec.record_encoder")
    _, old, new = random_records(seed)
    payload = writer.encode(new, old)
    assert payload is not None
    return payload, old, new


@pytest.mark.parametrize("seed", range(5))
def test_any_fields_come_back(seed: int) -> None:
    payload, old, new = forged(seed)
    assert decoded(payload, old) == new
    records, _, _ = random_records(seed)
    again = bytearray(len(old))
    records.put_together(records.take_apart(old), memoryview(again))
    assert bytes(again) == old


def test_derived_frames_may_have_a_difference_of_records() -> None:
    payload, old, new = forged(1)
    derived = join_derived([Slice(0, 0, len(old))], (Encoding.RECORDS, payload))
    out = bytearray(len(old))
    decode_derived(derived, [old], memoryview(out))
    assert bytes(out) == new


@settings(max_examples=examples(200))
@given(
    st.integers(0, 1),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.binary(max_size=2)), max_size=3),
)
def test_library_and_page_refuse_the_same_payloads(
    seed: int, edits: list[tuple[int, int, bytes]]
) -> None:
    """The payloads are valid ones with bytes replaced, inserted and removed."""
    page = importlib.import_module("tools.spec.chunks")
    payload, old, _ = forged(seed)
    for at, removed, inserted in edits:
        payload = payload[:at] + inserted + payload[at + removed :]
    try:
        by_page = page.decode(payload, Encoding.RECORDS, len(old), old)
    except page.FAILURES:
        by_page = None
    try:
        by_library = decoded(payload, old)
    except ValueError:
        by_library = None
    assert by_library == by_page


NOTHING = Encoding.SPARSE, sparse_encode(b"", b"", ElementKind.PLAIN_8)
TWO = Encoding.SPARSE, sparse_encode(b"ab", b"ab", ElementKind.PLAIN_8)
ONE = Encoding.SPARSE, sparse_encode(b"ab", b"ac", ElementKind.NUMBER)
HIGH = Encoding.SPARSE, sparse_encode(b"ab", b"ac", ElementKind.PLAIN_8)
WRONG = {
    "no fields": Records([], [Run(0, 1)]),
    "nine fields": Records([Field(0, 1)] * 9, [Run(0, 1)]),
    "empty field": Records([Field(0, 0)], [Run(0, 1)]),
    "numbers of 5 bits": Records([Field(5, 8)], [Run(0, 1)]),
    "half a byte": Records([Field(4, 1)], [Run(0, 1)]),
    "no runs": Records([Field(0, 2)], []),
    "empty run": Records([Field(0, 2)], [Run(0, 0)]),
    "too many records": Records([Field(0, 2)], [Run(0, 2)]),
    "too many skipped": Records([Field(0, 2)], [Run(1, 1)]),
    "scale of itself": Records([Field(8, 2, 1)], [Run(0, 1)]),
    "scale of 1 byte": Records([Field(0, 1), Field(8, 1, 1)], [Run(0, 1)]),
}


@pytest.mark.parametrize("records", WRONG.values(), ids=WRONG)
def test_malformed_records_are_refused(records: Records) -> None:
    page = importlib.import_module("tools.spec.chunks")
    payload = join(records, [NOTHING, *[TWO] * len(records.fields)])
    with pytest.raises(ValueError, match=r"its|records"):
        split(payload, 2)
    with pytest.raises(ValueError, match=r"."):
        page.decode(payload, Encoding.RECORDS, 2, b"ab")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1",
        b"\1\0" + varint(1 << 62) + b"\1\0\1",
        b"\1\4" + varint(1 << 62) + b"\0\1\0\1",
        b"\1\0\1\1" + varint(1 << 62) + b"\1",
        b"\1\0\1\1\0" + varint(1 << 62),
        b"\1\0\1" + varint(1 << 62),
        b"\1\0\1\1\0\1\4" + varint(1 << 62),
    ],
)
def test_numbers_of_any_size_are_refused(payload: bytes) -> None:
    page = importlib.import_module("tools.spec.chunks")
    for read in (lambda: decoded(payload, b"ab"), lambda: page.decode(payload, 7, 2, b"ab")):
        with pytest.raises(ValueError, match=r"."):
            read()


def test_streams_of_other_encodings_and_numbers_out_of_range_are_refused() -> None:
    page = importlib.import_module("tools.spec.chunks")
    for field, stream in [
        (Field(0, 2), (Encoding.RAW, b"ab")),
        (Field(0, 2), (Encoding.PARTS, b"ab")),
        (Field(8, 1), HIGH),
        (Field(4, 2), ONE),
    ]:
        payload = join(Records([field], [Run(0, 1)]), [NOTHING, stream])
        base = b"a" * field.nbytes
        with pytest.raises(ValueError, match=r"."):
            decoded(payload, base)
        with pytest.raises(ValueError, match=r"."):
            page.decode(payload, Encoding.RECORDS, len(base), base)
