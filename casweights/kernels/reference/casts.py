"""Cast floats of one type to another, through F32."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference.bits import require_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casweights.system.buffers import Buffer

    Bits = NDArray[np.int64]

_INFINITY, _NAN, _SIGN = 0x7F80_0000, 0x7FC0_0000, 0x8000_0000  # of F32
_BLOCK = 1 << 16  # elements


class _Type(NamedTuple):
    """A type of floats.

    Attributes:
        mantissa: Bits of the mantissa.
        bias: Of the exponent.
        top: The largest finite magnitude.
        beyond: What is larger: infinity, or `top` in types without one.
        nan: The NaN that every NaN becomes.
    """

    mantissa: int
    bias: int
    top: int
    beyond: int
    nan: int


_TYPES = {
    ElementKind.E5M2: _Type(2, 15, 0x7B, 0x7C, 0x7F),
    ElementKind.E4M3: _Type(3, 7, 0x7E, 0x7E, 0x7F),
    ElementKind.FLOAT_16: _Type(10, 15, 0x7BFF, 0x7C00, 0x7E00),
    ElementKind.BFLOAT_16: _Type(7, 127, 0x7F7F, 0x7F80, 0x7FC0),
    ElementKind.FLOAT_32: _Type(23, 127, 0x7F7F_FFFF, _INFINITY, _NAN),
}


def cast(elements: Buffer, kind: int, out: Buffer, out_kind: int, toward_zero: bool, /) -> None:
    """Cast floats.

    Args:
        elements: The floats.
        kind: Their kind: E5M2, E4M3, F16, BF16 or F32.
        out: Receives as many floats.
        out_kind: Their kind.
        toward_zero: Whether they are cut off; otherwise they are rounded to the nearest, and to the
            even one of two.

    Raises:
        ValueError: A kind is another one, or `out` has another number of elements.
    """
    require_writable(out)
    if not {kind, out_kind} <= _TYPES.keys() or _count(elements, kind) != _count(out, out_kind):
        raise ValueError("casts need floats of up to 32 bits, and two buffers of as many elements")
    source = np.frombuffer(elements, f"<u{ElementKind(kind).width}")
    target = np.frombuffer(out, f"<u{ElementKind(out_kind).width}")
    for start in range(0, len(source), _BLOCK):
        bits = _widened(source[start : start + _BLOCK].astype(np.int64), ElementKind(kind))
        rounded = _narrowed(bits, ElementKind(out_kind), toward_zero)
        target[start : start + _BLOCK] = rounded.astype(target.dtype)


def _count(elements: Buffer, kind: int) -> float:
    return memoryview(elements).nbytes / ElementKind(kind).width


def _widened(elements: Bits, kind: ElementKind) -> Bits:
    """Return the bits of F32."""
    own, width = _TYPES[kind], 8 * kind.width
    magnitude, sign = elements & ((1 << width - 1) - 1), elements >> (width - 1)
    normal = (magnitude << (23 - own.mantissa)) + ((127 - own.bias) << 23)
    # A subnormal is an integer times the smallest step.
    steps = magnitude.astype(np.float32).view(np.uint32).astype(np.int64)
    small = np.where(magnitude > 0, steps - ((own.bias + own.mantissa - 1) << 23), 0)
    bits = np.where(magnitude >> own.mantissa, normal, small)
    if own.bias == 127:  # the exponents are those of F32
        bits = normal
    elif own.beyond > own.top:
        bits = np.where(magnitude == own.beyond, _INFINITY, bits)
    is_nan = magnitude > own.beyond
    return np.where(is_nan, _NAN, bits | sign << 31)


def _narrowed(bits: Bits, kind: ElementKind, toward_zero: bool) -> Bits:
    """Return the elements that the bits of F32 are rounded to."""
    own, width = _TYPES[kind], 8 * kind.width
    magnitude = bits & (_SIGN - 1)
    exponent, least = magnitude >> 23, 128 - own.bias
    is_small = exponent < least
    more = np.where(is_small, least - np.maximum(exponent, 1), 0)
    drop = np.minimum(23 - own.mantissa + more, 31)
    fraction = (magnitude & 0x7F_FFFF) | (exponent > 0).astype(np.int64) << 23
    value = np.where(is_small, fraction, magnitude - ((127 - own.bias) << 23))
    half = (1 << np.maximum(drop - 1, 0)) - 1 + (value >> drop & 1)
    value = (value + np.where(toward_zero | (drop == 0), 0, half)) >> drop
    beyond = np.where(toward_zero & (magnitude < _INFINITY), own.top, own.beyond)
    value = np.where(value > own.top, beyond, value) | (bits >> 31) << (width - 1)
    return np.where(magnitude > _INFINITY, own.nan, value)
