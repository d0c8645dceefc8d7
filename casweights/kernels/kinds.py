"""The kinds of elements that encodings distinguish: a width, and a mantissa for floats."""

from __future__ import annotations

from enum import IntEnum


class ElementKind(IntEnum):
    """The kind of a payload's elements; the value is its code in payloads of differences."""

    PLAIN_8 = 0
    PLAIN_16 = 1
    PLAIN_32 = 2
    PLAIN_64 = 3
    E5M2 = 4
    E4M3 = 5
    FLOAT_16 = 6
    BFLOAT_16 = 7
    FLOAT_32 = 8
    FLOAT_64 = 9
    NUMBER = 10

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return (1, 2, 4, 8, 1, 1, 2, 2, 4, 8, 2)[self]

    @property
    def mantissa(self) -> int:
        """Bits of the mantissa; 0 for kinds that are not floats."""
        return (0, 0, 0, 0, 2, 3, 10, 7, 23, 52, 8)[self]
