"""Split elements into planes of bytes, the highest byte first, and join them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels.reference.bits import require_writable

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_WIDTHS = (1, 2, 4, 8)


def split_planes(elements: Buffer, planes: Buffer, width: int, /) -> None:
    """Rotate elements left by one bit and split them into planes.

    Args:
        elements: Elements of `width` bytes, little-endian.
        planes: Receives the planes, concatenated; as large as `elements`.
        width: Bytes of an element: 1, 2, 4 or 8.
    """
    require_writable(planes)
    bits, rows = _open(elements, planes, width)
    rotated = bits << 1 | bits >> (8 * width - 1)
    rows[:] = _bytes_of(rotated)[:, ::-1].T


def join_planes(planes: Buffer, elements: Buffer, width: int, /) -> None:
    """Join the planes that `split_planes` wrote.

    Args:
        planes: The planes, concatenated.
        elements: Receives the elements; as large as `planes`.
        width: Bytes of an element: 1, 2, 4 or 8.
    """
    require_writable(elements)
    bits, rows = _open(elements, planes, width)
    _bytes_of(bits)[:] = rows[::-1].T
    bits[:] = bits >> 1 | bits << (8 * width - 1)


def _open(elements: Buffer, planes: Buffer, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return views of the elements and of the planes, one row per plane."""
    size = memoryview(elements).nbytes
    if width not in _WIDTHS or size % width or memoryview(planes).nbytes != size:
        raise ValueError(
            "planes need elements of 1, 2, 4 or 8 bytes and two buffers of the same size"
        )
    rows = np.frombuffer(planes, np.uint8).reshape(width, -1)
    return np.frombuffer(elements, f"<u{width}"), rows


def _bytes_of(elements: np.ndarray) -> np.ndarray:
    """Return a view of the bytes of each element, the lowest first."""
    return elements.view(np.uint8).reshape(-1, elements.itemsize)
