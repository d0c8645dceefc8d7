"""The numbers of blocks that share a scale, as elements whose contexts follow from the scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels.reference.bits import require_writable

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_MOST_GROWTH = 1 << 24  # by which a number is multiplied, in 65,536ths
_CHANGED_SCALE = 64  # the first context of numbers whose scale has changed
_BLOCK = 1 << 14  # records that are processed at a time, to bound memory


def expect(
    old_scales: Buffer, new_scales: Buffer, numbers: Buffer, bits: int, elements: Buffer, /
) -> None:
    """Set the elements that numbers are expected to be after their scales have changed.

    Args:
        old_scales: An F16 for each record.
        new_scales: The same after the change.
        numbers: The old numbers of all records, from 0 on, a byte each.
        bits: Bits of a number, 4 or 8.
        elements: Receives an element of `ElementKind.NUMBER` for each number.

    Raises:
        TypeError: `elements` is read-only.
        ValueError: The lengths do not fit each other, or numbers have other bits.
    """
    require_writable(elements)
    sizes = [len(memoryview(data)) for data in (old_scales, new_scales, numbers, elements)]
    records = sizes[0] // 2
    count = sizes[2] // records if records else 0
    is_fitting = sizes[0] == sizes[1] == 2 * records and sizes[2] == records * count
    if bits not in (4, 8) or not is_fitting or sizes[3] != 2 * sizes[2]:
        raise ValueError(
            "numbers of 4 or 8 bits need two scales for each record, and as many elements"
        )
    old, new = (np.frombuffer(data, "<u2").astype(np.int64) for data in (old_scales, new_scales))
    rows = np.frombuffer(numbers, np.uint8).reshape(records, count)
    out = np.frombuffer(elements, "<u2").reshape(records, count)
    for start in range(0, records, _BLOCK):
        own = slice(start, start + _BLOCK)
        out[own] = _expected(old[own, None], new[own, None], rows[own].astype(np.int64), bits)


def _expected(old: np.ndarray, new: np.ndarray, numbers: np.ndarray, bits: int) -> np.ndarray:
    zero = 1 << (bits - 1)
    number = np.where((old ^ new) >> 15, zero - numbers, numbers - zero)
    down, size = number < 0, np.abs(number) * _growth(old, new)
    whole = (size + 32_768) >> 16
    rest = size - (whole << 16)
    here = np.minimum(whole, np.where(down, zero, zero - 1))
    direction = down ^ (rest < 0)
    moved = (
        direction << 15
        | (_CHANGED_SCALE + (np.abs(rest) >> 12)) << 8
        | zero + here * (1 - 2 * down)
    )
    known: np.ndarray = np.where(old == new, (old & 0x7FFF) >> 9 << 8 | numbers, moved)
    return known


def _growth(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return by what numbers grow between two scales, in 65,536ths."""
    source, target = _magnitudes(old), _magnitudes(new)
    growth = (source << 16) // np.maximum(target, 1)
    return np.where(target > 0, np.minimum(growth, _MOST_GROWTH), 0)


def _magnitudes(scales: np.ndarray) -> np.ndarray:
    """Return the magnitudes of F16s in units of 2^-24; infinities and NaNs are numbers, too."""
    exponent, mantissa = scales >> 10 & 31, scales & 1023
    return np.where(exponent > 0, (mantissa | 1024) << np.maximum(exponent - 1, 0), mantissa)
