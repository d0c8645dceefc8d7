"""The `planes` encoding of floats."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from casweights.format.planes import WIDTHS, decode_planes, encode_planes
from casweights.kernels import _compiled
from casweights.kernels.reference import planes as twins

SIZES = [0, 1, 2, 3, 7, 255, 256, 257, 4096, 65_537]


def roundtrip(raw: bytes, width: int) -> bytes:
    payload = encode_planes(raw, width)
    assert payload[0] == width
    out = bytearray(len(raw))
    decode_planes(payload, memoryview(out))
    assert out == raw
    return payload


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", SIZES)
def test_random_bits_come_back(width: int, count: int) -> None:
    roundtrip(np.random.default_rng(count).bytes(count * width), width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("pattern", [0x00, 0xFF, 0x80, 0x7F, 0x01])
def test_a_repeated_pattern_comes_back(width: int, pattern: int) -> None:
    payload = roundtrip(bytes([pattern]) * 8192 * width, width)
    assert len(payload) < 1000 * width


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_special_values_come_back(dtype: str) -> None:
    info = np.finfo(dtype)
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0]
    values += [float(info.max), float(info.min), float(info.tiny), float(info.smallest_subnormal)]
    roundtrip(np.array(values, dtype=dtype).tobytes(), np.dtype(dtype).itemsize)


@pytest.mark.parametrize("width", [1, 2])
def test_every_bit_pattern_comes_back(width: int) -> None:
    roundtrip(np.arange(1 << (8 * width)).astype(f"<u{width}").tobytes(), width)


@hypothesis.given(data=st.data(), width=st.sampled_from(WIDTHS))
def test_any_bits_come_back(data: st.DataObject, width: int) -> None:
    count = data.draw(st.integers(0, 50))
    roundtrip(data.draw(st.binary(min_size=count * width, max_size=count * width)), width)


@pytest.mark.parametrize(("width", "limit"), [(2, 0.70), (4, 0.86)])
def test_weights_shrink(width: int, limit: float) -> None:
    """The planes of exponents shrink; those of mantissas are stored unchanged."""
    weights = np.random.default_rng(0).normal(0, 0.02, 100_000).astype("<f4").tobytes()
    if width == 2:
        weights = np.frombuffer(weights, "<u2")[1::2].tobytes()  # bf16 is the upper half of fp32
    assert len(roundtrip(weights, width)) < limit * len(weights)


@pytest.mark.parametrize(
    ("payload", "size", "why"),
    [
        (b"", 4, "header is not valid"),
        (b"\x00", 0, "header is not valid"),
        (b"\x03" + bytes(15), 3, "header is not valid"),  # no such width
        (b"\x02" + bytes(9), 4, "header is not valid"),  # cut off
        (encode_planes(bytes(8), 2), 7, "header is not valid"),  # no whole number of elements
        (encode_planes(bytes(8), 2), 10, "planes is not valid"),
        (encode_planes(bytes(8), 2), 6, "planes is not valid"),
        (encode_planes(bytes(8), 2)[:-1], 8, "planes is not valid"),
        (encode_planes(bytes(8), 2) + b"x", 8, "do not fill the frame"),
        (b"\x01\x07" + encode_planes(bytes(8), 1)[2:], 8, "planes is not valid"),  # no such mode
        (b"\x01\x01" + encode_planes(bytes(8), 1)[2:], 8, "content size"),  # says it is coded
        (b"\x01\x00\xff\xff\xff\xff", 8, "planes is not valid"),
        (encode_planes(bytes(8192), 2), 4096, "does not hold"),
    ],
)
def test_malformed_payloads_are_refused(payload: bytes, size: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode_planes(payload, memoryview(bytearray(size)))


def unaligned(data: bytes) -> memoryview:
    """Return a copy that begins at an odd address."""
    return memoryview(bytearray(b"x") + data)[1:]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [*SIZES, 16_383, 16_384, 16_385])
def test_kernels_and_twins_produce_the_same_bytes(width: int, count: int) -> None:
    raw = np.random.default_rng(count).bytes(count * width)
    expected = bytearray(len(raw))
    twins.split_planes(raw, expected, width)
    for target in _compiled.TARGETS:
        _compiled.use(target)
        for module in (_compiled, twins):
            for copy in (unaligned, bytearray):
                split, joined = copy(bytes(len(raw))), copy(bytes(len(raw)))
                module.split_planes(copy(raw), split, width)
                assert bytes(split) == expected
                module.join_planes(split, joined, width)
                assert bytes(joined) == raw


@pytest.mark.parametrize("module", [_compiled, twins], ids=["compiled", "twin"])
@pytest.mark.parametrize("name", ["split_planes", "join_planes"])
def test_kernels_refuse_wrong_arguments(module: object, name: str) -> None:
    arrange = getattr(module, name)
    for size, out, width in [(8, 6, 2), (8, 10, 2), (3, 3, 2), (6, 6, 3), (8, 8, 0), (8, 8, 16)]:
        with pytest.raises(ValueError, match="planes need elements of 1, 2, 4 or 8 bytes"):
            arrange(bytes(size), bytearray(out), width)
    with pytest.raises(TypeError, match="read-write"):
        arrange(bytes(8), bytes(8), 2)
