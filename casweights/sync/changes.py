"""Changes of a chunk in memory: the positions and the new values of elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from casweights.kernels import changes, swap

if TYPE_CHECKING:
    from collections.abc import Iterable

POSITION = np.dtype("<u4")  # index of an element within its chunk

T = TypeVar("T")


class ChunkRef(NamedTuple, Generic[T]):
    """A chunk of a tensor.

    Attributes:
        tensor: The tensor, or its name.
        number: The chunk's index in the tensor, from 0.
    """

    tensor: T
    number: int


class ElementChange:
    """New values for elements of a chunk.

    `exchange` swaps them with the values in the chunk, so that a second `exchange` undoes it.

    Args:
        positions: Positions of the elements in the chunk, as little-endian 32-bit numbers; None
            if the change replaces all elements.
        values: The new values, in memory that the change may write to.
        width: Bytes of an element.
    """

    __slots__ = ("positions", "values", "width")

    def __init__(self, positions: bytes | None, values: bytearray | memoryview, width: int) -> None:
        self.positions = positions
        self.values = values
        self.width = width

    @property
    def count(self) -> int:
        """Number of elements that the change exchanges."""
        return len(self.values) // self.width

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the change occupies."""
        return len(self.values) + len(self.positions or b"")

    def differing(self, memory: memoryview) -> int:
        """Number of elements of a chunk that making this change would alter."""
        if self.positions is not None:  # only elements that differ have positions
            return self.count
        kept, there = (np.frombuffer(data, f"<u{self.width}") for data in (self.values, memory))
        return int(np.count_nonzero(kept != there))

    def exchange(self, memory: memoryview) -> None:
        """Write the values into a chunk, and keep the chunk's previous values instead."""
        if self.positions is not None:
            swap(memory, self.positions, self.values, self.width)
            return
        before = bytearray(memory)
        memory[:] = self.values
        self.values = before

    def write(self, memory: memoryview) -> None:
        """Write the values into a chunk, and leave the change itself as it is."""
        if self.positions is not None:
            swap(memory, self.positions, bytearray(self.values), self.width)
        else:
            memory[:] = self.values


def find_change(old: memoryview, new: memoryview, width: int) -> ElementChange | None:
    """Return the change that turns `old` into `new`; None if they are equal, bit for bit."""
    found = changes(old, new, width)
    if found is None:  # positions would need more memory than the chunk itself
        return ElementChange(None, bytearray(new), width)
    positions, values = found
    return ElementChange(positions, values, width) if positions else None


def take_back(memory: memoryview, done: Iterable[ElementChange]) -> None:
    """Undo changes in a copy of the chunk in which they were made, the last one first.

    The changes themselves stay as they are.
    """
    for change in reversed(list(done)):
        change.write(memory)
