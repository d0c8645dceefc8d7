"""Kinds of elements, as the encodings see them: a width, and a mantissa if they are floats."""

from __future__ import annotations

from enum import IntEnum


class ElementKind(IntEnum):
    """The code by which difference payloads name their elements."""

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

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return (1, 2, 4, 8, 1, 1, 2, 2, 4, 8)[self]

    @property
    def mantissa(self) -> int:
        """Bits below the exponent of a float; 0 for what is no float."""
        return (0, 0, 0, 0, 2, 3, 10, 7, 23, 52)[self]
