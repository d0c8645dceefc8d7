"""MessagePack that others may have forged: read value by value, as the schema of an object says.

A byte of MessagePack can stand for an object of 64 bytes in memory, so nothing is decoded before it
is known to belong where it is. Decoding n bytes takes memory in proportion to n, whatever they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

T = TypeVar("T", str, bytes, int, bool)

MALFORMED = (ValueError, TypeError, LookupError, OverflowError, msgpack.UnpackException)
MAX_KEYS = 64  # of a map whose keys the format names
_BATCH = 4096  # values whose types are compared in one go


class Unpacker:
    """Reads one value, and whatever it contains, from front to back.

    All methods raise one of `MALFORMED` where the bytes hold something else than what is asked for.

    Args:
        data: The encoded value.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        size = max(1, len(data))
        self._stream = msgpack.Unpacker(
            max_buffer_size=size,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=0,  # `unpack` is for scalars alone
            max_map_len=0,
            max_ext_len=0,
        )
        self._stream.feed(data)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._stream.tell() != len(self._data):
            raise ValueError("bytes follow its end")

    def fields(
        self,
        readers: Mapping[str, Callable[[], Any]],
        *,
        optional: AbstractSet[str] = frozenset(),
        exact: bool = False,
    ) -> dict[str, Any]:
        """A map whose keys have a meaning.

        Args:
            readers: Reads the value, for each key.
            optional: Keys that may be missing.
            exact: Refuse other keys, rather than pass over their values.
        """
        fields: dict[str, Any] = {}
        for _ in self.pairs(MAX_KEYS):
            key = self.scalar(str)
            if key in readers:
                fields[key] = readers[key]()
            elif exact:
                raise ValueError(f"it has the unknown key {key!r:.60}")
            else:
                self._stream.skip()
        if missing := readers.keys() - fields.keys() - optional:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return fields

    def pairs(self, most: int) -> range:
        """One step for each pair of a map; its key and value must be read before the next step."""
        return _steps(self._stream.read_map_header(), most)

    def items(self, most: int) -> range:
        """One step for each item of an array, which must be read before the next step."""
        return _steps(self._stream.read_array_header(), most)

    def row(self, length: int) -> None:
        """Enter an array of exactly this length."""
        if (count := self._stream.read_array_header()) != length:
            raise ValueError(f"an array has {count} items instead of {length}")

    def scalar(self, kind: type[T]) -> T:
        """A value of exactly this type (so that True is no int)."""
        value = self.optional(kind)
        if value is None:
            raise TypeError(f"nothing where {kind.__name__} belongs")
        return value

    def optional(self, kind: type[T]) -> T | None:
        """The same, or None."""
        value = self._stream.unpack()
        if value is not None and type(value) is not kind:
            raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
        return value

    def ints(self) -> list[int]:
        """An array of integers."""
        unpack, count = self._stream.unpack, self._stream.read_array_header()
        numbers: list[int] = []
        for start in range(0, count, _BATCH):
            batch = [unpack() for _ in range(min(_BATCH, count - start))]
            if set(map(type, batch)) != {int}:
                raise TypeError("an array of integers holds something else")
            numbers += batch
        return numbers

    def tree(self, elements: int, levels: int) -> Any:
        """Nested maps with str keys, arrays and scalars.

        Args:
            elements: How many keys and values there may be in all.
            levels: How many of them may lie in each other.
        """
        return _Tree(self._data, self._stream, elements).read(levels)


def _steps(count: int, most: int) -> range:
    if count > most:
        raise ValueError(f"{count} values where {most} at most belong")
    return range(count)


class _Tree:
    """Reads nested values; counts them down."""

    def __init__(self, data: bytes, stream: Any, left: int) -> None:
        self._data = data
        self._stream = stream
        self._left = left

    def read(self, levels: int) -> Any:
        kind = self._data[self._stream.tell()]
        is_map = 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF)
        is_array = 0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD)
        if levels < 0:
            raise ValueError("it is nested too deeply")
        if is_map:
            count = self._count(self._stream.read_map_header(), 2)
            return {self._key(): self.read(levels - 1) for _ in range(count)}
        if is_array:
            count = self._count(self._stream.read_array_header(), 1)
            return [self.read(levels - 1) for _ in range(count)]
        return self._stream.unpack()

    def _count(self, items: int, elements: int) -> int:
        self._left -= items * elements
        if self._left < 0:
            raise ValueError("it holds too many values")
        return items

    def _key(self) -> str:
        key = self._stream.unpack()
        if type(key) is not str:
            raise TypeError(f"a key is {type(key).__name__}")
        return key
