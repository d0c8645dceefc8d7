"""Numbers of chunks, and sets of chunks as a byte for each number."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from casweights.ids import ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.database.pack_rows import PackRows


class ChunkNumbers:
    """A number for each chunk, by which others keep in arrays what they know of chunks.

    A chunk with frames in packs has the number of its first row. Others get higher numbers when
    they are first asked for.

    Args:
        rows: The rows.
    """

    def __init__(self, rows: PackRows) -> None:
        self.rows = rows
        self._others: dict[ChunkId, int] = {}
        self._chunks: list[ChunkId] = []  # those of the others, in order

    def __len__(self) -> int:
        """Return a number that is above all others."""
        return len(self.rows) + len(self._chunks)

    def find(self, chunk: ChunkId) -> int | None:
        """Return the number of a chunk, or None if it has none yet."""
        row = self.rows.first(chunk)
        return self._others.get(chunk) if row is None else row

    def number(self, chunk: ChunkId) -> int:
        """Return the number of a chunk, which may be a new one."""
        number = self.find(chunk)
        if number is None:
            number = self._others[chunk] = len(self)
            self._chunks.append(chunk)
        return number

    def chunk(self, number: int) -> ChunkId:
        """Return the chunk that has a number."""
        count = len(self.rows)
        return self.rows.chunk(number) if number < count else self._chunks[number - count]


class ChunkSet(Collection[ChunkId]):
    """A set of chunks: a byte for each number, where a set of IDs takes 130 bytes for each chunk.

    Args:
        numbers: The numbers of chunks.
        chunks: What is in the set at first.
    """

    def __init__(self, numbers: ChunkNumbers, chunks: Iterable[ChunkId] = ()) -> None:
        self._numbers = numbers
        self._flags = bytearray(len(numbers))
        for chunk in chunks:
            self.add(chunk)

    def __contains__(self, chunk: object) -> bool:
        number = self._numbers.find(chunk) if isinstance(chunk, ChunkId) else None
        return number is not None and number < len(self._flags) and bool(self._flags[number])

    def __iter__(self) -> Iterator[ChunkId]:
        number = self._flags.find(1)
        while number >= 0:
            yield self._numbers.chunk(number)
            number = self._flags.find(1, number + 1)

    def __len__(self) -> int:
        return self._flags.count(1)

    def add(self, chunk: ChunkId) -> int | None:
        """Add a chunk; return its number if it is new in the set, otherwise None."""
        number = self._numbers.number(chunk)
        if number >= len(self._flags):
            self._flags.extend(bytes(len(self._numbers) - len(self._flags)))
        if self._flags[number]:
            return None
        self._flags[number] = 1
        return number

    def discard(self, chunk: ChunkId) -> None:
        """Remove a chunk if it is there."""
        if chunk in self:
            self._flags[self._numbers.number(chunk)] = 0
