"""The chunks that those of a new version may be stored as differences from."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from casweights.operations.pairing import Member, pair
from casweights.operations.renumbered import renumbered
from casweights.operations.slices import TensorSlices

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from casweights.format.file_entry import FileEntry, FileRow
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import Header
    from casweights.ids import ChunkId, SnapshotId
    from casweights.operations.slices import ChunkSlice


class LaidOut(Protocol):
    """A file, committed or not, of which the tensors are known."""

    @property
    def path(self) -> str:
        """Its path inside the version."""

    @property
    def header(self) -> Header | None:
        """Its safetensors header; None if it is stored as plain bytes."""

    @property
    def size(self) -> int:
        """Its size in bytes."""


class BaseChunks:
    """The chunks of a version, by their places in it.

    Args:
        version: The version; None for no chunks at all.
        files: The files whose chunks are to be differences from these.

    Raises:
        IntegrityError: The headers or the lists of chunks of the version are lost.
    """

    def __init__(self, version: Snapshot | None = None, files: Sequence[LaidOut] = ()) -> None:
        self._version = version
        self._for = files
        paths = (file.path for file in files)
        self._renumbered = renumbered(paths, (file.path for file in self._files))
        for file in self._files:
            _ = file.chunks  # read now, so that no later call fails

    @property
    def _files(self) -> Sequence[FileEntry]:
        return () if self._version is None else self._version.files

    @property
    def version(self) -> SnapshotId | None:
        """The version; None for no chunks at all."""
        return None if self._version is None else self._version.id

    def chunks(self) -> Collection[ChunkId]:
        """Return all chunks of the version, structure chunks included."""
        return self._chunks

    @cached_property
    def _chunks(self) -> dict[ChunkId, None]:
        return {} if self._version is None else self._version.stored_chunks()

    @cached_property
    def _exact(self) -> dict[tuple[object, ...], ChunkId]:
        return {(path, *_place(piece)): chunk for path, chunk, piece in self._pieces()}

    @cached_property
    def _by_tensor(self) -> dict[tuple[str, str | None], list[ChunkId]]:
        found: dict[tuple[str, str | None], list[ChunkId]] = {}
        for path, chunk, piece in self._pieces():
            found.setdefault((path, piece.name), []).append(chunk)
        return found

    @cached_property
    def _named(self) -> dict[tuple[object, ...], ChunkId]:
        named = (found for found in self._pieces() if found[2].tensors)
        return {_place(piece): chunk for _, chunk, piece in named}

    @cached_property
    def _wholes(self) -> set[str]:
        """The paths of files and the names of tensors."""
        tensors = {info.name for _, _, piece in self._pieces() for info in piece.tensors}
        return tensors | {file.path for file in self._files}

    @cached_property
    def _renamed(self) -> dict[tuple[str, str | None], tuple[str, str]]:
        """The file and name here of each tensor that has another name in the new version."""
        old, new = _members(self._files), _members(self._for)
        names, new_names = ({member.name for member in members} for members in (old, new))
        old = [member for member in old if member.name not in new_names]
        new = [member for member in new if member.name not in names]
        return {
            (new[found.new].file, new[found.new].name): (old[found.old].file, old[found.old].name)
            for found in pair(old, new)
        }

    @cached_property
    def _structure(self) -> dict[tuple[object, ...], ChunkId]:
        if self._version is None:
            return {}
        rows = [file.row(self._version.config) for file in self._files]
        return {place: chunk for row in rows for place, chunk in _structure_places(row)}

    def _pieces(self) -> Iterator[tuple[str, ChunkId, Piece]]:
        if self._version is not None:
            for file in self._version.files:
                for chunk, piece in file.pieces(self._version.config.chunk_size):
                    yield file.path, chunk, piece

    def has_place(self, path: str, piece: Piece) -> bool:
        """Return whether the version has this tensor or, for other bytes, this file."""
        return (piece.tensors[0].name if piece.tensors else self._path(path)) in self._wholes

    def find(self, path: str, piece: Piece) -> ChunkId | None:
        """Return the chunk at the same place of the same file, or else of the same tensor.

        A file is the same if its path is, or differs in the number of a step alone. Tensors that
        only one of the versions has are paired by their shapes and the likeness of their names.

        The place of a chunk of several small tensors is that of the first; the size tells nearly
        always whether the others are the same.

        A tensor of the same name in another file counts, because shards of a model may be cut
        differently from one version to the next.

        Returns:
            The chunk; None if the version has nothing of the same size and dtype there.
        """
        place = _place(piece)
        found = self._exact.get((self._path(path), *place)) or self._named.get(place)
        if found is None and (path, piece.name) in self._renamed:
            return self.at(*self._renamed[path, piece.name], piece)
        return found

    def at(self, file: str, name: str | None, piece: Piece) -> ChunkId | None:
        """Return the chunk of a tensor, or of a file of opaque bytes, that is like a place in it.

        Args:
            file: Path of the file.
            name: Name of the tensor, the first one if several share the chunk; None for a file.
            piece: The place, in a tensor or file of any name.
        """
        return self._exact.get((file, name, *_place(piece)[1:]))

    def of_tensor(self, file: str, name: str | None) -> Sequence[ChunkId]:
        """Return the chunks of a tensor, or of a file of opaque bytes, as for `at`."""
        return self._by_tensor.get((file, name), ())

    def slices(self, path: str, piece: Piece) -> Sequence[ChunkSlice]:
        """Return what the chunk at a place is probably like where `find` returns none.

        Returns:
            Slices of chunks of the version that cover it; none if it is like nothing there.
        """
        return self._slices.find(path, piece)

    @cached_property
    def _slices(self) -> TensorSlices:
        return TensorSlices(self._pieces())

    def find_structure(self, path: str, place: tuple[str, int]) -> ChunkId | None:
        """Return the structure chunk of a file at one of its `structure_places`."""
        return self._structure.get((self._path(path), *place))

    def _path(self, path: str) -> str:
        """Return the path that a file of the new version has in this one."""
        return self._renumbered.get(path, path)


def _members(files: Iterable[LaidOut]) -> list[Member]:
    """Return the tensors of some files, for `pair`."""
    return [
        Member(file.path, info.name, (info.dtype.code, info.shape))
        for file in files
        for info in (file.header.tensors if file.header else ())
    ]


def structure_places(row: FileRow) -> Iterator[tuple[str, int]]:
    """Yield the kind and number of a file's structure chunks, as `FileEntry.structure` does."""
    for kind, chunks in (("header", row.header), ("page", row.pages)):
        yield from ((kind, number) for number in range(len(chunks)))


