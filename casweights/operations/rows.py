"""Find the tensors of a new version that are made from rows of others.

Projections of queries, keys and values are fused or split, shards are cut at other rows. Names do
not tell which rows are where, so that marks of rows decide: those of all new tensors that nothing
is known of are compared with those of a few chunks of each old tensor. What lies between two chunks
with the same result is not read.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format.layout import file_pieces
from casweights.format.roots import MAX_ROOTS
from casweights.operations.bases import Rows
from casweights.operations.cut_columns import find_columns
from casweights.operations.marks import Marks, MarkTable, form_of, marks_of, row_count
from casweights.operations.origins import Origin
from casweights.operations.slices import ChunkSlice, Joined, Made
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.ids import ChunkId
    from casweights.operations.base_chunks import BaseChunks, LaidOut
    from casweights.operations.bases import Bases
    from casweights.operations.marks import Form, Match
    from casweights.operations.origins import Run

    Read = Callable[[str, Piece], memoryview]
    Key = tuple[str, str]

_MIN_BYTES = 1 << 12  # of chunks with a tensor that nothing is known of, which are worth a search
_MAX_READ = 1.5  # of these bytes: what may be read to find them
_LEAST_CHUNKS = 4  # that may be read for a few bytes
_MOST_IN_VAIN = 8  # chunks that are read in a row without a result
_AGREE = 0.9  # of the marks of a chunk, for all its rows to come from one place
_MAX_VERSION_READ = 2  # times its bytes: what may be read of others for all its chunks
_LEAST_FOUND = 4  # times the rows that are found of a tensor; with fewer, nothing is
_AHEAD = 8  # chunks that are fetched at a time


class _Tensor(NamedTuple):
    """A tensor of the new version that nothing is known of.

    Attributes:
        key: Its path and name.
        info: The tensor.
        origin: What is found.
    """

    key: Key
    info: TensorInfo
    origin: Origin


class _Source(NamedTuple):
    """A tensor of another version.

    Attributes:
        key: Its path and name.
        info: The tensor.
        chunks: The numbers of its chunks, in order.
        content: Its bytes.
    """

    key: Key
    info: TensorInfo
    chunks: list[int]
    content: Joined


class _Shift(NamedTuple):
    """Where the rows of a source in a chunk are in the new version.

    Attributes:
        tensor: Number of the new tensor.
        shift: What must be added to the number of a row.
    """

    tensor: int
    shift: int


def find_rows(
    db: Database,
    files: Sequence[LaidOut],
    read: Read,
    bases: Bases,
    versions: Iterable[BaseChunks],
) -> Bases:
    """Return bases that also know the tensors that are made from rows of others.

    Args:
        db: The store.
        files: The files of the new version.
        read: Returns the new version's bytes at a place.
        bases: What is known of it already.
        versions: The versions whose tensors may have these rows, the likeliest one first.

    Raises:
        StoreError: The store could not be read.
    """
    versions = [version for version in versions if version.chunks()]
    unsure = _unsure(files, bases) if versions else {}
    if not unsure:
        return bases
    rows = search_rows(db, files, read, unsure, versions)
    return bases.with_rows(rows, versions[0]) if rows.slices else bases


def search_rows(
    db: Database,
    files: Sequence[LaidOut],
    read: Read,
    wanted: Mapping[Key, TensorInfo],
    versions: Iterable[BaseChunks],
) -> Rows:
    """Return what tensors of a new version are made from, by their contents alone.

    Args:
        db: The store.
        files: The files of the new version.
        read: Returns the new version's bytes at a place.
        wanted: The tensors.
        versions: The versions whose tensors may have these rows, the likeliest one first.

    Raises:
        StoreError: The store could not be read.
    """
    new = _New(files, wanted, db.config.chunk_size)
    if new.nbytes < _MIN_BYTES or not new.load(read):
        return Rows()
    made: dict[Key, Made] = {}
    sizes: dict[ChunkId, int] = {}
    for version in versions:
        found = _Search(db, version, new).run()
        made |= found
        sizes |= version.tensors.sizes
        new.forget(found)
        left = {tensor.key: tensor.info for tensor in new.wanted()}
        made |= find_columns(db, files, read, left, version) if left else {}
        new.forget(made)
    return Rows(
        {key: one.content for key, one in made.items()},
        sizes,
        {key: one.sources for key, one in made.items()},
    )


def affordable(bases: Bases, files: Sequence[LaidOut], chunk_size: int) -> Bases:
    """Return the same bases without those that make the version too costly to read."""
    if not bases.rows.slices:
        return bases
    return bases.without(set(_costly(bases, files, chunk_size)))


def _costly(bases: Bases, files: Sequence[LaidOut], chunk_size: int) -> Iterator[tuple[str, Piece]]:
    """Yield the places of chunks that are to be stored whole.

    Readers keep the roots that they used last. If each of several ranks has some rows of each
    chunk, they read all chunks for each rank, unless they can keep all of them.
    """
    derived = []
    for file in files:
        for piece in file_pieces(file.size, file.header, chunk_size):
            if bases.find(file.path, piece) is None:
                slices = bases.slices(file.path, piece)
                roots = {one.chunk for one in slices if one.chunk is not None}
                derived.append((file.path, piece, roots))
    distinct = {root for _, _, roots in derived for root in roots}
    if sum(bases.sizes[root] for root in distinct) <= MAX_ROOTS * chunk_size:
        return
    left = (_MAX_VERSION_READ - 1) * sum(file.size for file in files)
    kept: set[ChunkId] = set()  # of the chunk before: several threads may use all others
    for path, piece, roots in derived:
        more = sum(bases.sizes[root] for root in roots - kept) - piece.nbytes
        if roots and more > left:
            yield path, piece
        elif roots:
            left -= more
            kept = roots


def _unsure(files: Iterable[LaidOut], bases: Bases) -> dict[Key, TensorInfo]:
    """Return the tensors of which names and shapes do not tell what they are like."""
    return {
        (file.path, tensor.name): tensor
        for file in files
        if file.header is not None and not bases.first.has_layout(file)
        for tensor in file.header.tensors
        if tensor.nbytes and not bases.is_sure(file.path, tensor)
    }


class _New:
    """The tensors of the new version that nothing is known of, and their marks.

    Args:
        files: The files of the version.
        unsure: The tensors.
        chunk_size: Bytes of a chunk.

    Attributes:
        tensors: The tensors.
        places: The path and place of each chunk with one of them.
        nbytes: The bytes of these chunks.
    """

    def __init__(
        self, files: Sequence[LaidOut], unsure: Mapping[Key, TensorInfo], chunk_size: int
    ) -> None:
        self.tensors = [_Tensor(key, info, _origin(info)) for key, info in unsure.items()]
        self._numbers = {tensor.key: number for number, tensor in enumerate(self.tensors)}
        self.places = [
            (file.path, piece)
            for file in files
            for piece in file_pieces(file.size, file.header, chunk_size)
            if any((file.path, tensor.name) in self._numbers for tensor in piece.tensors)
        ]
        self.nbytes = sum(piece.nbytes for _, piece in self.places)
        self._table = MarkTable([])
        self._found: set[int] = set()
        self._by_form: dict[Form, list[int]] = {}
        for number, tensor in enumerate(self.tensors):
            self._by_form.setdefault(form_of(tensor.info), []).append(number)

    def load(self, read: Read) -> bool:
        """Read the tensors; return False if that failed, which the commit reports."""
        marks: list[tuple[int, Marks]] = []
        with suppress(CasweightsError):
            for path, piece in self.places:
                content = read(path, piece)
                for part in piece.parts():
                    number = self._numbers.get((path, part.tensor.name))
                    if number is not None:
                        marks.append((number, marks_of(part, content)))
            self._table = MarkTable(marks)
            return True
        return False

    def forget(self, found: Iterable[Key]) -> None:
        """Begin again with the tensors of which little is found, and leave the others alone."""
        for key, number in self._numbers.items():
            if key in found:
                self._found.add(number)
            else:
                tensor = self.tensors[number]
                self.tensors[number] = tensor._replace(origin=_origin(tensor.info))

    def wanted(self) -> Iterator[_Tensor]:
        """Return the tensors that are not found yet."""
        return (tensor for n, tensor in enumerate(self.tensors) if n not in self._found)

    def find(self, marks: Marks) -> Match:
        """Return which rows of the tensors have these marks."""
        match = self._table.find(marks)
        return match.where(~np.isin(match.tensors, list(self._found)))

    def is_wanted(self, tensor: TensorInfo) -> bool:
        """Whether rows like those of another version's tensor are wanted."""
        alike = self._by_form.get(form_of(tensor), ())
        return any(n not in self._found and not self.tensors[n].origin.is_known for n in alike)


