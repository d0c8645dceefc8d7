"""The payloads of derived frames, and the columns of their roots."""

from __future__ import annotations

import contextlib
import importlib
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.config import MAX_CHUNK_SIZE
from casweights.format.codecs import Encoding
from casweights.format.columns import NumberColumn
from casweights.format.derived import decode_derived, join, split
from casweights.format.pack import Frame, encode_frames, parse_frames
from casweights.format.patterns import (
    MAX_SLICES,
    Slice,
    find_patterns,
    join_patterns,
    split_patterns,
)
from casweights.format.roots import MAX_ROOTS, Root
from casweights.ids import ChunkId
from casweights.kernels import dense_encode, sparse_encode
from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference.bits import PayloadReader, varint

ROOTS = [random.Random(n).randbytes(size) for n, size in enumerate((40, 100, 64))]
SIZES = [len(root) for root in ROOTS]


@st.composite
def slices(draw: st.DrawFn) -> list[Slice]:
    """Slices of all roots, in any order, and zeros."""
    found = []
    for number in draw(st.permutations([0, 1, 2, None, *draw(st.lists(st.integers(0, 2)))])):
        if number is None:
            found.append(Slice(None, 0, draw(st.integers(1, 50))))
        else:
            start = draw(st.integers(0, SIZES[number] - 1))
            found.append(Slice(number, start, draw(st.integers(1, SIZES[number] - start))))
    return found


def laid(found: list[Slice]) -> bytes:
    return b"".join(
        bytes(nbytes) if root is None else ROOTS[root][offset : offset + nbytes]
        for root, offset, nbytes in found
    )


def decoded(payload: bytes, total: int, roots: list[bytes] = ROOTS) -> bytes:
    out = bytearray(total)
    decode_derived(payload, roots, memoryview(out))
    return bytes(out)


@given(slices())
def test_slices_are_laid_end_to_end(found: list[Slice]) -> None:
    raw = laid(found)
    assert decoded(join(found, None), len(raw)) == raw
    assert split(join(found, None), len(raw), SIZES) == (found, None, None)


@given(slices(), st.sampled_from([Encoding.SPARSE, Encoding.DENSE]), st.data())
def test_a_difference_is_applied_to_the_slices(
    found: list[Slice], encoding: Encoding, data: st.DataObject
) -> None:
    base = laid(found)
    raw = bytearray(base)
    for _ in range(5):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1
    encode = sparse_encode if encoding is Encoding.SPARSE else dense_encode
    payload = join(found, (encoding, encode(base, raw, ElementKind.PLAIN_8)))
    assert decoded(payload, len(raw)) == raw


