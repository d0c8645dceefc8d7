"""The `planes` encoding: floats as byte planes, each entropy-coded where that helps.

Every element is rotated left by one bit, so that the sign leaves the top byte and the exponent
of bf16 and fp32 fills it. The plane of the top bytes then has about 2.6 bits of entropy on model
weights (DFloat11, arXiv 2504.11651; ZipNN, arXiv 2411.05239), the planes of mantissa bits almost 8.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from casweights.format.zstd import compress_entropy, decompress_into

if TYPE_CHECKING:
    from casweights.format.hashing import Buffer

_HEAD = struct.Struct("<B")  # bytes per element
_PLANE = struct.Struct("<BI")  # mode, stored bytes
_STORED, _CODED = 0, 1
WIDTHS = (1, 2, 4, 8)


def encode_planes(raw: Buffer, width: int) -> bytes:
    """Encode floats of `width` bytes, little-endian.

    Args:
        raw: The chunk; its length is a multiple of `width`.
        width: Bytes per element: 1, 2, 4 or 8.
    """
    elements = np.frombuffer(raw, dtype=f"<u{width}")
    rotated = elements << 1
    rotated |= elements >> (8 * width - 1)
    heads, bodies = [], []
    for plane in reversed(range(width)):
        plain = (rotated >> (8 * plane)).astype(np.uint8)
        coded = compress_entropy(plain.data)
        better = len(coded) < len(plain)
        body = coded if better else plain.tobytes()
        heads.append(_PLANE.pack(_CODED if better else _STORED, len(body)))
        bodies.append(body)
    return b"".join((_HEAD.pack(width), *heads, *bodies))


def decode_planes(payload: Buffer, out: memoryview) -> None:
    """The inverse of `encode_planes`, into `out`.

    Raises:
        ValueError: The payload is malformed or does not fill `out` exactly.
    """
    view = memoryview(payload)
    width = view[0] if len(view) else 0
    start = _HEAD.size + width * _PLANE.size
    if width not in WIDTHS or len(out) % width or len(view) < start:
        raise ValueError("its planes' header is not valid")
    count = len(out) // width
    rotated = np.zeros(count, dtype=f"<u{width}")
    scratch = np.empty(count, dtype=np.uint8)
    for n in range(width):
        mode, size = _PLANE.unpack_from(view, _HEAD.size + n * _PLANE.size)
        body = view[start : start + size]
        start += size
        if n:
            rotated <<= 8
        rotated |= _decode_plane(mode, body, scratch)
    if start != len(view):
        raise ValueError("its planes do not fill the frame")
    elements = np.frombuffer(out, dtype=f"<u{width}")
    np.right_shift(rotated, 1, out=elements)
    rotated <<= 8 * width - 1
    elements |= rotated


def _decode_plane(mode: int, body: memoryview, scratch: np.ndarray) -> np.ndarray:
    if mode == _CODED:
        decompress_into(body, scratch.data)
        return scratch
    if mode != _STORED or len(body) != len(scratch):
        raise ValueError("one of its planes is not valid")
    return np.frombuffer(body, dtype=np.uint8)
