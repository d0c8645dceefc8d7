"""Map dtypes to the element kinds of the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.kernels.kinds import ElementKind

if TYPE_CHECKING:
    from casweights.format.dtypes import DType


_FLOATS = {
    "F8_E5M2": ElementKind.E5M2,
    "F8_E5M2FNUZ": ElementKind.E5M2,
    "F8_E4M3": ElementKind.E4M3,
    "F8_E4M3FNUZ": ElementKind.E4M3,
    "F16": ElementKind.FLOAT_16,
    "BF16": ElementKind.BFLOAT_16,
    "F32": ElementKind.FLOAT_32,
    "C64": ElementKind.FLOAT_32,  # two of them
    "F64": ElementKind.FLOAT_64,
}
_PLAIN = {
    8: ElementKind.PLAIN_8,
    16: ElementKind.PLAIN_16,
    32: ElementKind.PLAIN_32,
    64: ElementKind.PLAIN_64,
}


def kind_of(dtype: DType) -> ElementKind:
    """Return the kind of a dtype's elements; packed types are treated as bytes."""
    return _FLOATS.get(dtype.code) or _PLAIN.get(dtype.bits, ElementKind.PLAIN_8)