def _origin(tensor: TensorInfo) -> Origin:
    return Origin(row_count(tensor), is_vector=form_of(tensor).columns == 1)


class _Search:
    """Compares the tensors of one version with new ones.

    Args:
        db: The store.
        version: The chunks of the version.
        new: The new tensors.
    """

    def __init__(self, db: Database, version: BaseChunks, new: _New) -> None:
        self._db = db
        self._new = new
        self._reader = db.reader.with_local(db.cache)
        self._version = version
        self._pieces: list[tuple[str, ChunkId, Piece]] = list(version.pieces())
        self._sources = self._list_sources()
        self._numbers = {source.key: number for number, source in enumerate(self._sources)}
        self._known: dict[int, dict[int, _Shift | None]] = {}  # by chunk and source
        self._left = max(_MAX_READ * new.nbytes, _LEAST_CHUNKS * db.config.chunk_size)
        self._in_vain = 0

    def _list_sources(self) -> list[_Source]:
        chunks: dict[Key, list[int]] = {}
        for number, (path, _, piece) in enumerate(self._pieces):
            for tensor in piece.tensors:
                chunks.setdefault((path, tensor.name), []).append(number)
        tensors = self._version.tensors
        return [
            _Source(key, tensors.infos[key], numbers, tensors.of(*key))
            for key, numbers in chunks.items()
        ]

    def run(self) -> dict[Key, Made]:
        """Return what each new tensor is made from that has rows of this version."""
        with self._reader.ahead() as announce:
            for numbers in _groups(self._in_order(), _AHEAD):
                wanted = [n for n in numbers if self._new.is_wanted(self._sources[n].info)]
                firsts = dict.fromkeys(self._sources[n].chunks[0] for n in wanted)
                announce([self._pieces[at][1] for at in firsts if at not in self._known])
                for number in wanted:
                    if self._left <= 0 or self._in_vain >= _MOST_IN_VAIN:
                        return self._slices()
                    if self._new.is_wanted(self._sources[number].info):
                        self._follow(number)
        return self._slices()

    def _in_order(self) -> list[int]:
        """Return the numbers of the sources, those first that rows of are probably elsewhere."""
        names = {tensor.key[1] for tensor in self._new.wanted()}
        kept = self._version.kept_names()

        def rank(number: int) -> int:
            name = self._sources[number].key[1]
            return 0 if name in names else 1 if name not in kept else 2

        return sorted(range(len(self._sources)), key=rank)

    def _follow(self, number: int) -> None:
        """Compare the chunks of a source, but for those whose neighbours tell what they are."""
        source, at = self._sources[number], 0
        while at < len(source.chunks) and self._left > 0:
            shift = self._compare(source.chunks[at], number)
            if at == 0 and shift is None and not self._has_result(source.chunks[0], number):
                self._compare(source.chunks[len(source.chunks) // 2], number)
                if not self._has_result(source.chunks[len(source.chunks) // 2], number):
                    return
            at += 1
            if shift is not None:
                last = self._last_within(source, shift)
                if last > at and self._compare(source.chunks[last], number) == shift:
                    at = last + 1

    def _has_result(self, at: int, number: int) -> bool:
        return number in self._known[at]

    def _last_within(self, source: _Source, shift: _Shift) -> int:
        """Return the last chunk of a source all of whose rows would be in the new tensor."""
        size = form_of(source.info).nbytes
        stop = (self._new.tensors[shift.tensor].origin.rows - shift.shift) * size
        return bisect_right(source.content.ends(), stop) - 1

    def _compare(self, at: int, number: int) -> _Shift | None:
        """Compare a chunk with the new tensors; return where all rows of a source in it are.

        Returns:
            None if they are in several places, or nowhere.
        """
        if at not in self._known:
            self._known[at] = {}
            self._compare_all(at)
        return self._known[at].get(number)

    def _compare_all(self, at: int) -> None:
        path, chunk, piece = self._pieces[at]
        self._left -= piece.nbytes
        self._in_vain += 1
        content = uninitialized(piece.nbytes)
        try:
            self._reader.readinto(chunk, content)
        except (IntegrityError, NotFoundError):  # its readers report the damage
            return
        self._db.cache.put(chunk, content)
        for part in piece.parts():
            number = self._numbers[path, part.tensor.name]
            marks = marks_of(part, content)
            match = self._new.find(marks)
            if len(match.rows):
                self._in_vain = 0
                self._known[at][number] = self._add(number, match, len(marks.rows))

    def _add(self, number: int, match: Match, marks: int) -> _Shift | None:
        for tensor, own in match.of_each():
            origin = self._new.tensors[tensor].origin
            origin.add(number, own.rows, own.sources, marks)
        both = np.stack([match.tensors, match.rows - match.sources])
        values, counts = np.unique(both, axis=1, return_counts=True)
        most = int(counts.argmax())
        if counts[most] < _AGREE * counts.sum() or counts[most] < 2:
            return None
        return _Shift(*values[:, most].tolist())

    def _slices(self) -> dict[Key, Made]:
        rows = [row_count(source.info) for source in self._sources]
        found: dict[Key, Made] = {}
        for tensor in self._new.wanted():
            if 0 < tensor.origin.rows <= _LEAST_FOUND * tensor.origin.covered:
                runs = tensor.origin.runs(rows)
                sources = dict.fromkeys(self._sources[run.source].key for run in runs)
                found[tensor.key] = Made(Joined(list(self._slices_of(tensor, runs))), [*sources])
        return found

    def _slices_of(self, tensor: _Tensor, runs: Iterable[Run]) -> Iterator[ChunkSlice]:
        """Yield what a tensor is made from, with zeros in between."""
        size, at = form_of(tensor.info).nbytes, 0
        for start, stop, source, shift in runs:
            if start > at:
                yield ChunkSlice(None, 0, (start - at) * size)
            begin, end = (start - shift) * size, (stop - shift) * size
            yield from self._sources[source].content.between(begin, end)
            at = stop


def _groups(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield a few numbers at a time."""
    return (numbers[at : at + size] for at in range(0, len(numbers), size))
