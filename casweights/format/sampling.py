"""Samples: a few elements of each tensor, by which relatives are found among many versions.

Where the samples of a tensor lie depends on its shape alone, and their values are rounded to 16
bits, so that the same tensor under another name, in another file, with another dtype, or as some
rows of a larger one has the same samples. docs/design/036 has the reasons and the measurements.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.format.layout import BYTES
from casweights.format.rounding import rounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from casweights.format.dtypes import DType
    from casweights.format.layout import Piece
    from casweights.format.safetensors import Header, TensorInfo
    from casweights.system.buffers import Buffer

MAX_SAMPLES = 32  # values of one tensor
MAX_ELEMENTS = 1 << 62  # of a tensor: positions are signed numbers of 64 bits
_VECTOR_COLUMNS = 64  # into which vectors and opaque bytes are divided; a rest is not sampled
LEADING = 4  # values of a row that has as many columns: features are made of them
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: its multiples are spread evenly
_SMALL, _LARGE = 1 << 15, 1 << 20  # elements of tensors with fewer, and with the most samples
_LEAST_ROOM, _MOST_ROOM = 10_000, 262_144  # bytes of the samples of any version, however large
_ELEMENTS_A_BYTE = 50_000  # of a version, between these two


class Grid(NamedTuple):
    """A tensor as rows and columns of elements that are stored in whole bytes.

    Attributes:
        rows: The first dimension.
        columns: The product of the others; 1 for vectors, and for opaque bytes.
        dtype: Type of the elements; packed ones count as bytes.
    """

    rows: int
    columns: int
    dtype: DType

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * self.dtype.width


class Sampled(NamedTuple):
    """A tensor that a signature has samples of.

    Attributes:
        path: The path of its file.
        tensor: The tensor; None for a file of opaque bytes.
        grid: Its rows and columns.
    """

    path: str
    tensor: TensorInfo | None
    grid: Grid

    @property
    def key(self) -> tuple[str, str | None]:
        """The path, and the name of the tensor."""
        return self.path, self.tensor.name if self.tensor else None


def grid_of(tensor: TensorInfo) -> Grid:
    """Return the rows and columns of a tensor that is not empty."""
    elements = tensor.nbytes // tensor.dtype.width
    rows = tensor.shape[0] if tensor.shape else 1
    if rows == elements or elements % rows:  # packed elements' rows need not end where bytes do
        return _grid_of_vector(elements, tensor.dtype)
    return Grid(rows, elements // rows, tensor.dtype)


def _grid_of_vector(elements: int, dtype: DType) -> Grid:
    """Divide a vector into rows, because features are made of several samples in a row."""
    columns = _VECTOR_COLUMNS if elements >= _VECTOR_COLUMNS else 1
    return Grid(elements // columns, columns, dtype)


@lru_cache(maxsize=4096)
def positions(rows: int, columns: int) -> NDArray[np.int64]:
    """Return the element numbers of a tensor's samples, one row of the result for each sampled row.

    The sampled rows are those with one remainder modulo a power of two, which grows with the
    number of rows: of two tensors with as many columns, the rows that are sampled of the larger one
    are, wherever the smaller one begins in it at a multiple of this power, sampled of that one,
    too. The columns of a row's samples depend on the number of columns alone.
    """
    elements = rows * columns
    rows_wanted = 1 if elements < _SMALL else 2 if elements < _LARGE else 4
    wanted = LEADING * rows_wanted  # samples at least, and nearly twice as many at most
    in_row = min(columns, LEADING)
    every = 1 << max(0, (rows // (wanted // in_row)).bit_length() - 1)
    if rows * in_row < wanted:
        in_row = min(columns, wanted // rows)
    row = np.arange(_SPREAD % every, rows, every, dtype=np.int64)
    column = [(n * _SPREAD % (1 << 64)) * columns >> 64 for n in range(1, in_row + 1)]
    found = row[:, None] * columns + np.array(column, np.int64)
    found.flags.writeable = False
    return found


def count(grid: Grid) -> int:
    """Return the number of a tensor's samples."""
    return positions(grid.rows, grid.columns).size


def sampled_tensors(files: Iterable[tuple[str, int, Header | None]]) -> list[Sampled]:
    """Return the tensors of a version that its signature has samples of, in the signature's order.

    Args:
        files: Path, size and header of each file.

    Returns:
        The tensors in the order of their files' paths, and in file order. All of them, unless
        the signature would be large: then the largest ones, and some of those of equal size.
    """
    found: list[Sampled] = []
    for path, size, header in sorted(files, key=lambda file: file[0]):
        if header is not None:
            tensors = (tensor for tensor in header.tensors if tensor.nbytes)
            found += (Sampled(path, tensor, grid_of(tensor)) for tensor in tensors)
        elif size:
            found.append(Sampled(path, None, _grid_of_vector(size, BYTES)))
    return _within(found, room(sum(sampled.grid.elements for sampled in found)))


