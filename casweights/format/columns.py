"""Columns of a table: IDs, among which rows are found, numbers, and bits.

Nothing is made for each row: a table may have thousands of rows, of which a reader needs one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, chain
from operator import gt
from struct import iter_unpack
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_KEY = 8  # bytes of an ID that a search goes by
_ALIKE = 8  # IDs that may begin with the same bytes: the frames of a chunk
_FEW = 256  # rows up to which loops are as fast as numpy
_DIGITS = bytes.maketrans(b"01", b"\0\1")


class IdColumn(Sequence[bytes]):
    """IDs of equal length, end to end, as plain bytes.

    The first search sorts them, which takes a fifth of the time of a dict with an entry for each.

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

    @classmethod
    def end_to_end(cls, columns: Sequence[IdColumn]) -> IdColumn:
        """Return the rows of several columns of one width, at least one."""
        return cls(b"".join(column._joined for column in columns), columns[0].width)

    def __len__(self) -> int:
        return len(self._joined) // self.width

    @overload
    def __getitem__(self, n: int) -> bytes: ...
    @overload
    def __getitem__(self, n: slice) -> Sequence[bytes]: ...
    def __getitem__(self, n: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(n, slice):
            return [self[number] for number in range(len(self))[n]]
        return self.at(range(len(self))[n])

    def __iter__(self) -> Iterator[bytes]:
        # The fastest way to cut thousands of them.
        return chain.from_iterable(iter_unpack(f"{self.width}s", self._joined))

    def find(self, wanted: bytes) -> list[int]:
        """Return the numbers of the rows that have this ID, in order."""
        if self._sorted is None:
            return self._rows.get(wanted, [])
        keys, numbers = self._sorted
        key = keys.dtype.type(int.from_bytes(wanted[:_KEY], "little"))
        place = int(keys.searchsorted(key))
        found: list[int] = []
        while place < len(numbers) and keys[place] == key:
            if self.at(numbers[place]) == wanted:
                found.append(numbers[place])
            place += 1
        found.sort()
        return found

    def at(self, n: int) -> bytes:
        """Return the ID in a row that exists; faster than ``[n]``."""
        return self._joined[n * self.width : (n + 1) * self.width]

    @cached_property
    def _sorted(self) -> tuple[Any, array[int]] | None:
        """The first bytes of the IDs as numbers, sorted, and the number of the row of each.

        None if many IDs begin with the same bytes: they may be forged to make searches slow.
        """
        import numpy as np  # commands that move no data must not wait for this import

        keys = np.frombuffer(self._joined, "<u8")[:: self.width // _KEY].astype(np.uint64)
        order = keys.argsort()
        keys = keys[order]
        if (keys[_ALIKE:] == keys[:-_ALIKE]).any():
            return None
        return keys, array("I", order.astype(np.uintc).tobytes())

    @cached_property
    def _rows(self) -> dict[bytes, list[int]]:
        """The numbers of the rows by their ID."""
        rows: dict[bytes, list[int]] = {}
        for number, own in enumerate(self):
            rows.setdefault(own, []).append(number)
        return rows


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


def running_sums(numbers: bytes | array[int], first: int) -> Sequence[int]:
    """Return for each number the sum of `first` and the numbers before it, and then that of all."""
    if len(numbers) <= _FEW:
        return list(accumulate(numbers, initial=first))
    import numpy as np  # as above

    sums = np.full(len(numbers) + 1, first, np.int64)
    sums[1:] += np.asarray(memoryview(numbers)).cumsum(dtype=np.int64)
    return array("q", sums.tobytes())


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