@st.composite
def repeated(draw: st.DrawFn) -> list[Slice]:
    """Slices of which some repeat, between others."""
    found = draw(slices())
    for _ in range(draw(st.integers(0, 3))):
        pattern, times = draw(slices()), draw(st.integers(2, 6))
        steps = [
            0 if s.root is None else draw(st.integers(0, 1 + (SIZES[s.root] - sum(s[1:])) // times))
            for s in pattern
        ]
        more = [
            Slice(s.root, s.offset + n * step, s.nbytes)
            for n in range(times)
            for s, step in zip(pattern, steps, strict=True)
            if s.root is None or s.offset + n * step + s.nbytes <= SIZES[s.root]
        ]
        at = draw(st.integers(0, len(found)))
        found[at:at] = more
    return found


@given(repeated())
def test_patterns_are_the_slices_that_they_list(found: list[Slice]) -> None:
    again = [
        Slice(one.root, one.offset + n * step, one.nbytes)
        for times, own, steps in find_patterns(found)
        for n in range(times)
        for one, step in zip(own, steps, strict=True)
    ]
    assert again == found
    reader = PayloadReader(join_patterns(found))
    assert split_patterns(reader, SIZES) == found
    assert reader.left == 0
    total = sum(one.nbytes for one in found)
    assert split(join(found, None), total, SIZES) == (found, None, None)


@given(repeated())
def test_both_decoders_lay_the_same_patterns(found: list[Slice]) -> None:
    chunks = importlib.import_module("tools.spec.chunks")
    payload = b"\2" + join_patterns(found) + b"\xff"
    raw = laid(found)
    assert decoded(payload, len(raw)) == raw
    assert chunks.decode_derived(payload, len(raw), ROOTS) == raw


def test_the_rows_of_columns_take_a_few_bytes_together() -> None:
    few, many = ([Slice(n % 2, n // 2 * 10, 10) for n in range(2 * rows)] for rows in (100, 10_000))
    assert len(join(many, None)) <= len(join(few, None)) + 1 < 20


def pattern(*numbers: int) -> bytes:
    """Return a payload of one pattern, and what is left of the roots."""
    rest = [Slice(0, 0, 40), Slice(1, 0, 100), Slice(2, 0, 64)]
    listed = join_patterns(rest)[1:]
    return b"\2\2" + bytes(numbers) + listed + b"\xff"


BAD_PATTERNS = {
    "a step beyond the root": (pattern(3, 1, 1, 0, 10, 16), 30),
    "zeros that move": (pattern(3, 1, 0, 0, 10, 1), 30),
    "a step of nothing": (pattern(1, 1, 1, 0, 10, 1), 10),
    "no times": (pattern(0, 1, 1, 0, 10, 1), 0),
    "no slices": (pattern(3, 0), 0),
    "an empty slice": (pattern(3, 1, 1, 0, 0, 1), 0),
    "too many slices": (b"\2\1" + varint(MAX_SLICES) + b"\2" + b"\1\0\1\0" * 2 + b"\xff", 0),
    "many times nothing": (b"\2\1" + varint(MAX_SLICES + 1) + b"\1\1\0\1\0\xff", 0),
}


@pytest.mark.parametrize(("payload", "more"), BAD_PATTERNS.values(), ids=BAD_PATTERNS)
def test_malformed_patterns_are_refused_by_both_decoders(payload: bytes, more: int) -> None:
    chunks, total = importlib.import_module("tools.spec.chunks"), sum(SIZES) + more
    with pytest.raises(ValueError, match="it"):
        decoded(payload, total)
    with pytest.raises(chunks.StoreError):
        chunks.decode_derived(payload, total, ROOTS)


def test_a_sound_pattern_is_not_refused() -> None:
    assert len(decoded(pattern(3, 1, 1, 0, 10, 15), sum(SIZES) + 30)) == sum(SIZES) + 30


def test_zeros_replace_what_the_buffer_held() -> None:
    out = bytearray(b"x" * 50)
    decode_derived(join([Slice(0, 0, 40), Slice(None, 0, 10)], None), ROOTS[:1], memoryview(out))
    assert out == ROOTS[0] + bytes(10)


WHOLE = [Slice(0, 0, 40), Slice(1, 0, 100), Slice(2, 0, 64)]
REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "another rule": b"\3" + join(WHOLE, None)[1:],
    "no slices": join([], None),
    "fewer bytes": join([*WHOLE[:2], Slice(2, 0, 63)], None),
    "more bytes": join([*WHOLE, Slice(None, 0, 1)], None),
    "beyond its root": join([*WHOLE[:2], Slice(2, 1, 64)], None),
    "beyond its root by its offset": join([*WHOLE[:2], Slice(2, 65, 64)], None),
    "a root that does not exist": join([*WHOLE[:2], Slice(3, 0, 64)], None),
    "a root of which nothing is used": join([*WHOLE[:2], Slice(1, 0, 64)], None),
    "an empty slice": join([*WHOLE, Slice(0, 0, 0)], None),
    "zeros with an offset": join([*WHOLE[:2], Slice(2, 0, 63), Slice(None, 1, 1)], None),
    "too many slices": join([Slice(0, 0, 1)] * (MAX_SLICES + 1), None),
    "bytes after the slices": join(WHOLE, None) + b"x",
    "no encoding": join(WHOLE, None)[:-1],
    "a whole chunk": join(WHOLE, (Encoding.RAW, bytes(204))),
    "a derived difference": join(WHOLE, (Encoding.DERIVED, join(WHOLE, None))),
    "an empty difference": join(WHOLE, (Encoding.SPARSE, b"")),
}


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED)
def test_malformed_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="it"):
        decoded(payload, sum(SIZES))


@given(st.binary(max_size=40), st.integers(0, 20))
def test_any_payload_decodes_or_is_refused(tail: bytes, kept: int) -> None:
    honest = join(
        WHOLE, (Encoding.SPARSE, sparse_encode(laid(WHOLE), laid(WHOLE), ElementKind.PLAIN_8))
    )
    with contextlib.suppress(ValueError):
        decoded(honest[:kept] + tail, sum(SIZES))


def frames(digest_size: int = 32) -> list[Frame]:
    """Five frames: whole, derived from two chunks, a difference, and derived from one and eight."""

    def chunk(n: int) -> ChunkId:
        return ChunkId(bytes([n]) * digest_size)

    roots: list[tuple[Root, ...]] = [(), (Root(chunk(8), 7), Root(chunk(9), 8)), ()]
    roots += [(Root(chunk(0), 5),), tuple(Root(chunk(n), 60 + n) for n in range(MAX_ROOTS))]
    bases = [None, None, chunk(1), None, None]
    codes = (1, 6, 4, 6, 6)
    return [
        Frame(chunk(n), 50, codes[n], 8 + 2 * n, 2, bytes([n]) * 8, bases[n], roots[n])
        for n in range(5)
    ]


@pytest.mark.parametrize("digest_size", [16, 32])
def test_roots_are_read_as_they_were_written(digest_size: int) -> None:
    columns = parse_frames(encode_frames(frames(digest_size)))
    assert list(columns) == frames(digest_size)
    assert columns.has_derived
    assert columns.whole_sizes() == {50: 2}
    assert set(columns.bases) == {base for frame in frames(digest_size) for base in frame.bases}
    columns.compact()
    assert list(columns) == frames(digest_size)
    assert set(columns.bases) == {base for frame in frames(digest_size) for base in frame.bases}


def test_an_index_without_derived_frames_has_no_columns_of_roots() -> None:
    index = encode_frames([frames()[0], frames()[2]])
    assert b"root" not in index
    assert not parse_frames(index).has_derived


HONEST: dict[str, Any] = msgpack.unpackb(encode_frames(frames()))
ROWS = [1, 1, 3, *[4] * MAX_ROOTS]
FORGED: dict[str, dict[str, bytes]] = {
    "fewer roots": {"root": HONEST["root"][32:]},
    "a part of an ID": {"root": HONEST["root"][1:]},
    "fewer sizes": {"root_size": HONEST["root_size"][4:]},
    "a part of a size": {"root_size": HONEST["root_size"][1:]},
    "out of order": {"root_of": NumberColumn.encode([3, 1, *ROWS[2:]])},
    "a frame that does not exist": {"root_of": NumberColumn.encode([*ROWS[:-1], 5])},
    "nine roots": {"root_of": NumberColumn.encode([1, 1, *[4] * (MAX_ROOTS + 1)])},
    "a frame with a base": {"root_of": NumberColumn.encode([1, 1, 2, *ROWS[3:]])},
    "an empty root": {"root_size": NumberColumn.encode([0]) + HONEST["root_size"][4:]},
    "a large root": {
        "root_size": NumberColumn.encode([MAX_CHUNK_SIZE + 1]) + HONEST["root_size"][4:]
    },
}


@pytest.mark.parametrize("changed", FORGED.values(), ids=FORGED)
def test_columns_that_do_not_fit_each_other_are_refused(changed: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_frames(msgpack.packb(HONEST | changed))


@pytest.mark.parametrize("missing", ["root", "root_of", "root_size"])
def test_a_missing_column_of_roots_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        parse_frames(msgpack.packb({key: HONEST[key] for key in HONEST if key != missing}))
