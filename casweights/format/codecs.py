"""Encodings of chunks: the registry of codes, and the choice between them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from casweights.config import KiB
from casweights.format.elements import kind_of
from casweights.format.zstd import compress, decompress_into

if TYPE_CHECKING:
    from casweights.config import Compression
    from casweights.format.dtypes import DType
    from casweights.system.buffers import Buffer


class Encoding(IntEnum):
    """How a frame stores its chunk: the code in packs' indexes."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DENSE = 3
    SPARSE = 4


_DIFFERENCES = (Encoding.DENSE, Encoding.SPARSE)
_SAMPLE = 64 * KiB  # of a chunk, on which encodings are compared
_WORTHWHILE = 0.97  # a gain below 3 % is not worth decoding for
_FAST_WORTHWHILE = 0.5  # of the bytes, for `fast`
_FAST_LEVEL, _AUTO_LEVEL, _SMALL_LEVEL = 1, 3, 12

# Shares of changed elements. Below the first, `dense` is smaller only where the changes are of
# random sizes; above the last, `sparse` is hardly ever. Both encodings at every share are what
# `tools/bench/run encodings --only densities` prints.
_SURELY_SPARSE, _SURELY_DENSE = 0.02, 0.3
_RANDOM_CHANGE_BYTES = 2  # that `sparse` takes for a change of about random size
_BLOCKS, _BLOCK = 64, 4096  # blocks, and elements in each, of the sample that estimates it

Encoded = tuple[Encoding, "Buffer"]


def is_difference(encoding: int) -> bool:
    """Whether frames of this encoding need a base."""
    return encoding in _DIFFERENCES


def encode(raw: memoryview, dtype: DType, compression: Compression) -> Encoded:
    """Choose an encoding that needs no base, and encode a chunk.

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


def encode_difference(raw: Buffer, base: Buffer, dtype: DType) -> Encoded | None:
    """Encode a chunk as its difference from another one.

    Args:
        raw: The chunk's bytes.
        base: The other one's, as many.
        dtype: The element type of both.

    Returns:
        The smaller one of `sparse` and `dense`; None if that is no smaller than the chunk.
    """
    from casweights.kernels import dense_encode, sparse_encode

    kind = kind_of(dtype)
    share = _changed_share(raw, base, kind.width)
    found: list[Encoded] = []
    if share < _SURELY_DENSE:
        found.append((Encoding.SPARSE, sparse_encode(base, raw, kind)))
    if (
        share > _SURELY_SPARSE
        or len(found[0][1]) > _RANDOM_CHANGE_BYTES * share * len(raw) / kind.width + _BLOCK
    ):
        found.append((Encoding.DENSE, dense_encode(base, raw, kind)))
    best = min(found, key=lambda item: len(item[1]))
    return best if len(best[1]) < len(raw) else None


def _changed_share(raw: Buffer, base: Buffer, width: int) -> float:
    """The share of elements that differ, on blocks from all over the chunk."""
    import numpy as np

    new, old = (np.frombuffer(data, f"<u{width}") for data in (raw, base))
    if len(new) > _BLOCKS * _BLOCK:
        step = len(new) // _BLOCKS
        new, old = (a[: _BLOCKS * step].reshape(_BLOCKS, step)[:, :_BLOCK] for a in (new, old))
    return np.count_nonzero(new != old) / max(1, new.size)


def decode(encoding: int, payload: Buffer, out: memoryview) -> None:
    """Decode a frame's stored bytes into `out`, which has the chunk's raw size.

    For a difference, `out` holds the base and becomes the chunk.

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
        from casweights.format.planes import decode_planes

        decode_planes(payload, out)
    elif encoding == Encoding.SPARSE:
        from casweights.kernels import sparse_decode

        sparse_decode(payload, out)
    elif encoding == Encoding.DENSE:
        from casweights.kernels import dense_decode

        dense_decode(payload, out)
    else:
        raise ValueError(f"its encoding {encoding} is unknown: a newer casweights may know it")
