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
    """Return the kind, the elements of the base, and those of the chunk to encode.

    Raises:
        ValueError: The lengths differ, or the kind is unknown or does not fit them.
    """
    known = ElementKind(kind)
    old, bits = _elements(base, known), _elements(new, known)
    if len(old) != len(bits):
        raise ValueError("base and chunk must have the same number of elements")
    return known, old, bits


def open_payload(
    payload: Buffer, base_to_new: Buffer
) -> tuple[PayloadReader, ElementKind, np.ndarray]:
    """Read the kind of a payload.

    Returns:
        A reader of the rest of the payload, the kind, and a writable view of the base's elements.

    Raises:
        TypeError: `base_to_new` is read-only.
        ValueError: The kind is unknown or does not fit the base.
    """
    require_writable(base_to_new)
    reader = PayloadReader(payload)
    code = reader.byte()
    if code >= len(ElementKind):
        raise ValueError("its kind of elements is unknown or does not fit its base")
    return reader, ElementKind(code), _elements(base_to_new, ElementKind(code))


def _elements(data: Buffer, kind: ElementKind) -> np.ndarray:
    return np.frombuffer(data, f"<u{kind.width}")


def exponents(bits: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return the exponent of each float, from 0 to 255, as uint8; 0 for kinds that are not floats.

    Exponents of F64 are counted from the lowest exponent of F32 and clipped to its range.
    """
    if not kind.mantissa:
        return np.zeros(len(bits), np.uint8)
    fields = bits << 1 >> (kind.mantissa + 1)
    if kind is ElementKind.FLOAT_64:
        fields = np.clip(fields, _F64_BIAS, _F64_BIAS + 255) - np.uint64(_F64_BIAS)
    return fields.astype(np.uint8)


def steps_between(base: np.ndarray, bits: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return the steps from `base` to `bits`, as unsigned integers."""
    steps: np.ndarray = _places(bits, kind) - _places(base, kind)
    return steps


def zigzag(steps: np.ndarray) -> np.ndarray:
    """Return steps in zigzag: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    folded: np.ndarray = steps << 1 ^ signs(steps)
    return folded


def unzigzag(difference: np.ndarray) -> np.ndarray:
    """Return the steps whose `zigzag` is `difference`."""
    steps: np.ndarray = difference >> 1 ^ -(difference & 1)
    return steps


def differences(base: np.ndarray, bits: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return the steps from `base` to `bits` in zigzag."""
    return zigzag(steps_between(base, bits, kind))


def apply(base: np.ndarray, difference: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return the elements whose `differences` from the base are `difference`."""
    return move(base, unzigzag(difference), kind)


def move(base: np.ndarray, steps: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return the elements that are these steps from the base."""
    return _patterns(_places(base, kind) + steps, kind)


def _places(bits: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Map bit patterns to integers in the order of the numbers, -0 and NaNs included."""
    return bits ^ (signs(bits) | _sign(kind)) if kind.mantissa else bits


def _patterns(places: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return the bit patterns at these places; the inverse of `_places`."""
    return places ^ (signs(~places) | _sign(kind)) if kind.mantissa else places


def signs(bits: np.ndarray) -> np.ndarray:
    """Return a mask for each element: all bits if its highest bit is set, otherwise 0."""
    width = bits.itemsize
    signs: np.ndarray = (bits.view(f"<i{width}") >> (8 * width - 1)).view(f"<u{width}")
    return signs


def _sign(kind: ElementKind) -> np.ndarray:
    return np.array([1 << (8 * kind.width - 1)], f"<u{kind.width}")
