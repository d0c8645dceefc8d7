"""Slices of chunks, of which another chunk is made.

They are found where a version has the same tensor with other rows.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

from casweights.format.codecs import Encoding, encode_difference
from casweights.format.derived import MAX_SLICES, Slice, join, lay
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.format.roots import MAX_ROOTS, Root
from casweights.system.buffers import is_equal, uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casweights.database.chain import Chain
    from casweights.format.layout import Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.ids import ChunkId


class ChunkSlice(NamedTuple):
    """Bytes of a chunk, or zeros.

    Attributes:
        chunk: The chunk; None for zeros.
        offset: Offset of the bytes in the chunk; 0 for zeros.
        nbytes: Their number.
    """

    chunk: ChunkId | None
    offset: int
    nbytes: int


class TensorSlices:
    """The chunks of a version, by the tensors whose bytes they contain.

    Args:
        pieces: The path, chunk and place of all chunks of the version, in order.
    """

    def __init__(self, pieces: Iterable[tuple[str, ChunkId, Piece]]) -> None:
        self._exact: dict[tuple[str, str], list[ChunkSlice]] = {}
        self._infos: dict[tuple[str, str], TensorInfo] = {}
        self._named: dict[str, str] = {}  # the path of a file with a tensor of this name
        for path, chunk, piece in pieces:
            for part in piece.parts():
                key = path, part.tensor.name
                self._exact.setdefault(key, []).append(ChunkSlice(chunk, part.offset, part.nbytes))
                self._infos[key] = part.tensor
                self._named[part.tensor.name] = path

    def find(self, path: str, piece: Piece) -> Sequence[ChunkSlice]:
        """Return what may lie at the place of a chunk, in order.

        A tensor has the rows that it has here under the same name, in the same file or else in
        another one, from its first row on. Further rows, and other tensors, are zeros.

        Returns:
            Slices that cover the chunk; none if there is nothing of its tensors here.
        """
        found: list[ChunkSlice] = []
        for part in piece.parts():
            own = self._rows(path, part.tensor)
            covered = 0
            for one in _between(own, part.start, part.start + part.nbytes):
                _append(found, one)
                covered += one.nbytes
            if covered < part.nbytes:
                _append(found, ChunkSlice(None, 0, part.nbytes - covered))
        return found if any(one.chunk is not None for one in found) else ()

    def _rows(self, path: str, tensor: TensorInfo) -> Sequence[ChunkSlice]:
        """Return the bytes of a tensor of this name, if its rows are alike."""
        key = path, tensor.name
        if key not in self._exact:
            key = self._named.get(tensor.name, ""), tensor.name
        info = self._infos.get(key)
        if info is None or info.dtype != tensor.dtype:
            return ()
        return self._exact[key] if prod(info.shape[1:]) == prod(tensor.shape[1:]) else ()


def _between(slices: Iterable[ChunkSlice], start: int, stop: int) -> Iterator[ChunkSlice]:
    """Yield those of some bytes, given as slices, that lie between two positions."""
    at = 0
    for chunk, offset, nbytes in slices:
        first, last = max(start, at), min(stop, at + nbytes)
        if first < last:
            yield ChunkSlice(chunk, offset + first - at, last - first)
        at += nbytes


def _append(slices: list[ChunkSlice], new: ChunkSlice) -> None:
    """Append a slice, or extend the last one if the new one goes on where it ends."""
    if slices:
        chunk, offset, nbytes = slices[-1]
        if chunk == new.chunk and (chunk is None or offset + nbytes == new.offset):
            slices[-1] = ChunkSlice(chunk, offset, nbytes + new.nbytes)
            return
    slices.append(new)


def derive(
    raw: memoryview,
    piece: Piece,
    slices: Sequence[ChunkSlice],
    chains: Mapping[ChunkId, Chain],
    read: Callable[[ChunkId, int], memoryview | None],
) -> EncodedFrame | None:
    """Return the frame of a chunk that is made from slices of others.

    Args:
        raw: The chunk's bytes.
        piece: Its place.
        slices: What it is like; they cover it.
        chains: The chain of each chunk of the slices.
        read: Returns a chunk of some size; None if it is damaged.

    Returns:
        The frame; None if it is not smaller than the chunk, or if there are too many slices.
    """
    roots = tuple(Root(c, chain.frames[-1].frame.raw_size) for c, chain in chains.items())
    numbers = {root.chunk: number for number, root in enumerate(roots)}
    parts = [Slice(None if s.chunk is None else numbers[s.chunk], *s[1:]) for s in slices]
    if not 0 < len(roots) <= MAX_ROOTS or len(parts) > MAX_SLICES:
        return None
    base = uninitialized(len(raw))
    lay(parts, None, b"", base)
    for number, root in enumerate(roots):
        old = read(root.chunk, root.raw_size)
        if old is None:
            return None
        lay(parts, number, old, base)
    difference = None
    if not is_equal(base, raw):
        difference = encode_difference(raw, base, piece.dtype, piece.sizes)
        if difference is None:
            return None
    payload = join(parts, difference)
    return EncodedFrame(Encoding.DERIVED, payload, checksum(payload), None, roots)


def in_proportion(
    slices: Sequence[ChunkSlice], chains: Mapping[ChunkId, Chain]
) -> tuple[float, float]:
    """Return the bytes of chains, and of their chunks by themselves, in proportion to their use."""
    read = whole = 0.0
    for chunk, _, nbytes in slices:
        if chunk is not None:
            chain = chains[chunk]
            share = nbytes / chain.frames[-1].frame.raw_size
            read, whole = read + share * chain.nbytes, whole + share * chain.whole_size
    return read, whole
