"""What a chunk may be made from where it is no difference from one other chunk.

It consists of bytes of others, or it is calculated from tensors of another type, or from two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.format.arithmetic import Arithmetic, is_castable
from casweights.format.codecs import Encoding
from casweights.format.derived import join, lay
from casweights.format.differences import encode_difference
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.format.patterns import MAX_SLICES, Slice
from casweights.format.roots import MAX_ROOTS, Root
from casweights.operations.slices import append
from casweights.system.buffers import is_equal, uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casweights.format.dtypes import DType
    from casweights.format.layout import Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.ids import ChunkId
    from casweights.operations.slices import ChunkSlice, Joined

    Read = Callable[[ChunkId, int], memoryview | None]

Weights = tuple[float, float]


class Floats(NamedTuple):
    """A tensor of floats elsewhere.

    Attributes:
        dtype: Type of its elements, which is castable.
        slices: Its bytes.
    """

    dtype: DType
    slices: Joined


class Derivation(NamedTuple):
    """What a chunk may be made from.

    Attributes:
        slices: Bytes of chunks, and zeros: what the chunk consists of, or its operands, end to end.
        source: Type of the operands; None if nothing is calculated.
        weights: The weights of two operands; None if there is one.
    """

    slices: Sequence[ChunkSlice]
    source: DType | None = None
    weights: Weights | None = None

    @property
    def chunks(self) -> Iterable[ChunkId]:
        """The chunks that it is made from."""
        return dict.fromkeys(one.chunk for one in self.slices if one.chunk is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of all slices."""
        return sum(one.nbytes for one in self.slices)

    def rules(self, dtype: DType) -> Sequence[Arithmetic | None]:
        """Return how a chunk may be made from the slices; the first one is the likeliest."""
        if self.source is None:
            return [None]
        return Arithmetic.rules(self.source, dtype, self.weights)


def calculation(
    piece: Piece,
    operands: Sequence[Callable[[TensorInfo], Floats | None]],
    weights: Weights | None = None,
) -> Derivation | None:
    """Return what a chunk of floats may be calculated from.

    Args:
        piece: Its place.
        operands: For each operand, a function that returns the tensor of as many elements that one
            of the chunk's is calculated from.
        weights: Their weights, if there are two.

    Returns:
        The derivation; None if a tensor has nothing to be calculated from, or the operands are of
        several kinds, or lie in more chunks than a frame may have roots.
    """
    slices: list[ChunkSlice] = []
    types: set[DType] = set()
    for floats_of in operands if is_castable(piece.dtype) and piece.tensors else ():
        for tensor, start, _, nbytes in piece.parts():
            found = floats_of(tensor)
            if found is None:
                return None
            types.add(found.dtype)
            begin, size = (n // piece.dtype.width * found.dtype.width for n in (start, nbytes))
            own = list(found.slices.between(begin, begin + size))
            if sum(one.nbytes for one in own) != size:
                return None
            for one in own:
                append(slices, one)
    if len(types) != 1:
        return None
    made = Derivation(slices, types.pop(), weights)
    return made if len(list(made.chunks)) <= MAX_ROOTS else None


def derive(
    raw: memoryview, piece: Piece, made: Derivation, sizes: Mapping[ChunkId, int], read: Read
) -> EncodedFrame | None:
    """Return the frame of a chunk that is made from others.

    Args:
        raw: The chunk's bytes.
        piece: Its place.
        made: What it is made from.
        sizes: The raw size of each of these chunks.
        read: Returns a chunk of some size, which need not be valid after the next call; None if it
            is damaged.

    Returns:
        The frame; None if it is not smaller than the chunk, or if there are too many slices.
    """
    roots = tuple(Root(chunk, sizes[chunk]) for chunk in made.chunks)
    numbers = {root.chunk: number for number, root in enumerate(roots)}
    slices = [Slice(None if s.chunk is None else numbers[s.chunk], *s[1:]) for s in made.slices]
    if not 0 < len(roots) <= MAX_ROOTS or len(slices) > MAX_SLICES:
        return None
    operands = uninitialized(made.nbytes)
    lay(slices, None, b"", operands)
    for number, root in enumerate(roots):
        old = read(root.chunk, root.raw_size)
        if old is None:
            return None
        lay(slices, number, old, operands)
    rule, base = _nearest(raw, operands, made.rules(piece.dtype), piece.dtype.width)
    difference = None
    if not is_equal(base, raw):
        difference = encode_difference(raw, base, piece.dtype, piece.extents)
        if difference is None:
            return None
    payload = join(slices, difference, rule)
    return EncodedFrame(Encoding.DERIVED, payload, checksum(payload), None, roots)


def _nearest(
    raw: memoryview, operands: memoryview, rules: Sequence[Arithmetic | None], width: int
) -> tuple[Arithmetic | None, memoryview]:
    """Return the rule that makes most elements of a chunk, and what it makes."""
    found = list[tuple[int, Arithmetic | None, memoryview]]()
    for rule, base in _results(operands, rules, len(raw)):
        changed = _changed(raw, base, width) if len(rules) > 1 else 0
        found.append((changed, rule, base))
        if not changed:
            break
    _, rule, base = min(found, key=lambda one: one[0])
    return rule, base


def _results(
    operands: memoryview, rules: Sequence[Arithmetic | None], nbytes: int
) -> Iterator[tuple[Arithmetic | None, memoryview]]:
    """Yield what each rule makes of operands."""
    for rule in rules:
        if rule is None:
            yield rule, operands
        else:
            out = uninitialized(nbytes)
            rule.apply(operands, out)
            yield rule, out


def _changed(raw: memoryview, base: memoryview, width: int) -> int:
    import numpy as np

    new, old = (np.frombuffer(data, f"<u{width}") for data in (raw, base))
    return int(np.count_nonzero(new != old))
