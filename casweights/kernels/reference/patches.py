"""Find the elements of a buffer that changed, and exchange elements in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels.reference.bits import require_writable

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_WIDTHS = (1, 2, 4, 8)
_POSITION = np.dtype("<u4")
_MAX_ELEMENTS = (1 << 32) - 2


def changes(old: Buffer, new: Buffer, width: int, /) -> tuple[bytes, bytearray] | None:
    """Find the elements whose bits differ.

    Args:
        old: Elements of `width` bytes, at any alignment.
        new: The same number of elements.
        width: Bytes of an element: 1, 2, 4 or 8.

    Returns:
        The positions of the elements that differ, in elements, ascending, as little-endian uint32;
        and the elements of `new` at these positions. None if both together have more bytes than
        `new`.

    Raises:
        ValueError: The sizes differ or are not multiples of `width`, the width is not one of the
            four, or there are too many elements for positions of 32 bits.
    """
    size = memoryview(old).nbytes
    if not _holds_elements(size, width) or memoryview(new).nbytes != size:
        raise ValueError(
            "changes need two buffers of the same number of elements, below 2^32 - 1, "
            "of 1, 2, 4 or 8 bytes"
        )
    before, after = np.frombuffer(old, f"<u{width}"), np.frombuffer(new, f"<u{width}")
    positions = np.flatnonzero(before != after)
    if len(positions) * (_POSITION.itemsize + width) > size:
        return None
    return positions.astype(_POSITION).tobytes(), bytearray(after[positions].tobytes())


def swap(memory: Buffer, positions: Buffer, values: Buffer, width: int, /) -> None:
    """Exchange elements of a buffer with others in place; a second call undoes the first.

    Args:
        memory: Elements of `width` bytes. No two of the three buffers overlap.
        positions: Positions of the elements to exchange, ascending, as little-endian uint32.
        values: The new element for each position; receives the old ones.
        width: Bytes of an element: 1, 2, 4 or 8.

    Raises:
        TypeError: `memory` or `values` is read-only.
        ValueError: The positions do not ascend or are out of range, or the sizes do not match.
            Nothing was exchanged.
    """
    require_writable(memory)
    require_writable(values)
    count, rest = divmod(memoryview(positions).nbytes, _POSITION.itemsize)
    size = memoryview(memory).nbytes
    if not _holds_elements(size, width) or rest or memoryview(values).nbytes != width * count:
        raise ValueError(
            "a patch needs fewer than 2^32 - 1 elements, of 1, 2, 4 or 8 bytes, "
            "and one value for each position"
        )
    places = np.frombuffer(positions, _POSITION)
    if count and ((places[1:] <= places[:-1]).any() or places[-1] >= size // width):
        raise ValueError("the positions of a patch must ascend and be below the number of elements")
    elements, others = np.frombuffer(memory, f"<u{width}"), np.frombuffer(values, f"<u{width}")
    before = elements[places]
    elements[places] = others
    others[:] = before


def _holds_elements(size: int, width: int) -> bool:
    return width in _WIDTHS and size % width == 0 and size // width <= _MAX_ELEMENTS
