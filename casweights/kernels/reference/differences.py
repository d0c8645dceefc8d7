"""Elements as unsigned integers, and the differences between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference.bits import PayloadReader, require_writable

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_F64_BIAS = 896  # between the exponents of F64 and F32


def open_pair(base: Buffer, new: Buffer, kind: int) -> tuple[ElementKind, np.ndarray, np.ndarray]:
    """The kind and elements of a base and a chunk, which is to be encoded."""
    known = ElementKind(kind)
    old, bits = _elements(base, known), _elements(new, known)
    if len(old) != len(bits):
        raise ValueError("a difference takes as many elements in both")
    return known, old, bits


def open_payload(
    payload: Buffer, base_to_new: Buffer
) -> tuple[PayloadReader, ElementKind, np.ndarray]:
    """A payload behind its kind, that kind, and the base's elements, which are to be replaced."""
    require_writable(base_to_new)
    reader = PayloadReader(payload)
    code = reader.byte()
    if code >= len(ElementKind):
        raise ValueError("it names no kind of elements that its base has")
    return reader, ElementKind(code), _elements(base_to_new, ElementKind(code))


def _elements(data: Buffer, kind: ElementKind) -> np.ndarray:
    return np.frombuffer(data, f"<u{kind.width}")


def exponents(bits: np.ndarray, kind: ElementKind) -> np.ndarray:
    """The exponent of each float, from 0 to 255; what is no float has 0.

    Those of F64 are counted from the least one of F32 and cut to its range.
    """
    if not kind.mantissa:
        return np.zeros(len(bits), np.uint8)
    fields = bits << 1 >> (kind.mantissa + 1)
    if kind is ElementKind.FLOAT_64:
        fields = np.clip(fields, _F64_BIAS, _F64_BIAS + 255) - np.uint64(_F64_BIAS)
    return fields.astype(np.uint8)


def differences(base: np.ndarray, bits: np.ndarray, kind: ElementKind) -> np.ndarray:
    """From base to new, in zigzag: steps of 0, -1, 1, -2, ... are 0, 1, 2, 3, ..."""
    steps = _places(bits, kind) - _places(base, kind)
    zigzag: np.ndarray = steps << 1 ^ _signs(steps)
    return zigzag


def apply(base: np.ndarray, difference: np.ndarray, kind: ElementKind) -> np.ndarray:
    """The new elements that differ from the base's by `difference`."""
    steps = difference >> 1 ^ -(difference & 1)
    return _patterns(_places(base, kind) + steps, kind)


def _places(bits: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Bit patterns in the order of the numbers: neighbours differ by 1, -0 and NaNs have places."""
    return bits ^ (_signs(bits) | _sign(kind)) if kind.mantissa else bits


def _patterns(places: np.ndarray, kind: ElementKind) -> np.ndarray:
    """The inverse of `_places`."""
    return places ^ (_signs(~places) | _sign(kind)) if kind.mantissa else places


def _signs(bits: np.ndarray) -> np.ndarray:
    """All bits set where the highest one is, else none."""
    width = bits.itemsize
    signs: np.ndarray = (bits.view(f"<i{width}") >> (8 * width - 1)).view(f"<u{width}")
    return signs


def _sign(kind: ElementKind) -> np.ndarray:
    return np.array([1 << (8 * kind.width - 1)], f"<u{kind.width}")
