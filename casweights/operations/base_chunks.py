"""The chunks of a version, by their places in it and by the tensors that they are part of."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from casweights.format.arithmetic import is_castable
from casweights.operations.derivations import Floats
from casweights.operations.pairing import Member, is_numbered, is_prefixed, pair
from casweights.operations.renumbered import renumbered
from casweights.operations.slices import TensorSlices

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence

    from casweights.format.file_entry import FileEntry, FileRow
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import Header, TensorInfo
    from casweights.ids import ChunkId, SnapshotId
    from casweights.operations.slices import Joined


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
        return {key: like for key, (like, _) in self._pairs.items()}

    @cached_property
    def _pairs(self) -> dict[tuple[str, str | None], tuple[tuple[str, str], bool]]:
        """The same, and whether the pair is more than a guess."""
        old, new = _members(self._files), _members(self._for)
        names, new_names = ({member.name for member in members} for members in (old, new))
        old = [member for member in old if member.name not in new_names]
        new = [member for member in new if member.name not in names]
        olds, news = (Counter(member.form for member in members) for members in (old, new))
        pairs: dict[tuple[str, str | None], tuple[tuple[str, str], bool]] = {}
        for found in pair(old, new):
            one, other = old[found.old], new[found.new]
            is_only = olds[one.form] == news[one.form] == 1
            is_sure = is_only or is_prefixed(one.name, other.name)
            pairs[other.file, other.name] = (one.file, one.name), is_sure
        return pairs

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

    def rows(self, path: str, tensor: TensorInfo) -> Joined:
        """Return what the bytes of a tensor are probably like, from its first row on.

        A tensor has the rows that it has here under the same name, in the same file or else in
        another one, or under the name that it is paired with.
        """
        found = self.tensors.rows(self._path(path), tensor)
        return found or self.tensors.of(*self._renamed.get((path, tensor.name), ("", "")))

    def floats(self, path: str, tensor: TensorInfo) -> Floats | None:
        """Return the tensor of the same name and shape, and another type of floats, if any."""
        for key in self.tensors.named(self._path(path), tensor.name)[-1:]:
            info = self.tensors.infos[key]
            is_other = info.dtype != tensor.dtype and info.shape == tensor.shape
            if is_other and is_castable(info.dtype):
                return Floats(info.dtype, self.tensors.of(*key))
        return None

    def is_sure(self, path: str, tensor: TensorInfo) -> bool:
        """Whether the version has a tensor that can only be the same, by names and shapes.

        Where layers were added or removed, those that follow have other numbers than before.
        """
        if self.is_renumbered(tensor):
            return False
        same = self.tensors.named(self._path(path), tensor.name)
        infos = [self.tensors.infos[key] for key in same]
        if self.tensors.count(tensor.name) == 1 and (infos[0].dtype, infos[0].shape) == (
            tensor.dtype,
            tensor.shape,
        ):
            return True  # stages of a pipeline number their layers alike
        return self._pairs.get((path, tensor.name), ("", False))[1]

    def is_renumbered(self, tensor: TensorInfo) -> bool:
        """Whether a tensor is one of a layer of which there are more or fewer than here."""
        return is_numbered(tensor.name) and _form(tensor) in self._renumbered_forms

    @cached_property
    def _renumbered_forms(self) -> set[Hashable]:
        """The forms of which this version has another number of tensors of a layer than the new."""
        old, new = (
            Counter(member.form for member in _members(files) if is_numbered(member.name))
            for files in (self._files, self._for)
        )
        return {form for form in old if form in new and old[form] != new[form]}

    def has_layout(self, file: LaidOut) -> bool:
        """Whether the version has the same tensors in a file, and so nothing to look for."""
        own = self._headers.get(self._path(file.path))
        return own is not None and file.header is not None and own.tensors == file.header.tensors

    @cached_property
    def _headers(self) -> dict[str, Header]:
        return {file.path: file.header for file in self._files if file.header is not None}

    def kept_names(self) -> set[str]:
        """Return the names of tensors that the new version has, too."""
        return {member.name for member in _members(self._for)}

    @cached_property
    def tensors(self) -> TensorSlices:
        """The chunks, by tensors."""
        return TensorSlices(self._pieces())

    def pieces(self) -> Iterator[tuple[str, ChunkId, Piece]]:
        """Yield the path, chunk and place of all chunks but structure chunks, in order."""
        return self._pieces()

    def find_structure(self, path: str, place: tuple[str, int]) -> ChunkId | None:
        """Return the structure chunk of a file at one of its `structure_places`."""
        return self._structure.get((self._path(path), *place))

    def _path(self, path: str) -> str:
        """Return the path that a file of the new version has in this one."""
        return self._renumbered.get(path, path)


def _members(files: Iterable[LaidOut]) -> list[Member]:
    """Return the tensors of some files, for `pair`."""
    return [
        Member(file.path, info.name, _form(info))
        for file in files
        for info in (file.header.tensors if file.header else ())
    ]


def _form(tensor: TensorInfo) -> Hashable:
    return tensor.dtype.code, tensor.shape


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
