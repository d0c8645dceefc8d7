"""Recognise blocks of quantized weights by their bytes, in files of any format.

A block begins with a scale, an F16. Scales of neighbouring blocks are alike, so that their higher
bytes take few values, and those of the numbers in between take many. A chunk of bytes tells by
this where its blocks begin, and no parser of a file format is needed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.config import KiB
from casweights.format.records import Field, Records, Run
from casweights.kernels import count_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.system.buffers import Buffer

_SCALE = Field(0, 2)
FORMATS = {
    "Q8_0": (_SCALE, Field(8, 32, scale=1)),
    "Q4_0": (_SCALE, Field(4, 32, scale=1)),
}
_HIGH_BYTE = 1  # of the scale, in a block
_WINDOW = 4 * KiB  # bytes that tell whether blocks begin at some distance from each other
_STEP = 64 * KiB  # between windows, where neighbours agree
_MOST_VALUES = 24  # of the scales' higher bytes in a window that need not be looked at closely
_LEAST_VALUES, _LEAST_RATIO = 32, 2  # of the other bytes; how many times more than of the scales'


def _size(name: str) -> int:
    """Return the bytes of a block of a format."""
    return sum(field.nbytes for field in FORMATS[name])


class _Grid(NamedTuple):
    """A format of blocks, and the remainder of the places at which they begin."""

    name: str
    start: int

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return _size(self.name)


def find_blocks(data: Buffer) -> Records | None:
    """Return the blocks of a chunk; None if it has none that are known.

    Only blocks of one format are returned, that which most windows have.
    """
    windows = len(data) // _WINDOW
    if not windows:
        return None
    chunk, known = np.frombuffer(data, np.uint8), dict[_Grid, None]()

    @cache
    def grid_of(window: int) -> _Grid | None:
        offset = window * _WINDOW
        grid = next((grid for grid in known if _fits(chunk, offset, grid)), None)
        grid = grid or _grid(chunk, offset)
        if grid is not None:
            known[grid] = None
        return grid

    stretches = list(_stretches(windows, grid_of))
    names = [grid.name for first, end, grid in stretches if grid for _ in range(first, end)]
    if not names:
        return None
    name = max(FORMATS, key=names.count)
    size, runs, at = _size(name), list[Run](), 0
    for first, end, grid in stretches:
        if grid is None or grid.name != name:
            continue
        begin, last = max(at, first * _WINDOW), len(data) if end == windows else end * _WINDOW
        begin += (grid.start - begin) % size
        if (count := (last - begin) // size) > 0:
            runs.append(Run(begin - at, count))
            at = begin + count * size
    return Records(FORMATS[name], runs) if runs else None


def _stretches(
    windows: int, grid_of: Callable[[int], _Grid | None]
) -> Iterator[tuple[int, int, _Grid | None]]:
    """Yield neighbouring windows of one grid: the first, the one after the last, and the grid."""
    first, step = 0, _STEP // _WINDOW
    for window in range(0, windows, step):
        last = min(window + step, windows - 1)
        for end in _ends(window, last, grid_of):
            yield first, end, grid_of(first)
            first = end
    yield first, windows, grid_of(first)


def _ends(low: int, high: int, grid_of: Callable[[int], _Grid | None]) -> Iterator[int]:
    """Yield the windows from which on the grid is another one, between two windows."""
    if low >= high or grid_of(low) == grid_of(high):
        return
    if low + 1 == high:
        yield high
        return
    middle = (low + high) // 2
    yield from _ends(low, middle, grid_of)
    yield from _ends(middle, high, grid_of)


def _fits(chunk: np.ndarray, offset: int, grid: _Grid) -> bool:
    """Return whether the scales of a window surely take few values if its blocks are on a grid."""
    first = offset + (grid.start + _HIGH_BYTE - offset) % grid.size
    scales = chunk[first : offset + _WINDOW : grid.size]
    return int(np.count_nonzero(np.bincount(scales))) <= _MOST_VALUES


def _grid(chunk: np.ndarray, offset: int) -> _Grid | None:
    """Return the grid of a window; None without blocks."""
    window = chunk[offset : offset + _WINDOW]
    found = []
    for name in FORMATS:
        size = _size(name)
        whole = window[: len(window) // size * size]
        values = np.frombuffer(count_values(whole.data, size), np.uint16)
        column = int(values.argmin())
        others = np.delete(values, column).min()
        if others >= max(_LEAST_VALUES, _LEAST_RATIO * values[column]):
            start = (offset + column - _HIGH_BYTE) % size
            found.append((int(values[column]), _Grid(name, start)))
    return min(found)[1] if found else None
