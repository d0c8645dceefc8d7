"""Columns of a table: IDs, numbers, and bits.

Nothing is made for each row: a table may have thousands of rows, of which a reader needs one.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from operator import eq, gt
from struct import iter_unpack
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FEW = 256  # rows up to which loops are as fast as numpy
_APART = 16  # rows from one sum that is kept to the next
_DIGITS = bytes.maketrans(b"01", b"\0\1")


class Ids(Sequence[bytes]):
    """IDs by their rows."""

    @overload
    def __getitem__(self, n: int) -> bytes: ...
    @overload
    def __getitem__(self, n: slice) -> Sequence[bytes]: ...
    def __getitem__(self, n: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(n, slice):
            return [self[number] for number in range(len(self))[n]]
        return self.at(range(len(self))[n])

    @abstractmethod
    def at(self, n: int) -> bytes:
        """Return the ID in a row that exists; faster than ``[n]``."""


class IdColumn(Ids):
    """IDs of equal length, end to end, as plain bytes.

    Args:
        joined: The IDs.
        width: Bytes of each.

    Raises:
        ValueError: The bytes are not whole IDs.

    Attributes:
        width: Bytes of each ID.
    """

    def __init__(self, joined: bytes, width: int) -> None:
        if len(joined) % width:
            raise ValueError(f"{len(joined)} bytes are not IDs of {width} bytes each")
        self.width = width
        self._joined = joined

    def __len__(self) -> int:
        return len(self._joined) // self.width

    def __iter__(self) -> Iterator[bytes]:
        # The fastest way to cut thousands of them.
        return chain.from_iterable(iter_unpack(f"{self.width}s", self._joined))

    def at(self, n: int) -> bytes:
        """Return the ID in a row that exists; faster than ``[n]``."""
        return self._joined[n * self.width : (n + 1) * self.width]

    def comparable(self) -> Any:
        """Return the IDs for comparisons; numpy cuts off zeros at the end of those it returns."""
        import numpy as np  # as above

        return np.frombuffer(self._joined, f"S{self.width}")

    def beginnings(self) -> array[int]:
        """Return the first 8 bytes of each ID as a number, in the byte order of this machine."""
        return array("Q", self._joined)[:: self.width // 8]


class NumberColumn:
    """Numbers below 2**32.

    Args:
        joined: Their bytes, four of each, the lowest first.

    Raises:
        ValueError: The bytes are not whole numbers.

    Attributes:
        numbers: The numbers.
    """

    def __init__(self, joined: bytes) -> None:
        self.numbers = array("I")
        self.numbers.frombytes(joined)
        if sys.byteorder == "big":
            self.numbers.byteswap()

    @classmethod
    def encode(cls, numbers: Iterable[int]) -> bytes:
        """Return the bytes of numbers."""
        made = array("I", numbers)
        if sys.byteorder == "big":
            made.byteswap()
        return made.tobytes()

    def most(self) -> int:
        """Return the largest number; 0 without any."""
        return max(self.numbers, default=0) if self._are_few else int(self._array.max())

    def exceeds(self, limits: NumberColumn) -> bool:
        """Whether any number is above the one in the same row of a column of the same length."""
        if self._are_few:
            return any(map(gt, self.numbers, limits.numbers))
        return bool((self._array > limits._array).any())

    @property
    def _are_few(self) -> bool:
        return len(self.numbers) <= _FEW

    @property
    def _array(self) -> Any:
        import numpy as np  # as above

        return np.frombuffer(self.numbers, np.uintc)


class LinkedIds(Ids):
    """IDs of which most are in another column, too: four bytes for each of these.

    Args:
        ids: The IDs.
        among: The other column, of IDs of the same length.
    """

    def __init__(self, ids: IdColumn, among: IdColumn) -> None:
        import numpy as np  # as above

        own, others = ids.comparable(), among.comparable()
        order = others.argsort()
        places = np.searchsorted(others, own, sorter=order) % max(1, len(others))
        rows = order[places] if len(others) else places
        is_left = others[rows] != own if len(others) else np.ones(len(own), np.bool_)
        self._among, self._left = among, IdColumn(own[is_left].tobytes(), ids.width)
        rows[is_left] = len(others) + np.arange(len(self._left))
        self._rows = array("I", rows.astype(np.uintc).tobytes())

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, n: int) -> bytes:
        """Return the ID in a row that exists; faster than ``[n]``."""
        row, count = self._rows[n], len(self._among)
        return self._among.at(row) if row < count else self._left.at(row - count)


class RunningSums:
    """For each number of a column the sum of those before it, of which few are kept.

    Args:
        numbers: The column.
        first: What the sum before the first number is.

    Attributes:
        total: The sum of `first` and all numbers.
    """

    def __init__(self, numbers: bytes | array[int], first: int) -> None:
        self._numbers = numbers
        if len(numbers) <= _FEW:
            sums = array("q", accumulate(numbers, initial=first))
        else:
            import numpy as np  # as above

            found = np.full(len(numbers) + 1, first, np.int64)
            found[1:] += np.asarray(memoryview(numbers)).cumsum(dtype=np.int64)
            sums = array("q", found.tobytes())
        self.total = sums[-1]
        self._kept = sums[::_APART]

    def at(self, n: int) -> int:
        """Return the sum before a row that exists."""
        kept = n // _APART
        return self._kept[kept] + sum(self._numbers[kept * _APART : n])


def rows_of(value: int, column: bytes) -> list[int]:
    """Return the numbers of the rows that have this value in a column of bytes."""
    if len(column) <= _FEW:
        return [n for n, own in enumerate(column) if own == value]
    import numpy as np  # as above

    found: list[int] = np.flatnonzero(np.frombuffer(column, np.uint8) == value).tolist()
    return found


def encode_bits(bits: Sequence[bool]) -> bytes:
    """Return a bit for each row, beginning with the lowest of the first byte."""
    joined = "".join("1" if bit else "0" for bit in reversed(bits))
    return int(f"0{joined}", 2).to_bytes(-(-len(bits) // 8), "little")


def decode_bits(column: bytes, count: int) -> bytes:
    """Return 0 or 1 for each row."""
    if len(column) == -(-count // 8):
        digits = f"{int.from_bytes(column, 'little'):0{count}b}"[::-1] if count else ""
        if len(digits) == count:
            return digits.encode().translate(_DIGITS)
    raise ValueError("it has more or fewer bits than frames")


def sort_rows(keys: array[int]) -> tuple[array[int], array[int]]:
    """Return keys below 2**64 in order, and the number of the row that each came from."""
    if len(keys) <= _FEW:
        order = array("I", sorted(range(len(keys)), key=keys.__getitem__))
        return array("Q", map(keys.__getitem__, order)), order
    import numpy as np  # as above

    unsorted = np.frombuffer(keys, np.uint64)
    places = unsorted.argsort()
    return array("Q", unsorted[places].tobytes()), array("I", places.astype(np.uintc).tobytes())


def repeats(keys: array[int], distance: int) -> bool:
    """Whether any number is the same as the one this many rows before it."""
    if len(keys) <= _FEW:
        return any(map(eq, keys[distance:], keys))
    import numpy as np  # as above

    numbers = np.frombuffer(keys, np.uint64)
    return bool((numbers[distance:] == numbers[:-distance]).any())
