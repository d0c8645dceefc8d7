"""Read MessagePack that may be forged, value by value, by the schema of an object.

A byte of MessagePack can expand to an object of 64 bytes in memory, so no value is decoded before
its type is known to fit the schema. Any input of n bytes needs memory in proportion to n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

T = TypeVar("T", str, bytes, int, bool)

MALFORMED = (ValueError, TypeError, LookupError, OverflowError, msgpack.UnpackException)
MAX_KEYS = 64  # keys of a map whose keys the format names
_BATCH = 4096  # values whose types are compared at once


class Unpacker:
    """Reads one encoded value, including the values nested in it, from front to back.

    Each method reads the next value and moves on. A caller calls them in the order of the schema,
    and `finish` at the end. All methods raise one of `MALFORMED` if the next value has another type
    than the method reads.

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
            max_array_len=0,  # `unpack` reads only scalars
            max_map_len=0,
            max_ext_len=0,
        )
        self._stream.feed(data)

    def finish(self) -> None:
        """Check that no bytes are left."""
        if self._stream.tell() != len(self._data):
            raise ValueError("bytes follow its end")

    def fields(
        self,
        readers: Mapping[str, Callable[[], Any]],
        *,
        optional: AbstractSet[str] = frozenset(),
        exact: bool = False,
    ) -> dict[str, Any]:
        """Read a map whose keys are known.

        Args:
            readers: For each key, the function that reads its value.
            optional: Keys that may be missing.
            exact: Refuse other keys instead of skipping them.

        Returns:
            The values by key, without skipped ones.
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

    def pairs(self, limit: int) -> range:
        """Enter a map of at most `limit` pairs, and return a range of their number.

        The caller must read the key and value of one pair in each iteration.
        """
        return _range(self._stream.read_map_header(), limit)

    def items(self, limit: int) -> range:
        """Enter an array of at most `limit` items, and return a range of their number.

        The caller must read one item in each iteration.
        """
        return _range(self._stream.read_array_header(), limit)

    def row(self, length: int) -> None:
        """Enter an array of exactly this length; the caller must read its items."""
        if (count := self._stream.read_array_header()) != length:
            raise ValueError(f"an array has {count} items instead of {length}")

    def scalar(self, kind: type[T]) -> T:
        """Read a value of exactly this type (so True is not an int)."""
        value = self.optional(kind)
        if value is None:
            raise TypeError(f"expected {kind.__name__}, got nil")
        return value

    def optional(self, kind: type[T]) -> T | None:
        """Read a value of exactly this type, or nil, which is returned as None."""
        value = self._stream.unpack()
        if value is not None and type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    def ints(self) -> list[int]:
        """Read an array of integers."""
        unpack, count = self._stream.unpack, self._stream.read_array_header()
        numbers: list[int] = []
        for start in range(0, count, _BATCH):
            batch = [unpack() for _ in range(min(_BATCH, count - start))]
            if set(map(type, batch)) != {int}:
                raise TypeError("an array of integers contains another type")
            numbers += batch
        return numbers

    def tree(self, elements: int, levels: int) -> Any:
        """Read a value of nested maps with str keys, arrays and scalars.

        Args:
            elements: Maximum number of keys and values below the value, in total.
            levels: Maximum depth of nesting.
        """
        return _Tree(self._data, self._stream, elements).read(levels)


def _range(count: int, limit: int) -> range:
    if count > limit:
        raise ValueError(f"a map or array has {count} entries, above the limit of {limit}")
    return range(count)


class _Tree:
    """Reads nested values, and counts down how many more may follow."""

    def __init__(self, data: bytes, stream: Any, left: int) -> None:
        self._data = data
        self._stream = stream
        self._left = left

    def read(self, levels: int) -> Any:
        """Read the next value, with at most `levels` levels of nesting below it."""
        # msgpack cannot report the type of the next value without decoding it, so look at its byte.
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
            raise ValueError("it has too many values")
        return items

    def _key(self) -> str:
        key = self._stream.unpack()
        if type(key) is not str:
            raise TypeError(f"expected str as a key, got {type(key).__name__}")
        return key
