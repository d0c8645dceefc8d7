"""Find the factors of a low-rank change of a matrix, as merging a LoRA adapter makes it.

The singular values of a sample of rows and columns tell whether there are any, and the rank.
"""

from __future__ import annotations

from math import floor, ldexp, log2
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.format.arithmetic import KINDS
from casweights.format.low_rank import MAX_RANK, Factors
from casweights.kernels import cast
from casweights.kernels.kinds import ElementKind

if TYPE_CHECKING:
    from casweights.format.layout import Extent
    from casweights.system.buffers import Buffer

_SAMPLE = 2 * MAX_RANK  # rows and columns of the sample, at most
_MIN_SAMPLE = 48
_MIN_ELEMENTS = 1 << 15  # fewer do not repay the factors
_FACTOR_BITS = 10  # what a factor takes, about
_MIN_GAIN = 1 / 32  # bits of an element, which factors must promise to save
_PASSES = 2  # of the iteration that finds the singular vectors
_LARGEST = 32_767  # of a factor
_FAR = 2.0**40  # weights do not change by that much, and products of such changes may overflow
_FINE = 8  # parts of what the factors leave by which their own rounding may add to it
_HALVES = {ElementKind.E5M2: 2**-17, ElementKind.E4M3: 2**-10, ElementKind.FLOAT_16: 2**-25}


class _Choice(NamedTuple):
    """How a matrix is to be factored.

    Attributes:
        rank: Factors of a row or column; 0 if they would save too little.
        error: What the factors leave of a typical element.
    """

    rank: int
    error: float


def find_factors(new: Buffer, base: Buffer, kind: ElementKind, extent: Extent) -> Factors | None:
    """Return factors by which a matrix changes; None if they would save little.

    Args:
        new: The elements.
        base: Those of the base.
        kind: Kind of both.
        extent: The place of the elements in their tensor.
    """
    columns, count = extent.columns, len(memoryview(new)) // kind.width
    rows = count // columns if columns else 0
    if kind not in KINDS or count < _MIN_ELEMENTS or min(rows, columns) < _MIN_SAMPLE:
        return None
    start = extent.start % columns
    after, before = (np.frombuffer(data, f"<u{kind.width}") for data in (new, base))
    first = -start % columns  # where the first whole row begins
    height = count / (rows + columns)
    choice = _choose(
        _sample(after[first:], columns), _sample(before[first:], columns), kind, height
    )
    if not choice.rank:
        return None
    change = _change(_matrix(after, start, columns), _matrix(before, start, columns), kind)
    return _whole_numbers(*_fit(change, choice.rank), start, choice.error / _FINE)


def _matrix(elements: np.ndarray, start: int, columns: int) -> np.ndarray:
    """Return elements as whole rows; missing ones are zeros."""
    rows = -(-(start + len(elements)) // columns)
    if len(elements) == rows * columns:
        return elements.reshape(rows, columns)
    padded = np.zeros(rows * columns, elements.dtype)
    padded[start : start + len(elements)] = elements
    return padded.reshape(rows, columns)


def _sample(elements: np.ndarray, columns: int) -> np.ndarray:
    """Return a part of the rows and columns, which are spread over the matrix."""
    rows = len(elements) // columns
    matrix = elements[: rows * columns].reshape(rows, columns)
    high, wide = (np.arange(m) * n // m for n in (rows, columns) for m in (min(n, _SAMPLE),))
    return np.ascontiguousarray(matrix[np.ix_(high, wide)])


def _change(new: np.ndarray, old: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return new elements minus old ones, fp32; 0 where that is no number, or a very large one."""
    with np.errstate(all="ignore"):
        change: np.ndarray = _widened(new, kind) - _widened(old, kind)
    size = np.abs(change)
    if not size.max() < _FAR:
        change[~(size < _FAR)] = 0
    return change


def _half(elements: np.ndarray, kind: ElementKind) -> np.ndarray:
    """Return by how much rounding may have moved each element, fp32."""
    power: np.ndarray = (_widened(elements, kind).view(np.uint32) & 0x7F800000).view(np.float32)
    power *= np.float32(2.0 ** -(kind.mantissa + 1))
    np.maximum(power, _HALVES.get(kind, 0), out=power)
    return power


def _widened(elements: np.ndarray, kind: ElementKind) -> np.ndarray:
    found = np.empty(elements.shape, np.float32)
    flat = elements.reshape(-1).view(np.uint8)
    cast(flat.data, kind, found.reshape(-1).view(np.uint8).data, ElementKind.FLOAT_32, False)
    return found


def _choose(new: np.ndarray, old: np.ndarray, kind: ElementKind, height: float) -> _Choice:
    """Choose by some rows and columns of a matrix.

    Args:
        new: New elements.
        old: Old ones.
        kind: Kind of both.
        height: Elements of the whole matrix for each of its rows and columns.
    """
    nothing = _Choice(0, 0)
    change = _change(new, old, kind).astype(np.float64)
    noise = float(np.median(_half(new, kind))) / 3**0.5
    high, wide = change.shape
    if not 0 < noise < np.inf or np.mean(change**2) <= noise**2:
        return nothing
    if high > wide:
        change, high, wide = change.T, wide, high
    power = np.linalg.eigvalsh(change @ change.T)[::-1].clip(0)
    ranks = np.arange(min(MAX_RANK, high // 2) + 1)
    left = power[::-1].cumsum()[::-1][ranks]
    error = (left / ((high - ranks) * (wide - ranks))) ** 0.5
    cost = np.log2(np.maximum(error, noise)) + ranks * (_FACTOR_BITS / height)
    best = int(cost.argmin())
    if cost[0] - cost[best] < _MIN_GAIN:
        return nothing
    return _Choice(best, max(noise, float(error[best])))


def _fit(change: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two matrices of a rank whose product is close to a change.

    Their columns and rows are of equal size on both sides.
    """
    right = np.random.default_rng(0).standard_normal((change.shape[1], rank), np.float32)
    for _ in range(_PASSES):
        turned = change.T @ (change @ right)
        power, across = _directions(turned)
        right = turned @ (across / np.sqrt(power)).astype(np.float32)
    left = change @ right
    power, across = _directions(left)
    root = power**0.25
    return left @ (across / root), (root[:, None] * across.T) @ right.T


def _directions(sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the squares of the singular values of a narrow matrix, and its right vectors.

    Of a few columns, that is much faster than a decomposition of the matrix itself.
    """
    doubled = sides.astype(np.float64)
    power, across = np.linalg.eigh(doubled.T @ doubled)
    return np.maximum(power, np.finfo(np.float32).tiny), across


def _whole_numbers(left: np.ndarray, right: np.ndarray, start: int, error: float) -> Factors | None:
    """Return factors in units that add an error to their product; None if they are nothing.

    Args:
        left: The left factors.
        right: The right ones.
        start: Of the factors.
        error: The error of a typical element.
    """
    largest = max(float(np.abs(left).max()), float(np.abs(right).max()))
    if not 0 < largest < np.inf:
        return None
    # The rounding of a factor is even: its variance is a twelfth. Each meets one of the other side.
    met = (np.mean(left**2) + np.mean(right**2)) * right.shape[0]
    unit = max(error * (12 / float(met)) ** 0.5, largest / _LARGEST)
    exponent = floor(log2(unit))
    exponent += largest > ldexp(_LARGEST, exponent)
    if not -64 <= exponent < 64:
        return None
    sides = (np.rint(np.ldexp(side, -exponent)).astype("<i2") for side in (left, right))
    return Factors(next(sides), next(sides), 2 * exponent, start)
