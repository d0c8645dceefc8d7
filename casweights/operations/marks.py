"""Marks: hashes of the rows of tensors, by which the same rows are recognised elsewhere.

A mark is a hash of a few elements of a row, rounded, so that it survives training that moves most
elements a little, and nearly always where one element in a hundred changes. Vectors, and tensors
with very short rows, have marks of neighbouring elements instead, at any place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from casweights.format.dtypes import DType
    from casweights.format.layout import Part
    from casweights.format.safetensors import TensorInfo
    from casweights.system.buffers import Buffer

    Elements = NDArray[np.unsignedinteger[Any]]

_ELEMENTS = 8  # of a mark; rows of fewer are taken for one vector
_LEAST_DISTINCT = 4  # of its elements: constant rows are in all models
_MOST_EQUAL = 16  # marks that are equal; more of them tell nothing
_ROWS = 16  # of a matrix, by which its columns are recognised
_DENSE = 1 << 16  # elements of a vector up to which all of its marks are used
_SPARSE = 16  # marks of longer ones, of which one is used; its value decides
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: its multiples are spread evenly
_FACTOR = np.uint64(_SPREAD)
# Bits that are left out: what remains of a float is its sign, exponent and two bits of mantissa.
_ROUNDED = {"BF16": 5, "F16": 8, "F32": 21, "F64": 50}


class Form(NamedTuple):
    """What a tensor has in common with one that its rows may come from.

    Attributes:
        dtype: Type of the elements.
        columns: Elements of a row; 1 for vectors and short rows.
    """

    dtype: DType
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.dtype.width


class Marks(NamedTuple):
    """Marks of consecutive bytes of a tensor.

    Attributes:
        rows: The number of the row of each mark, in the tensor.
        hashes: The marks.
    """

    rows: NDArray[np.int64]
    hashes: NDArray[np.uint64]


def form_of(tensor: TensorInfo) -> Form:
    """Return the form of a tensor that is not empty."""
    elements = tensor.nbytes // tensor.dtype.width
    rows = tensor.shape[0] if tensor.shape else 1
    columns = 1 if rows < 2 or elements % rows else elements // rows
    return Form(tensor.dtype, columns if columns >= _ELEMENTS else 1)


def row_count(tensor: TensorInfo) -> int:
    """Return the number of rows that a tensor has in its form."""
    return tensor.nbytes // form_of(tensor).nbytes


def marks_of(part: Part, content: Buffer) -> Marks:
    """Return the marks of a tensor's bytes in a chunk.

    Args:
        part: The place of the bytes.
        content: The chunk.
    """
    form = form_of(part.tensor)
    first = -(-part.start // form.nbytes)
    skipped = first * form.nbytes - part.start
    count = (part.nbytes - skipped) // form.nbytes
    if count < 1:
        return Marks(np.empty(0, np.int64), np.empty(0, np.uint64))
    elements = np.frombuffer(
        content, f"<u{form.dtype.width}", count * form.columns, part.offset + skipped
    )
    if form.columns == 1:
        return _of_vector(elements, first, form, is_long=part.tensor.nbytes > _DENSE * form.nbytes)
    at = [(n * _SPREAD % (1 << 64)) * form.columns >> 64 for n in range(1, _ELEMENTS + 1)]
    chosen = elements.reshape(count, form.columns)[:, at]
    found = _hashed(chosen >> chosen.dtype.type(_shift(form)), form, 0)
    telling = _is_telling(chosen)
    return Marks(np.flatnonzero(telling) + first, found[telling])


def row_marks(part: Part, content: Buffer) -> Iterator[Marks]:
    """Yield marks of the first rows of a matrix, each with the number of the column it begins at.

    Args:
        part: The place of the matrix's first bytes.
        content: The chunk.
    """
    tensor, width = part.tensor, part.tensor.dtype.width
    columns = tensor.nbytes // width // tensor.shape[0]
    for row in range(min(_ROWS, part.nbytes // (columns * width))):
        at = part.offset + row * columns * width
        elements = np.frombuffer(content, f"<u{width}", columns, at)
        found = _of_vector(elements, 0, Form(tensor.dtype, 1), is_long=columns > _DENSE)
        yield Marks(found.rows, found.hashes ^ np.uint64((row + 1) * _SPREAD % (1 << 64)))


def _of_vector(elements: Elements, first: int, form: Form, *, is_long: bool) -> Marks:
    """Return the marks of a vector: rounded ones, and others that are exact.

    Neighbours in the weights of a norm are equal when they are rounded.
    """
    if len(elements) < _ELEMENTS:
        return Marks(np.empty(0, np.int64), np.empty(0, np.uint64))
    rows, hashes = [], []
    for salt, shift in ((0, _shift(form)), (1, 0)):
        values = elements >> elements.dtype.type(shift)
        windows = np.lib.stride_tricks.sliding_window_view(values, _ELEMENTS)
        found = _hashed(windows, form, salt)
        telling = _is_telling(windows)
        if is_long:
            telling &= (found >> np.uint64(40)) % np.uint64(_SPARSE) == 0
        rows.append(np.flatnonzero(telling) + first)
        hashes.append(found[telling])
    return Marks(np.concatenate(rows), np.concatenate(hashes))


def _shift(form: Form) -> int:
    return _ROUNDED.get(form.dtype.code, 0)


def _is_telling(rows: Elements) -> NDArray[np.bool_]:
    """Whether each row has several distinct elements."""
    changes = (rows[:, 1:] != rows[:, :-1]).sum(axis=1)
    telling: NDArray[np.bool_] = changes >= _LEAST_DISTINCT
    return telling


def _hashed(rows: Elements, form: Form, salt: int) -> NDArray[np.uint64]:
    seed = hash((form.columns, form.dtype.bits, form.dtype.is_float, salt)) % (1 << 64)
    mixed = np.full(len(rows), seed, np.uint64)
    for values in rows.T:
        mixed = (mixed ^ values) * _FACTOR  # modulo 2^64
        mixed ^= mixed >> np.uint64(29)
    return mixed


class Match(NamedTuple):
    """Rows of some tensors that are those of another one.

    Attributes:
        tensors: The number of the tensor of each row.
        rows: The row's number in it.
        sources: The number of the row in the other one.
    """

    tensors: NDArray[np.int64]
    rows: NDArray[np.int64]
    sources: NDArray[np.int64]

    def of_each(self) -> Iterator[tuple[int, Match]]:
        """Yield the matches of each tensor, with its number."""
        for number in np.unique(self.tensors).tolist():
            yield number, self.where(self.tensors == number)

    def where(self, chosen: NDArray[np.bool_]) -> Match:
        """Return some of the matches."""
        return Match(self.tensors[chosen], self.rows[chosen], self.sources[chosen])


class MarkTable:
    """The marks of some tensors, by value.

    Args:
        marks: The number of a tensor, and marks of it.
    """

    def __init__(self, marks: Sequence[tuple[int, Marks]]) -> None:
        numbers = [np.full(len(own.rows), number, np.int64) for number, own in marks]
        tensors = np.concatenate([np.empty(0, np.int64), *numbers])
        rows = np.concatenate([np.empty(0, np.int64), *(own.rows for _, own in marks)])
        hashes = np.concatenate([np.empty(0, np.uint64), *(own.hashes for _, own in marks)])
        order = hashes.argsort(kind="stable")
        self._tensors, self._rows, self._hashes = tensors[order], rows[order], hashes[order]

    def find(self, marks: Marks) -> Match:
        """Return which rows of the tensors have marks, but for those that many have."""
        begin = self._hashes.searchsorted(marks.hashes, "left")
        counts = self._hashes.searchsorted(marks.hashes, "right") - begin
        counts[counts > _MOST_EQUAL] = 0
        steps = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        at = np.repeat(begin, counts) + steps
        return Match(self._tensors[at], self._rows[at], np.repeat(marks.rows, counts))
