"""Encodings of chunks and the choice between them."""

from __future__ import annotations

from typing import get_args

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from casweights.config import Compression
from casweights.format.codecs import Encoding, decode, encode, is_difference
from casweights.format.differences import encode_difference
from casweights.format.dtypes import DTYPES, DType
from casweights.format.elements import kind_of
from casweights.kernels import dense_encode, sparse_encode
from casweights.testing.strategies import contents
from tests.lengths import examples

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
BF16, F32, U8, I8 = (DTYPES[code] for code in ("BF16", "F32", "U8", "I8"))
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(0, 0.02, 200_000).astype("<f4").tobytes()
NOISE = RNG.bytes(200_000)


def roundtrip(raw: bytes, dtype: DType, compression: Compression) -> tuple[Encoding, int]:
    encoding, payload = encode(memoryview(raw), dtype, compression)
    assert len(payload) <= len(raw)
    out = bytearray(len(raw))
    decode(encoding, payload, memoryview(out))
    assert out == raw
    return encoding, len(payload)


@hypothesis.settings(max_examples=examples(100))
@hypothesis.given(
    data=st.data(),
    code=st.sampled_from(sorted(DTYPES)),
    compression=st.sampled_from(COMPRESSIONS),
)
def test_any_bytes_come_back(data: st.DataObject, code: str, compression: Compression) -> None:
    dtype = DTYPES[code]
    raw = data.draw(contents())
    unit = max(1, dtype.bits // 8)
    roundtrip(raw[: len(raw) // unit * unit], dtype, compression)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_empty_and_tiny_chunks_come_back(dtype: DType, compression: Compression) -> None:
    for count in range(4):
        roundtrip(NOISE[: count * max(1, dtype.bits // 8)], dtype, compression)


@pytest.mark.parametrize(
    ("raw", "dtype", "compression", "encoding"),
    [
        (WEIGHTS, F32, "auto", Encoding.PLANES),
        (WEIGHTS, F32, "small", Encoding.PLANES),
        (WEIGHTS, F32, "fast", Encoding.RAW),
        (WEIGHTS, U8, "fast", Encoding.RAW),
        (NOISE, U8, "auto", Encoding.RAW),
        (NOISE, BF16, "auto", Encoding.RAW),
        (NOISE, BF16, "small", Encoding.RAW),
        (bytes(200_000), U8, "auto", Encoding.ZSTD),
        (bytes(200_000), U8, "fast", Encoding.ZSTD),
        (b"some text " * 20_000, U8, "auto", Encoding.ZSTD),
        (b"some text " * 20_000, U8, "fast", Encoding.ZSTD),
        (bytes(RNG.integers(-8, 8, 200_000).astype(np.int8)), I8, "auto", Encoding.ZSTD),
    ],
)
def test_encode_chooses_the_expected_encoding(
    raw: bytes, dtype: DType, compression: Compression, encoding: Encoding
) -> None:
    assert roundtrip(raw, dtype, compression)[0] is encoding


def test_raw_payload_is_the_chunk_itself() -> None:
    raw = memoryview(NOISE)
    assert encode(raw, BF16, "fast")[1] is raw


def test_small_is_never_larger_than_other_policies() -> None:
    for raw in (WEIGHTS, NOISE, bytes(200_000)):
        sizes = {c: roundtrip(raw, F32, c)[1] for c in COMPRESSIONS}
        assert sizes["small"] <= min(sizes.values())


def stepped(dtype: DType, share: float, count: int = 70_000) -> tuple[bytes, bytes]:
    """Return elements, and a copy in which this share of them moved up or down by one."""
    rng = np.random.default_rng(1)
    width = kind_of(dtype).width
    base = np.frombuffer(rng.bytes(count * width), f"<u{width}")
    if dtype.is_float:
        wide = max(4, width)
        weights = rng.normal(0, 0.02, count).astype(f"<f{wide}").view(f"<u{wide}")
        base = (weights >> 8 * (wide - width)).astype(base.dtype)
    new = base.copy()
    steps = np.array([1, -1]).astype(base.dtype)
    changed = rng.random(count) < share
    new[changed] += rng.choice(steps, np.count_nonzero(changed))
    return base.tobytes(), new.tobytes()


@pytest.mark.parametrize("share", [0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("dtype", [BF16, F32, U8, DTYPES["I64"]], ids=str)
def test_the_smaller_difference_is_chosen(dtype: DType, share: float) -> None:
    base, raw = stepped(dtype, share)
    encoded = encode_difference(raw, base, dtype)
    assert encoded is not None
    encoding, payload = encoded
    sizes = {
        Encoding.SPARSE: len(sparse_encode(base, raw, kind_of(dtype))),
        Encoding.DENSE: len(dense_encode(base, raw, kind_of(dtype))),
    }
    assert len(payload) == sizes[encoding]
    assert len(payload) <= (1.03 if share > 0.1 else 1) * min(sizes.values())
    if not 0.01 < share < 0.2:
        assert encoding is (Encoding.SPARSE if share <= 0.01 else Encoding.DENSE)
    out = bytearray(base)
    decode(encoding, payload, memoryview(out))
    assert out == raw


def test_one_encoding_is_tried_where_the_other_is_hardly_ever_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> bytes:
        raise AssertionError("a second encoding takes time and saves nothing")

    for share, other in ((0.005, "dense_encode"), (0.15, "sparse_encode")):
        base, raw = stepped(BF16, share)
        with monkeypatch.context() as patch:
            patch.setattr(f"casweights.kernels.{other}", refuse)
            assert encode_difference(raw, base, BF16) is not None


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_differences_of_every_dtype_decode(dtype: DType) -> None:
    for base, raw in (stepped(dtype, 0.01, 1000), stepped(dtype, 0.6, 1000)):
        encoded = encode_difference(raw, base, dtype)
        assert encoded is not None
        out = bytearray(base)
        decode(*encoded, memoryview(out))
        assert out == raw


@pytest.mark.parametrize("dtype", [BF16, F32, U8], ids=str)
def test_differences_not_smaller_than_the_chunk_are_dropped(dtype: DType) -> None:
    other = RNG.bytes(len(NOISE))
    assert encode_difference(NOISE, other, dtype) is None
    assert encode_difference(NOISE[:4], other[:4], dtype) is None
    assert encode_difference(b"", b"", dtype) is None


def test_only_differences_need_a_base() -> None:
    differences = [Encoding.DENSE, Encoding.SPARSE, Encoding.PARTS]
    differences += [Encoding.LOW_RANK, Encoding.RECORDS]
    assert [e for e in Encoding if is_difference(e)] == differences


@pytest.mark.parametrize(
    ("encoding", "payload", "size", "why"),
    [
        (0, b"abc", 2, "3 bytes instead of 2"),
        (0, b"abc", 4, "3 bytes instead of 4"),
        (1, b"abc", 3, "content size"),
        (2, b"abc", 3, "header is not valid"),
        (3, b"abc", 3, "kind of elements is unknown"),
        (3, b"\0\0", 3, "number of groups"),
        (4, b"abc", 3, "kind of elements is unknown"),
        (4, b"\0", 3, "number of classes"),
        (5, b"abc", 3, "too large"),
        (6, b"abc", 3, "encoding 6 is unknown"),
        (255, b"", 0, "encoding 255 is unknown"),
    ],
)
def test_malformed_payloads_are_refused(encoding: int, payload: bytes, size: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(encoding, payload, memoryview(bytearray(size)))
