"""The chunks that those of a new version may be stored as differences from, or made from."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from casweights.format.arithmetic import is_castable
from casweights.operations.base_chunks import BaseChunks
from casweights.operations.derivations import Derivation, Floats, calculation
from casweights.operations.slices import NOTHING, base_of, cover

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from casweights.format.layout import Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.ids import ChunkId
    from casweights.operations.derivations import Weights
    from casweights.operations.slices import ChunkSlice, Columns, Joined


_NEAREST_SHARE = 1 / 2


class Counterpart(NamedTuple):
    """A tensor of another version that one of the new version is like.

    Attributes:
        chunks: The other version.
        file: Path of the tensor's file there.
        name: Name of the tensor; None for a file of opaque bytes.
        is_near: Whether it is so near that no other tensor can be what this one was made from.
    """

    chunks: BaseChunks
    file: str
    name: str | None
    is_near: bool = True

    @property
    def info(self) -> TensorInfo | None:
        """The other tensor; None for a file of opaque bytes."""
        return None if self.name is None else self.chunks.tensors.infos.get((self.file, self.name))

    def slices(self) -> Joined:
        """Return the bytes of the other tensor; none for a file of opaque bytes."""
        return NOTHING if self.name is None else self.chunks.tensors.of(self.file, self.name)

    def floats(self, tensor: TensorInfo) -> Floats | None:
        """Return the other tensor, if one can be calculated from it."""
        info = self.info
        if info is None or not is_castable(info.dtype):
            return None
        return Floats(info.dtype, self.slices())


class Sum(NamedTuple):
    """Two tensors that add up to one of the new version, multiplied by weights."""

    operands: tuple[Counterpart, Counterpart]
    weights: Weights


class Rows(NamedTuple):
    """Tensors whose rows are elsewhere, one by one.

    Attributes:
        slices: What each tensor is like, by file and name.
        sizes: The raw sizes of the chunks.
        sources: The path and name of each tensor that a tensor has rows or columns of, in order.
    """

    slices: Mapping[tuple[str, str], Joined | Columns] = {}
    sizes: Mapping[ChunkId, int] = {}
    sources: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = {}


class Bases:
    """Finds a base for each chunk of a new version.

    Args:
        first: The parent, or the nearest relative; no chunks without either.
        others: Tensors of the new version, by file and name, that have their like elsewhere.
        second: The version for what the first one lacks; no chunks without one.
        rows: Tensors of the new version that are made from rows of others.
        related: The versions that are relatives, without the parent.
        left: Places of chunks, by path, that are not to be made from others.
        sums: Tensors of the new version, by file and name, that are sums of two others.

    Attributes:
        first: The argument.
        second: The argument.
        rows: The argument.
        related: The argument.
    """

    def __init__(
        self,
        first: BaseChunks | None = None,
        others: Mapping[tuple[str, str | None], Counterpart] | None = None,
        second: BaseChunks | None = None,
        rows: Rows | None = None,
        related: Sequence[BaseChunks] = (),
        left: Collection[tuple[str, Piece]] = (),
        sums: Mapping[tuple[str, str | None], Sum] | None = None,
    ) -> None:
        self.first = first or BaseChunks()
        self.second = second or BaseChunks()
        self.related = related
        self._others = others or {}
        self._left = left
        self._sums = sums or {}
        self.rows = rows or Rows()

    def with_rows(self, rows: Rows, first: BaseChunks | None = None) -> Bases:
        """Return these bases, and tensors that are made from rows of others.

        Args:
            rows: The tensors.
            first: The version to use if these bases have no first one.
        """
        sizes = {**self.rows.sizes, **rows.sizes}
        slices = {**self.rows.slices, **rows.slices}
        known = self.first if self.first.chunks() else first
        return self._with(first=known, rows=Rows(slices, sizes))

    def without(self, places: Collection[tuple[str, Piece]]) -> Bases:
        """Return these bases, but for chunks at some places that are not to be made from others."""
        return self._with(left={*self._left, *places})

    def _with(self, **changes: Any) -> Bases:
        own = {"first": self.first, "others": self._others, "second": self.second}
        more = {"rows": self.rows, "related": self.related, "left": self._left, "sums": self._sums}
        return Bases(**{**own, **more, **changes})

    def find(self, path: str, piece: Piece) -> ChunkId | None:
        """Return the chunk from which the one at this place may be a difference, if any."""
        if any((path, tensor.name) in self.rows.slices for tensor in piece.tensors):
            return base_of(self.slices(path, piece), piece.nbytes, self.sizes)
        found = None
        if (other := self._others.get((path, piece.name))) is not None:
            if len(piece.tensors) > 1:
                return base_of(self.slices(path, piece), piece.nbytes, self.sizes)
            found = other.chunks.at(other.file, other.name, piece)
        return found or self.first.find(path, piece) or self.second.find(path, piece)

    def versions(self) -> Iterable[BaseChunks]:
        """Return the chunks of each version that may serve, those preferred first."""
        others = (other.chunks for other in self._others.values())
        return dict.fromkeys((self.first, self.second, *self.related, *others))

    def slices(self, path: str, piece: Piece) -> Sequence[ChunkSlice]:
        """Return what the chunk at a place is probably like where `find` returns none.

        Returns:
            Slices of chunks of the versions that cover it; none if it is like nothing there.
        """
        if (path, piece) in self._left:
            return ()
        return cover(piece, partial(self._bytes_of, path))

    def nearest(self, path: str, piece: Piece) -> ChunkId | None:
        """Return a chunk like half of the one at a place, or more, where `find` returns none."""
        return base_of(self.slices(path, piece), piece.nbytes, self.sizes, share=_NEAREST_SHARE)

    def derivation(self, path: str, piece: Piece, base: ChunkId | None = None) -> Derivation | None:
        """Return what the chunk at a place is probably made from, if from several others.

        Args:
            path: The path of its file.
            piece: Its place.
            base: What `find` returns for it.
        """
        if self._sums and (made := self._sum(path, piece)) is not None:
            return made
        if base is not None:
            return None
        if slices := self.slices(path, piece):
            return Derivation(slices)
        return calculation(piece, [partial(self._floats_of, path)])

    def _sum(self, path: str, piece: Piece) -> Derivation | None:
        found = self._sums.get((path, piece.name))

        def operand(number: int, tensor: TensorInfo) -> Floats | None:
            own = self._sums.get((path, tensor.name))
            return None if own is None else own.operands[number].floats(tensor)

        if found is None:
            return None
        return calculation(piece, [partial(operand, n) for n in range(2)], found.weights)

    def _floats_of(self, path: str, tensor: TensorInfo) -> Floats | None:
        if (other := self._others.get((path, tensor.name))) is not None:
            return other.floats(tensor)
        return self.first.floats(path, tensor) or self.second.floats(path, tensor)

    def _bytes_of(self, path: str, tensor: TensorInfo) -> Joined | Columns:
        key = path, tensor.name
        if (known := self.rows.slices.get(key)) is not None:
            return known
        other = self._others.get(key)
        info = None if other is None else other.info
        if other and info and (info.dtype, info.nbytes) == (tensor.dtype, tensor.nbytes):
            return other.slices()
        found = self.first.rows(path, tensor)
        return found if found.nbytes else self.second.rows(path, tensor)

    @cached_property
    def sizes(self) -> Mapping[ChunkId, int]:
        """The raw sizes of the chunks of all versions."""
        sizes = dict(self.rows.sizes)
        for chunks in self.versions():
            sizes.update(chunks.tensors.sizes)
        return sizes

    def is_sure(self, path: str, tensor: TensorInfo) -> bool:
        """Whether it is known what a tensor is like as a whole."""
        key = path, tensor.name
        if (other := self._others.get(key)) is not None and not other.is_near:
            return key in self.rows.slices
        if other is not None or key in self.rows.slices:
            return True
        return self.first.is_sure(path, tensor) or self.second.is_sure(path, tensor)

    def is_known(self, path: str, piece: Piece) -> bool:
        """Whether there is something that the chunk at a place is probably like."""
        if self.find(path, piece) is not None:
            return True
        return bool(piece.tensors) and all(self.is_sure(path, one) for one in piece.tensors)

    def has_place(self, path: str, piece: Piece) -> bool:
        """Return whether one of the versions has this tensor or, for other bytes, this file."""
        if (path, piece.name) in self._others or (path, piece.name) in self.rows.slices:
            return True
        return self.first.has_place(path, piece) or self.second.has_place(path, piece)

    def find_structure(self, path: str, place: tuple[str, int]) -> ChunkId | None:
        """Return the structure chunk of a file at one of its `structure_places`."""
        found = self.first.find_structure(path, place)
        return found or self.second.find_structure(path, place)

    def foreign(self) -> Iterator[ChunkId]:
        """Yield all chunks that may be bases and that names alone do not lead to."""
        for other in self._others.values():
            yield from other.chunks.of_tensor(other.file, other.name)
            yield from other.slices().chunks()
        for made in self.rows.slices.values():
            yield from made.chunks()
        for one in self._sums.values():
            for operand in one.operands:
                yield from operand.slices().chunks()
