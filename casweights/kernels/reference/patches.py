"""Which elements of a buffer changed, and putting such changes in place."""

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
    """Find the elements that differ, bit by bit.

    Args:
        old: Elements of `width` bytes, anywhere in memory.
        new: As many of them.
        width: Bytes of an element: 1, 2, 4 or 8.

    Returns:
        The positions of the elements that differ, in elements, ascending, as little-endian uint32;
        and the elements of `new` at these positions. None if both together take more bytes than
        all of `new` does.

    Raises:
        ValueError: The sizes differ, are no multiples of `width`, or are those of too many
            elements for their positions; or there are no elements of this width.
    """
    size = memoryview(old).nbytes
    if not _holds_elements(size, width) or memoryview(new).nbytes != size:
        raise ValueError("changes are those of as many elements, of 1, 2, 4 or 8 bytes")
    before, after = np.frombuffer(old, f"<u{width}"), np.frombuffer(new, f"<u{width}")
    positions = np.flatnonzero(before != after)
    if len(positions) * (_POSITION.itemsize + width) > size:
        return None
    return positions.astype(_POSITION).tobytes(), bytearray(after[positions].tobytes())


def swap(memory: Buffer, positions: Buffer, values: Buffer, width: int, /) -> None:
    """Exchange elements with others, in place: to do it again takes it back.

    Args:
        memory: Elements of `width` bytes. No two of the three buffers overlap.
        positions: Which of them to exchange, ascending, as little-endian uint32.
        values: An element for each position, which becomes what was there.
        width: Bytes of an element: 1, 2, 4 or 8.

    Raises:
        ValueError: The positions do not ascend or are out of range, or sizes do not fit; nothing
            was exchanged.
    """
    require_writable(memory)
    require_writable(values)
    count, rest = divmod(memoryview(positions).nbytes, _POSITION.itemsize)
    size = memoryview(memory).nbytes
    if not _holds_elements(size, width) or rest or memoryview(values).nbytes != width * count:
        raise ValueError("a patch takes elements of 1, 2, 4 or 8 bytes, and one for each position")
    places = np.frombuffer(positions, _POSITION)
    if count and ((places[1:] <= places[:-1]).any() or places[-1] >= size // width):
        raise ValueError("the positions of a patch have to ascend, and to lie in what it is for")
    elements, others = np.frombuffer(memory, f"<u{width}"), np.frombuffer(values, f"<u{width}")
    before = elements[places]
    elements[places] = others
    others[:] = before


def _holds_elements(size: int, width: int) -> bool:
    return width in _WIDTHS and size % width == 0 and size // width <= _MAX_ELEMENTS