def room(elements: int) -> int:
    """Return the most bytes that the samples of a version may have, by its number of elements."""
    return max(_LEAST_ROOM, min(_MOST_ROOM, elements // _ELEMENTS_A_BYTE))


def cost(grid: Grid) -> int:
    """Return the bytes that a signature has for a tensor: a number, and 16 bits a sample."""
    return 2 + 2 * count(grid)


def _within(found: Sequence[Sampled], limit: int) -> list[Sampled]:
    """Return the largest tensors whose samples fit, in the order in which they are given."""
    if sum(cost(sampled.grid) for sampled in found) <= limit:
        return list(found)

    def elements(at: int) -> int:
        return found[at].grid.elements

    taken: list[int] = []
    for _, group in groupby(sorted(range(len(found)), key=elements, reverse=True), elements):
        alike = list(group)
        each = max(cost(found[at].grid) for at in alike)
        fit = min(len(alike), limit // each)
        taken += (alike[n * len(alike) // fit] for n in range(fit))
        limit -= fit * each
        if fit < len(alike):
            break
    return [found[at] for at in sorted(taken)]


class Samples:
    """The samples of a version while its chunks are read, in any order and on several threads.

    Args:
        files: Path, size and header of each file.

    Attributes:
        tensors: The tensors that are sampled, in the signature's order.
    """

    def __init__(self, files: Iterable[tuple[str, int, Header | None]]) -> None:
        self.tensors = sampled_tensors(files)
        self._places: dict[tuple[str, int], tuple[int, Grid]] = {}
        total = 0
        for sampled in self.tensors:
            self._places[self._start(sampled)] = total, sampled.grid
            total += count(sampled.grid)
        self._values = np.zeros(total, np.uint16)
        self._known = np.zeros(total, np.bool_)

    def add(self, path: str, piece: Piece, content: Buffer) -> None:
        """Take the samples that lie in a chunk.

        Args:
            path: The path of its file.
            piece: Its place in the file.
            content: Its bytes.
        """
        at, where = self._inside(path, piece)
        if len(at):
            width = piece.dtype.width
            elements = np.frombuffer(content, f"<u{width}", count=piece.nbytes // width)
            self._values[at] = rounded(elements[where], piece.dtype)
            self._known[at] = True

    def wants(self, path: str, piece: Piece) -> bool:
        """Whether samples lie in a chunk that are not known yet."""
        at, _ = self._inside(path, piece)
        return not self._known[at].all()

    @property
    def is_complete(self) -> bool:
        """Whether all samples are known."""
        return bool(self._known.all())

    @property
    def values(self) -> NDArray[np.uint16]:
        """The samples, tensor by tensor."""
        return self._values

    def values_of(self, numbers: Sequence[int]) -> NDArray[np.uint16] | None:
        """Return the samples of some tensors; None if not all are known.

        Args:
            numbers: Those of the tensors, ascending.
        """
        places = [self._places[self._start(self.tensors[n])] for n in numbers]
        at = np.concatenate([_NONE, *(np.arange(first, first + count(g)) for first, g in places)])
        return self._values[at] if self._known[at].all() else None

    @staticmethod
    def _start(sampled: Sampled) -> tuple[str, int]:
        """Return the path of a tensor's file, and its offset there."""
        return sampled.path, sampled.tensor.start if sampled.tensor else 0

    def _inside(self, path: str, piece: Piece) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the samples in a chunk, and their elements' numbers in it."""
        if len(piece.tensors) > 1:
            return self._inside_bundle(path, piece)
        start = piece.tensors[0].start if piece.tensors else 0
        place = self._places.get((path, start))
        if place is None:
            return _NONE, _NONE
        first, grid = place
        width = piece.dtype.width
        where = positions(grid.rows, grid.columns).ravel() - piece.start // width
        inside = np.flatnonzero((where >= 0) & (where < piece.nbytes // width))
        return inside + first, where[inside]

    def _inside_bundle(
        self, path: str, piece: Piece
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        width, at, where = piece.dtype.width, [_NONE], [_NONE]
        for tensor, _, offset, _ in piece.parts():
            place = self._places.get((path, tensor.start))
            if place is not None:
                first, grid = place
                within = positions(grid.rows, grid.columns).ravel()
                at.append(np.arange(first, first + len(within)))
                where.append(within + offset // width)
        return np.concatenate(at), np.concatenate(where)


_NONE = np.empty(0, np.int64)
