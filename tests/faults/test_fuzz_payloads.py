"""Any bytes as the payload of a frame decode to a value or raise ValueError."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from casweights.format.codecs import Encoding, decode
from casweights.format.derived import decode_derived
from casweights.format.derived import join as join_slices
from casweights.format.low_rank import Factors, LowRank
from casweights.format.parts import Part, join
from casweights.format.patterns import Slice
from casweights.format.planes import decode_planes, encode_planes
from casweights.format.zstd import decompress_into
from casweights.kernels.kinds import ElementKind
from tests.faults.test_fuzz import CHUNK, edited

sizes = st.sampled_from([0, 1, 2, 7, 8, 1000, len(CHUNK), 65536])


@given(st.binary() | edited(zstandard.compress(CHUNK)), sizes)
def test_zstd_gives_a_value_or_a_named_error(data: bytes, size: int) -> None:
    """An error does not disturb the decoder: the next frame is decoded as usual."""
    with suppress(ValueError):
        decompress_into(data, memoryview(bytearray(size)))
    out = bytearray(len(CHUNK))
    decompress_into(zstandard.compress(CHUNK), memoryview(out))
    assert out == CHUNK


@given(
    st.binary()
    | edited(encode_planes(CHUNK, 2))
    | edited(encode_planes(bytes(range(256)) * 8, 8))
    | edited(encode_planes(CHUNK[:64], 1)),
    sizes,
)
@example(b"\x08", 8)
@example(b"\x01\0\0\0\0", 0)
def test_planes_give_a_value_or_a_named_error(payload: bytes, size: int) -> None:
    with suppress(ValueError):
        decode_planes(payload, memoryview(bytearray(size)))


@given(st.integers(0, 255), st.binary(), sizes)
def test_any_encoding_gives_a_value_or_a_named_error(
    encoding: int, payload: bytes, size: int
) -> None:
    with suppress(ValueError):
        decode(encoding, payload, memoryview(bytearray(size)))


DERIVED = join_slices(
    [Slice(0, 1, 5), Slice(None, 0, 2), Slice(1, 0, 1)], (Encoding.SPARSE, b"\0\1\0\0")
)


@given(edited(DERIVED), st.just(8) | sizes)
def test_derived_frames_give_a_value_or_a_named_error(payload: bytes, size: int) -> None:
    with suppress(ValueError):
        decode_derived(payload, [b"root 0", b"1"], memoryview(bytearray(size)))


PARTS = join([Part(encoding, 2, b"\0\x01\0\0") for encoding in (4, 4, 0, 1)])


@given(edited(PARTS), st.just(8) | sizes)
@example(b"\xff" + 255 * b"\0\0\0", 0)
def test_parts_give_a_value_or_a_named_error(payload: bytes, size: int) -> None:
    with suppress(ValueError):
        decode(Encoding.PARTS, payload, memoryview(bytearray(size)))


FACTORS = Factors(np.ones((4, 1), "<i2"), np.ones((1, 4), "<i2"), -3, 1)
LOW_RANK = LowRank(ElementKind.E4M3, FACTORS, (Encoding.SPARSE, b"\0\1\0\0")).join()


@given(edited(LOW_RANK), st.just(15) | sizes)
def test_low_rank_frames_give_a_value_or_a_named_error(payload: bytes, size: int) -> None:
    with suppress(ValueError):
        decode(Encoding.LOW_RANK, payload, memoryview(bytearray(size)))


def test_the_low_rank_frame_of_the_fuzzer_is_sound() -> None:
    decode(Encoding.LOW_RANK, LOW_RANK, memoryview(bytearray(15)))
