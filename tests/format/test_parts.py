"""Differences of chunks that several tensors share, in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.format.codecs import Encoding, decode
from casweights.format.differences import encode_difference
from casweights.format.dtypes import DTYPES, DType
from casweights.format.elements import kind_of
from casweights.format.layout import Extent
from casweights.format.parts import MAX_PARTS, Part, divide, join, split
from casweights.kernels import dense_encode, sparse_encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.system.buffers import Buffer

BF16, U8 = DTYPES["BF16"], DTYPES["U8"]
SPARSE, DENSE, RAW = Encoding.SPARSE, Encoding.DENSE, Encoding.RAW
NOTHING = sparse_encode(b"", b"", kind_of(U8))  # the stored bytes of a part that did not change


def tensors(*shares: float, count: int = 20_000) -> tuple[bytes, bytes, list[int]]:
    """Return tensors, the same with these shares of their elements moved, and their sizes."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.02, count * len(shares)).astype("<f4").view("<u4") >> 16
    old = base.astype("<u2")
    moved = rng.random(old.size) < np.repeat(shares, count)
    return old.tobytes(), (old + moved.astype("<u2")).tobytes(), [2 * count] * len(shares)


def extents(sizes: Sequence[int]) -> list[Extent]:
    return [Extent(size) for size in sizes]


def encodings(payload: Buffer, total: int) -> list[tuple[int, int]]:
    return [(part.encoding, part.nbytes) for part in split(payload, total)]


def assert_decodes(encoding: int, payload: Buffer, base: bytes, raw: bytes) -> None:
    out = bytearray(base)
    decode(encoding, payload, memoryview(out))
    assert out == raw


def test_a_tensor_that_was_trained_alone_is_a_part() -> None:
    base, raw, sizes = tensors(0, 0.5, 0, 0)
    encoded = encode_difference(raw, base, BF16, extents(sizes))
    assert encoded is not None
    assert encoded[0] is Encoding.PARTS
    assert encodings(encoded[1], len(raw)) == [
        (SPARSE, sizes[0]),
        (DENSE, sizes[1]),
        (SPARSE, sizes[2] + sizes[3]),
    ]
    alone = dense_encode(base[sizes[0] :][: sizes[1]], raw[sizes[0] :][: sizes[1]], kind_of(BF16))
    assert len(encoded[1]) < len(alone) + 40
    assert_decodes(*encoded, base, raw)


@pytest.mark.parametrize("share", [0.003, 0.5])
def test_tensors_that_change_alike_are_coded_together(share: float) -> None:
    base, raw, sizes = tensors(share, share, share)
    assert encode_difference(raw, base, BF16, extents(sizes)) == encode_difference(raw, base, BF16)


def test_a_tensor_that_was_replaced_is_stored_whole() -> None:
    base, raw, sizes = tensors(0.003, 0, 0.003, count=60_000)
    raw = raw[: sizes[0]] + bytes(sizes[1]) + raw[sizes[0] + sizes[1] :]
    encoded = encode_difference(raw, base, BF16, extents(sizes))
    assert encoded is not None
    assert len(encoded[1]) < 2_000
    noise = np.random.default_rng(1).bytes(sizes[1])
    raw = raw[: sizes[0]] + noise + raw[sizes[0] + sizes[1] :]
    encoded = encode_difference(raw, base, BF16, extents(sizes))
    assert encoded is not None
    assert encodings(encoded[1], len(raw))[1] == (RAW, sizes[1])
    assert_decodes(*encoded, base, raw)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_parts_of_every_dtype_decode(dtype: DType) -> None:
    width = kind_of(dtype).width
    base, raw, sizes = tensors(0, 0.4, 0.01, 0.4, count=4_000)
    encoded = encode_difference(raw, base, dtype, extents(sizes))
    assert all(size % width == 0 for size in sizes)
    assert encoded is not None
    assert encoded[0] is Encoding.PARTS
    assert_decodes(*encoded, base, raw)


def test_too_many_parts_become_one() -> None:
    count = MAX_PARTS + 1
    base, raw, sizes = tensors(*(0.5 * (n % 2) for n in range(count)), count=16_000)
    assert len(divide(raw, base, 2, extents(sizes))) == 1
    fewer = sum(sizes[:-1])
    assert len(divide(raw[:fewer], base[:fewer], 2, extents(sizes[:-1]))) == MAX_PARTS


@given(st.lists(st.tuples(st.integers(1, 4_000), st.sampled_from([0, 0.001, 0.1, 1])), min_size=1))
def test_parts_are_whole_tensors(tensors: list[tuple[int, float]]) -> None:
    rng = np.random.default_rng(0)
    counts = [count for count, _ in tensors]
    old = rng.integers(0, 1 << 16, sum(counts)).astype("<u2")
    moved = rng.random(old.size) < np.repeat([share for _, share in tensors], counts)
    new = old + moved.astype("<u2")
    sizes = [2 * count for count in counts]
    tensors_of_parts = divide(new.tobytes(), old.tobytes(), 2, extents(sizes))
    assert [extent.nbytes for part in tensors_of_parts for extent in part] == sizes
    assert all(tensors_of_parts)


def part(nbytes: int, encoding: int = SPARSE, payload: bytes = NOTHING) -> Part:
    return Part(encoding, nbytes, payload)


MALFORMED = {
    "nothing": (b"", 8, "too short"),
    "no part": (b"\0", 0, "too few"),
    "one part": (join([part(8)]), 8, "too few"),
    "an empty part": (join([part(0), part(8)]), 8, "an empty one"),
    "too little": (join([part(3), part(4)]), 8, "add up"),
    "too much": (join([part(4), part(5)]), 8, "add up"),
    "larger than its chunk": (join([part(9), part(4)]), 8, "too large"),
    "bytes left over": (join([part(4), part(4)]) + b"\0", 8, "add up"),
    "bytes missing": (join([part(4), part(4)])[:-1], 8, "add up"),
    "a count without parts": (b"\xff" + join([part(4), part(4)])[1:], 8, "too"),
    "parts in parts": (join([part(4, 5, join([part(2), part(2)])), part(4)]), 8, "encoding 5"),
    "an unknown encoding": (join([part(4), part(4, 200)]), 8, "encoding 200"),
    "raw of another size": (join([part(4, RAW, b"abc"), part(4)]), 8, "3 bytes instead of 4"),
    "damage": (join([part(4), part(4, SPARSE, b"abc")]), 8, "kind of elements"),
}


@pytest.mark.parametrize(("payload", "size", "why"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_parts_are_refused(payload: bytes, size: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(Encoding.PARTS, payload, memoryview(bytearray(size)))
