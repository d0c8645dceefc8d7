"""The `planes` encoding: floats as byte planes, each entropy-coded if that makes it smaller.

Every element is rotated left by one bit, so that the exponent of bf16 and fp32 fills the top byte
and the sign moves to the lowest bit. On model weights, a byte of the top plane then has about 2.6
bits of entropy (DFloat11, arXiv 2504.11651; ZipNN, arXiv 2411.05239), and one of the other planes
almost 8.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from casweights.format.zstd import compress_entropy, decompress_into
from casweights.kernels import join_planes, split_planes

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_HEAD = struct.Struct("<B")  # bytes per element
_PLANE = struct.Struct("<BI")  # mode, stored bytes
_STORED, _CODED = 0, 1
WIDTHS = (1, 2, 4, 8)  # bytes of an element


def encode_planes(raw: Buffer, width: int) -> bytes:
    """Encode a chunk of little-endian floats.

    Args:
        raw: The chunk; its length is a multiple of `width`.
        width: Bytes per element: 1, 2, 4 or 8.
    """
    planes = bytearray(len(raw))
    split_planes(raw, planes, width)
    heads, bodies = [], []
    for plane in _rows(memoryview(planes), width):
        coded = compress_entropy(plane)
        better = len(coded) < len(plane)
        body: Buffer = coded if better else plane
        heads.append(_PLANE.pack(_CODED if better else _STORED, len(body)))
        bodies.append(body)
    return b"".join((_HEAD.pack(width), *heads, *bodies))


def decode_planes(payload: Buffer, out: memoryview) -> None:
    """Decode the result of `encode_planes` into `out`.

    Raises:
        ValueError: The payload is malformed or does not fill `out` exactly.
    """
    view = memoryview(payload)
    width = view[0] if len(view) else 0
    start = _HEAD.size + width * _PLANE.size
    if width not in WIDTHS or len(out) % width or len(view) < start:
        raise ValueError("its planes' header is not valid")
    planes = bytearray(len(out))
    for n, plane in enumerate(_rows(memoryview(planes), width)):
        mode, size = _PLANE.unpack_from(view, _HEAD.size + n * _PLANE.size)
        _decode_plane(mode, view[start : start + size], plane)
        start += size
    if start != len(view):
        raise ValueError("its planes do not fill the frame")
    join_planes(planes, out, width)


def _rows(planes: memoryview, width: int) -> list[memoryview]:
    """Return views of the `width` planes, the most significant one first."""
    count = len(planes) // width
    return [planes[n * count : (n + 1) * count] for n in range(width)]


def _decode_plane(mode: int, body: memoryview, out: memoryview) -> None:
    if mode == _CODED:
        decompress_into(body, out)
    elif mode == _STORED and len(body) == len(out):
        out[:] = body
    else:
        raise ValueError("one of its planes is not valid")
