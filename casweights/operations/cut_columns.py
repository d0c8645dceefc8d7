"""Find the tensors of a new version whose columns are those of others.

Ranks that share a layer have some columns each of the matrix that its result is multiplied by. All
of these tensors have the same rows, so that the first few of each tell where its columns are.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format.layout import file_pieces
from casweights.operations.marks import Marks, MarkTable, row_marks
from casweights.operations.origins import Origin
from casweights.operations.slices import Column, Columns, Made
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.layout import Part, Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.ids import ChunkId
    from casweights.operations.base_chunks import BaseChunks, LaidOut

    Read = Callable[[str, Piece], memoryview]
    Key = tuple[str, str]

_LEAST_COLUMNS = 16
_MOST_IN_VAIN = 4  # chunks that are read in a row without a result


class _First(NamedTuple):
    """The first chunk of a tensor.

    Attributes:
        key: Path and name of the tensor.
        part: Its place in the chunk.
        piece: The place of the chunk.
        chunk: Its ID; None for a chunk of the new version.
    """

    key: Key
    part: Part
    piece: Piece
    chunk: ChunkId | None

    @property
    def columns(self) -> int:
        """Elements of a row."""
        tensor = self.part.tensor
        return tensor.nbytes // tensor.dtype.width // tensor.shape[0]

    @property
    def form(self) -> tuple[object, ...]:
        """What the tensor has in common with those that have other columns of it."""
        return self.part.tensor.dtype, self.part.tensor.shape[0]


def find_columns(
    db: Database,
    files: Sequence[LaidOut],
    read: Read,
    wanted: Mapping[Key, TensorInfo],
    version: BaseChunks,
) -> dict[Key, Made]:
    """Return what tensors are made from whose columns are those of others.

    Args:
        db: The store.
        files: The files of the new version.
        read: Returns the new version's bytes at a place.
        wanted: Tensors of the new version.
        version: The version that others are sought in.

    Raises:
        StoreError: The store could not be read.
    """
    pieces = (
        (file.path, None, piece)
        for file in files
        for piece in file_pieces(file.size, file.header, db.config.chunk_size)
    )
    new = [first for first in _firsts(pieces) if first.key in wanted]
    forms = {first.form for first in new}
    sources = [first for first in _firsts(version.pieces()) if first.form in forms]
    names = {key[1] for key in wanted}
    sources.sort(key=lambda first: first.key[1] not in names)
    if not new or not sources:
        return {}
    with suppress(CasweightsError):  # a file that cannot be read, which the commit reports
        return _Search(db, version, new, sources).run(read)
    return {}


def _firsts(pieces: Iterator[tuple[str, ChunkId | None, Piece]]) -> Iterator[_First]:
    """Yield the first chunk of each matrix that has many columns."""
    for path, chunk, piece in pieces:
        for part in piece.parts():
            shape = part.tensor.shape
            if part.start == 0 and len(shape) > 1 and shape[0] > 1 and part.nbytes:
                first = _First((path, part.tensor.name), part, piece, chunk)
                if first.columns >= _LEAST_COLUMNS:
                    yield first


class _Search:
    """Compares the first rows of tensors.

    Args:
        db: The store.
        version: The version that others are sought in.
        new: The first chunks of the tensors of the new version.
        sources: Those of the tensors of the other one.
    """

    def __init__(
        self, db: Database, version: BaseChunks, new: Sequence[_First], sources: Sequence[_First]
    ) -> None:
        self._db = db
        self._version = version
        self._new = new
        self._sources = sources
        self._origins = [Origin(first.columns, is_vector=True) for first in new]
        self._known: dict[ChunkId, memoryview] = {}  # the chunk that was read last

    def run(self, read: Read) -> dict[Key, Made]:
        """Return what each new tensor is made from."""
        marks: list[tuple[int, Marks]] = []
        for number, first in enumerate(self._new):
            content = read(first.key[0], first.piece)
            marks += ((number, own) for own in row_marks(first.part, content))
        table, in_vain = MarkTable(marks), 0
        for number, source in enumerate(self._sources):
            if in_vain == _MOST_IN_VAIN:
                break
            if self._is_wanted(source) and (old := self._read(source)) is not None:
                found = self._compare(number, table, row_marks(source.part, old))
                in_vain = 0 if found else in_vain + 1
        made = ((first.key, self._made(n)) for n, first in enumerate(self._new))
        return {key: one for key, one in made if one is not None}

    def _is_wanted(self, source: _First) -> bool:
        """Whether there is a tensor of as many rows, of which not all columns are known."""
        return any(
            first.form == source.form
            and first.columns != source.columns
            and not self._origins[n].is_known
            for n, first in enumerate(self._new)
        )

    def _read(self, source: _First) -> memoryview | None:
        chunk = source.chunk
        if chunk is None or chunk in self._known:
            return None if chunk is None else self._known[chunk]
        content = uninitialized(source.piece.nbytes)
        try:
            self._db.reader.with_local(self._db.cache).readinto(chunk, content)
        except (IntegrityError, NotFoundError):  # its readers report the damage
            return None
        self._known = {chunk: content}
        return content

    def _compare(self, number: int, table: MarkTable, rows: Iterator[Marks]) -> bool:
        """Add what some rows of a source tell; return whether that is anything."""
        all_rows = list(rows)
        if not all_rows:
            return False
        marks = Marks(*(np.concatenate(column) for column in zip(*all_rows, strict=True)))
        match = table.find(marks)
        for tensor, own in match.of_each():
            if self._new[tensor].form == self._sources[number].form:
                self._origins[tensor].add(number, own.rows, own.sources, len(marks.rows))
        return bool(len(match.rows))

    def _made(self, number: int) -> Made | None:
        """Return what a new tensor is made from; None if that is not known of most of it."""
        size = self._new[number].part.tensor.dtype.width
        runs = self._origins[number].runs([source.columns for source in self._sources])
        columns = []
        for start, stop, at, shift in runs:
            source = self._sources[at]
            content = self._version.tensors.of(*source.key)
            width, offset = size * source.columns, size * (start - shift)
            columns.append(Column(size * start, size * stop, content, width, offset))
        known = sum(column.stop - column.start for column in columns)
        width = size * self._new[number].columns
        if 2 * known < width:
            return None
        sources = dict.fromkeys(self._sources[run.source].key for run in runs)
        return Made(Columns(width, columns), [*sources])
