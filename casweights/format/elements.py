"""Kinds of elements, as the encodings see them: so many bytes, and a float's exponent or none."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.format.dtypes import DType


class Kind(IntEnum):
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


_FLOATS = {
    "F8_E5M2": Kind.E5M2,
    "F8_E5M2FNUZ": Kind.E5M2,
    "F8_E4M3": Kind.E4M3,
    "F8_E4M3FNUZ": Kind.E4M3,
    "F16": Kind.FLOAT_16,
    "BF16": Kind.BFLOAT_16,
    "F32": Kind.FLOAT_32,
    "C64": Kind.FLOAT_32,  # two of them
    "F64": Kind.FLOAT_64,
}
_PLAIN = {8: Kind.PLAIN_8, 16: Kind.PLAIN_16, 32: Kind.PLAIN_32, 64: Kind.PLAIN_64}


def kind_of(dtype: DType) -> Kind:
    """The kind of a dtype's elements; packed ones are taken as bytes."""
    return _FLOATS.get(dtype.code) or _PLAIN.get(dtype.bits, Kind.PLAIN_8)
