"""Encodings of chunks: the registry of codes, and the choice between them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from casweights.config import KiB
from casweights.format.zstd import compress, decompress_into

if TYPE_CHECKING:
    from casweights.config import Compression
    from casweights.format.dtypes import DType
    from casweights.format.hashing import Buffer


class Encoding(IntEnum):
    """How a frame stores its chunk: the code in packs' indexes."""

    RAW = 0
    ZSTD = 1
    PLANES = 2


_SAMPLE = 64 * KiB
_WORTHWHILE = 0.97  # a gain below 3 % is not worth decoding for
_FAST_WORTHWHILE = 0.5
_FAST_LEVEL, _AUTO_LEVEL, _SMALL_LEVEL = 1, 3, 12

Encoded = tuple[Encoding, "Buffer"]


def encode(raw: memoryview, dtype: DType, compression: Compression) -> Encoded:
    """Choose an encoding for a chunk and encode it.

    Args:
        raw: The chunk's bytes.
        dtype: Their element type.
        compression: ``"fast"`` keeps the bytes unless zstd would at least halve them (zeros,
            text); ``"auto"`` takes what promises most on a sample; ``"small"`` tries everything.

    Returns:
        The encoding and the bytes to store, which may be `raw` itself.
    """
    if compression == "small":
        encoded = [_encode(encoding, raw, dtype, _SMALL_LEVEL) for encoding in _candidates(dtype)]
        best = min(encoded, key=lambda item: len(item[1]))
    else:
        level = _FAST_LEVEL if compression == "fast" else _AUTO_LEVEL
        choice = _choose(raw, dtype, compression, level)
        if choice is Encoding.RAW:
            return Encoding.RAW, raw
        best = _encode(choice, raw, dtype, level)
    return best if len(best[1]) < len(raw) else (Encoding.RAW, raw)


def _candidates(dtype: DType) -> list[Encoding]:
    return [Encoding.ZSTD, Encoding.PLANES] if dtype.plane_width else [Encoding.ZSTD]


def _choose(raw: memoryview, dtype: DType, compression: Compression, level: int) -> Encoding:
    """The encoding that does best on a sample from the middle."""
    start = max(0, (len(raw) - _SAMPLE) // 2) & ~7
    sample = raw[start : start + _SAMPLE]
    candidates = [Encoding.ZSTD] if compression == "fast" else _candidates(dtype)
    sizes = {e: len(_encode(e, sample, dtype, level)[1]) for e in candidates}
    best = min(sizes, key=sizes.__getitem__)
    limit = _FAST_WORTHWHILE if compression == "fast" else _WORTHWHILE
    return best if sizes[best] < limit * len(sample) else Encoding.RAW


def _encode(encoding: Encoding, raw: memoryview, dtype: DType, level: int) -> Encoded:
    if encoding is Encoding.PLANES:
        from casweights.format.planes import encode_planes

        return encoding, encode_planes(raw, dtype.plane_width)
    return encoding, compress(raw, level)


def decode(encoding: int, payload: Buffer, out: memoryview) -> None:
    """Decode a frame's stored bytes into `out`, which has the chunk's raw size.

    Raises:
        ValueError: An unknown encoding, or a payload that does not decode to exactly `out`.
    """
    if encoding == Encoding.RAW:
        if len(payload) != len(out):
            raise ValueError(f"it holds {len(payload)} bytes instead of {len(out)}")
        out[:] = payload
    elif encoding == Encoding.ZSTD:
        decompress_into(payload, out)
    elif encoding == Encoding.PLANES:
        from casweights.format.planes import decode_planes  # imports numpy: only when needed

        decode_planes(payload, out)
    else:
        raise ValueError(f"its encoding {encoding} is unknown: a newer casweights may know it")
