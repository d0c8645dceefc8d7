"""The codes of encodings; encode a chunk by itself, and decode any."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from casweights.config import KiB
from casweights.format.zstd import compress, decompress_into

if TYPE_CHECKING:
    from casweights.config import Compression
    from casweights.format.dtypes import DType
    from casweights.system.buffers import Buffer


class Encoding(IntEnum):
    """The way in which a frame stores its chunk; the value is the code in packs' indexes."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DENSE = 3
    SPARSE = 4
    PARTS = 5
    DERIVED = 6
    LOW_RANK = 7
    RECORDS = 8


_OF_ELEMENTS = (Encoding.DENSE, Encoding.SPARSE)
_DIFFERENCES = (*_OF_ELEMENTS, Encoding.PARTS, Encoding.LOW_RANK, Encoding.RECORDS)
_SAMPLE = 64 * KiB  # bytes of a chunk on which encodings are compared
_MAX_SHARE = 0.97  # of the raw bytes: a gain below 3 % does not repay the cost of decoding
_FAST_MAX_SHARE = 0.5  # the same for `fast`
_FAST_LEVEL, _AUTO_LEVEL, _SMALL_LEVEL = 1, 3, 12

Encoded = tuple[Encoding, "Buffer"]


def is_difference(encoding: int) -> bool:
    """Return whether frames of this encoding need a base; derived ones have roots instead."""
    return encoding in _DIFFERENCES


def encode(raw: memoryview, dtype: DType, compression: Compression) -> Encoded:
    """Encode a chunk by itself, in the encoding that suits it best.

    Args:
        raw: The chunk's bytes.
        dtype: Element type of these bytes.
        compression: ``"fast"`` keeps the bytes unless zstd would at least halve them (zeros,
            text); ``"auto"`` uses the encoding that is smallest on a sample; ``"small"`` tries all
            encodings on the whole chunk.

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
    """Return the encodings other than RAW that a chunk of this dtype can have without a base."""
    return [Encoding.ZSTD, Encoding.PLANES] if dtype.plane_width else [Encoding.ZSTD]


def _choose(raw: memoryview, dtype: DType, compression: Compression, level: int) -> Encoding:
    """Return the encoding that is smallest on a sample from the chunk's middle."""
    # A multiple of 8 bytes, so that the sample begins with a whole element of any dtype.
    start = max(0, (len(raw) - _SAMPLE) // 2) & ~7
    sample = raw[start : start + _SAMPLE]
    candidates = [Encoding.ZSTD] if compression == "fast" else _candidates(dtype)
    sizes = {e: len(_encode(e, sample, dtype, level)[1]) for e in candidates}
    best = min(sizes, key=sizes.__getitem__)
    limit = _FAST_MAX_SHARE if compression == "fast" else _MAX_SHARE
    return best if sizes[best] < limit * len(sample) else Encoding.RAW


def _encode(encoding: Encoding, raw: memoryview, dtype: DType, level: int) -> Encoded:
    if encoding is Encoding.PLANES:
        from casweights.format.planes import encode_planes

        return encoding, encode_planes(raw, dtype.plane_width)
    return encoding, compress(raw, level)


def decode(encoding: int, payload: Buffer, out: memoryview) -> None:
    """Decode a frame's stored bytes into `out`.

    Args:
        encoding: Code of the encoding.
        payload: The stored bytes.
        out: Receives the chunk; its length is the chunk's raw size. For a difference, it contains
            the base when the function is called.

    Raises:
        ValueError: The encoding is unknown, or the payload does not decode to exactly `len(out)`
            bytes.
    """
    if encoding == Encoding.RAW:
        if len(payload) != len(out):
            raise ValueError(f"its payload has {len(payload)} bytes instead of {len(out)}")
        out[:] = payload
    elif encoding == Encoding.ZSTD:
        decompress_into(payload, out)
    elif encoding == Encoding.PLANES:
        from casweights.format.planes import decode_planes

        decode_planes(payload, out)
    elif encoding == Encoding.SPARSE:
        from casweights.kernels import sparse_decode

        sparse_decode(payload, out)
    elif encoding == Encoding.DENSE:
        from casweights.kernels import dense_decode

        dense_decode(payload, out)
    elif encoding == Encoding.PARTS:
        _decode_parts(payload, out)
    elif encoding == Encoding.LOW_RANK:
        _decode_low_rank(payload, out)
    elif encoding == Encoding.RECORDS:
        _decode_records(payload, out)
    else:
        raise ValueError(f"its encoding {encoding} is unknown: a newer casweights may know it")


def _decode_parts(payload: Buffer, out: memoryview) -> None:
    from casweights.format.parts import split

    start = 0
    for encoding, size, stored in split(payload, len(out)):
        if encoding in (Encoding.PARTS, Encoding.DERIVED):
            raise ValueError(f"one of its parts has the encoding {encoding}")
        decode(encoding, stored, out[start : start + size])
        start += size


def _decode_low_rank(payload: Buffer, out: memoryview) -> None:
    from casweights.format.low_rank import LowRank

    content = LowRank.split(payload, len(out))
    encoding, rest = content.difference
    if encoding not in _OF_ELEMENTS:
        raise ValueError(f"the difference from what it predicts has the encoding {encoding}")
    content.factors.apply(content.kind, out)
    decode(encoding, rest, out)


def _decode_records(payload: Buffer, out: memoryview) -> None:
    from casweights.format.records import expected, packed, split

    records, streams = split(payload, len(out))
    old, new = records.take_apart(out), []
    for number, ((encoding, stored), stream) in enumerate(zip(streams, old, strict=True)):
        if encoding not in _OF_ELEMENTS:
            raise ValueError(f"one of its streams has the encoding {encoding}")
        field = records.fields[number - 1] if number else None
        if field is None or not field.bits:
            found = stream.copy()
            decode(encoding, stored, found.data)
            new.append(found)
            continue
        scales = (old[field.scale].data, new[field.scale].data) if field.scale else None
        known = expected(field, stream.data, scales)
        found = known.copy()
        decode(encoding, stored, found.data.cast("B"))
        new.append(packed(field, found, known))
    records.put_together(new, out)