def _structure_places(row: FileRow) -> Iterator[tuple[tuple[object, ...], ChunkId]]:
    for place, chunk in zip(structure_places(row), (*row.header, *row.pages), strict=True):
        yield (row.path, *place), chunk


def _place(piece: Piece) -> tuple[object, ...]:
    """Return a key that two chunks share if a difference between them may be small."""
    return piece.name, piece.number, piece.nbytes, piece.dtype.code


class Counterpart(NamedTuple):
    """A tensor of another version that one of the new version is like.

    Attributes:
        chunks: The other version.
        file: Path of the tensor's file there.
        name: Name of the tensor; None for a file of opaque bytes.
    """

    chunks: BaseChunks
    file: str
    name: str | None


class Bases:
    """Finds a base for each chunk of a new version.

    Args:
        first: The parent, or the nearest relative; no chunks without either.
        others: Tensors of the new version, by file and name, that have their like elsewhere.
        second: The version for what the first one lacks; no chunks without one.
    """

    def __init__(
        self,
        first: BaseChunks | None = None,
        others: Mapping[tuple[str, str | None], Counterpart] | None = None,
        second: BaseChunks | None = None,
    ) -> None:
        self.first = first or BaseChunks()
        self.second = second or BaseChunks()
        self._others = others or {}

    def find(self, path: str, piece: Piece) -> ChunkId | None:
        """Return the chunk from which the one at this place may be a difference, if any."""
        found = None
        if (other := self._others.get((path, piece.name))) is not None:
            found = other.chunks.at(other.file, other.name, piece)
        return found or self.first.find(path, piece) or self.second.find(path, piece)

    def versions(self) -> Iterable[BaseChunks]:
        """Return the chunks of each version that may serve, those preferred first."""
        others = (other.chunks for other in self._others.values())
        return dict.fromkeys((self.first, self.second, *others))

    def slices(self, path: str, piece: Piece) -> Sequence[ChunkSlice]:
        """Return slices of one version's chunks, as `BaseChunks.slices` does."""
        return self.first.slices(path, piece) or self.second.slices(path, piece)

    def has_place(self, path: str, piece: Piece) -> bool:
        """Return whether one of the versions has this tensor or, for other bytes, this file."""
        is_known = self.first.has_place(path, piece) or self.second.has_place(path, piece)
        return is_known or (path, piece.name) in self._others

    def find_structure(self, path: str, place: tuple[str, int]) -> ChunkId | None:
        """Return the structure chunk of a file at one of its `structure_places`."""
        found = self.first.find_structure(path, place)
        return found or self.second.find_structure(path, place)

    def foreign(self) -> Iterator[ChunkId]:
        """Yield all chunks of relatives that may be bases."""
        for other in self._others.values():
            yield from other.chunks.of_tensor(other.file, other.name)
