"""Rounding of elements to 16 bits, so that casts of a tensor have the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from casweights.format.dtypes import DType

    Elements = NDArray[np.unsignedinteger[Any]]

_QUIET = 0x40  # the mantissa bit of a BF16 that keeps a NaN one


def is_rounded(dtype: DType) -> bool:
    """Whether samples of a dtype are floats, namely the nearest BF16."""
    return dtype.code in _FLOATS


def rounded(elements: Elements, dtype: DType) -> NDArray[np.uint16]:
    """Return elements as samples.

    Args:
        elements: The elements' bits, as unsigned integers of the dtype's width.
        dtype: Their type.

    Returns:
        Floats as the bits of the nearest BF16; of complex numbers, the real part. Everything else
        as its 16-bit words, combined by exclusive or, so that equal small integers are equal in
        all widths.
    """
    if dtype.code in _SMALL_FLOATS:
        return _SMALL_FLOATS[dtype.code][elements]
    if dtype.code == "F16":
        return _bf16(elements.view(np.float16).astype(np.float32).view(np.uint32))
    if dtype.code == "F64":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return _bf16(elements.view(np.float64).astype(np.float32).view(np.uint32))
    if dtype.code in ("F32", "C64"):
        return _bf16(elements.astype(np.uint32))
    words, found = elements, elements.astype(np.uint16)
    for shift in range(16, 8 * dtype.width, 16):
        found ^= (words >> words.dtype.type(shift)).astype(np.uint16)
    return found


def _bf16(bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Round the bits of F32 to BF16: to the nearest, and to the even one of two."""
    high = bits >> np.uint32(16)
    nearest = (bits + np.uint32(0x7FFF) + (high & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)
    return np.where(is_nan, high | np.uint32(_QUIET), nearest).astype(np.uint16)


def _small_floats(
    mantissa: int, bias: int, *, infinities: bool, nans: set[int]
) -> NDArray[np.uint16]:
    """Return the BF16 of each float of 8 bits, all of which are exact.

    Args:
        mantissa: Bits of the mantissa.
        bias: Of the exponent.
        infinities: Whether the highest exponent is that of infinities and NaNs.
        nans: Other bits that are no number.
    """
    values = np.empty(256, np.float32)
    for bits in range(256):
        exponent, fraction = (bits & 0x7F) >> mantissa, bits & ((1 << mantissa) - 1)
        size = fraction / (1 << mantissa) * 2.0 ** (1 - bias)
        if exponent:
            size = (1 + fraction / (1 << mantissa)) * 2.0 ** (exponent - bias)
        if infinities and exponent == (0x7F >> mantissa):
            size = float("nan") if fraction else float("inf")
        values[bits] = -size if bits & 0x80 else size
    for bits in nans:
        values[bits] = float("nan")
    found = _bf16(values.view(np.uint32))
    found.flags.writeable = False
    return found


_SMALL_FLOATS = {
    "F8_E4M3": _small_floats(3, 7, infinities=False, nans={0x7F, 0xFF}),
    "F8_E5M2": _small_floats(2, 15, infinities=True, nans=set()),
    "F8_E4M3FNUZ": _small_floats(3, 8, infinities=False, nans={0x80}),
    "F8_E5M2FNUZ": _small_floats(2, 16, infinities=False, nans={0x80}),
}
_FLOATS = {*_SMALL_FLOATS, "F16", "BF16", "F32", "C64", "F64"}
