"""Changes of a chunk in memory: which elements differ, and what they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels import changes, swap

if TYPE_CHECKING:
    from collections.abc import Iterable

POSITION = np.dtype("<u4")


class Change:
    """Elements to exchange in a chunk. Made once, it is what undoes itself.

    Args:
        positions: Of the elements, as little-endian 32-bit numbers; None for all of them.
        values: The elements, in memory that the change may write to.
        width: Bytes of an element.
    """

    __slots__ = ("positions", "values", "width")

    def __init__(self, positions: bytes | None, values: bytearray | memoryview, width: int) -> None:
        self.positions = positions
        self.values = values
        self.width = width

    @property
    def count(self) -> int:
        """How many elements it exchanges."""
        return len(self.values) // self.width

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return len(self.values) + len(self.positions or b"")

    def differing(self, memory: memoryview) -> int:
        """How many elements of a chunk it makes others. What has positions was found to do so."""
        if self.positions is not None:
            return self.count
        kept, there = (np.frombuffer(data, f"<u{self.width}") for data in (self.values, memory))
        return int(np.count_nonzero(kept != there))

    def exchange(self, memory: memoryview) -> None:
        """Put the values into a chunk, and keep those that were there."""
        if self.positions is not None:
            swap(memory, self.positions, self.values, self.width)
            return
        before = bytearray(memory)
        memory[:] = self.values
        self.values = before

    def write(self, memory: memoryview) -> None:
        """Put the values into a chunk, and stay as it is."""
        if self.positions is not None:
            swap(memory, self.positions, bytearray(self.values), self.width)
        else:
            memory[:] = self.values


def find_change(old: memoryview, new: memoryview, width: int) -> Change | None:
    """What makes `new` of `old`; None if they are equal. Bits are compared, not numbers."""
    found = changes(old, new, width)
    if found is None:
        return Change(None, bytearray(new), width)
    positions, values = found
    return Change(positions, values, width) if positions else None


def take_back(memory: memoryview, done: Iterable[Change]) -> None:
    """Write what changes that were made have kept, the last one first, into a copy of a chunk."""
    for change in reversed(list(done)):
        change.write(memory)
