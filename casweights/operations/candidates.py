"""Versions that a new one may be stored as differences from: what samples promise, and trials."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.errors import IntegrityError, NotFoundError
from casweights.format.arithmetic import is_castable
from casweights.format.codecs import encode
from casweights.format.differences import encode_difference
from casweights.format.layout import file_pieces
from casweights.format.sampling import sampled_tensors
from casweights.operations.base_chunks import BaseChunks
from casweights.operations.bases import Counterpart
from casweights.operations.derivations import calculation, derive
from casweights.operations.prediction import predict, whole_size
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from casweights.database import Database
    from casweights.database.signatures import Relative
    from casweights.format.dtypes import DType
    from casweights.format.layout import Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.format.sampling import Sampled
    from casweights.format.signature import Signature
    from casweights.ids import ChunkId
    from casweights.operations.base_chunks import LaidOut
    from casweights.operations.derivations import Derivation, Floats
    from casweights.operations.prediction import Match

    Read = Callable[[str, Piece], memoryview]

_TRIED = 4  # chunks of each
_SUFFICE = 2  # of these, if they confirm what was expected
_CONFIRMED = 1.25  # times the expected bytes, or one part in as many
_SMALL = 1 / 8  # share of a chunk's bytes below which a difference is smaller than the whole
# Share of the whole chunks as stored. What builds on a larger difference must be stored whole in
# turn, because two such differences cost too much to read: the larger one has saved nothing.
_MAX_SHARE = 0.5
_MAX_CALCULATED_SHARE = 0.65  # the same for a version of another type, which may take less to read
_NEAR = 0.5  # share of a tensor's own bytes; above it, it may be made from rows of others
_SURELY_FALSE = 4.0  # times the bytes that a signature promises
_LEAST_COMPARED = 1 / 20  # share of a whole chunk, below which sizes are taken to be equal
_CALCULATED = 5 / 4  # of a difference's bytes: what a tensor of another type counts, costly to read


class New(NamedTuple):
    """A version for which relatives are sought, or some of its tensors.

    Attributes:
        files: All its files.
        tensors: The tensors.
        signature: Their samples.
        read: Returns the version's bytes at a place.
    """

    files: Sequence[LaidOut]
    tensors: Sequence[Sampled]
    signature: Signature
    read: Read


class Candidate:
    """A version that shares something with the new one.

    Attributes:
        snapshot: The version.
        key: Tells the signature apart that says so.
        signature: The signature.
        numbers: For each tensor of the new version, the number of its like; None without one.
        costs: The bytes that each tensor is expected to take.
        alike: Which tensors have a like.
        chunks: The version's chunks.
        share: What differences from it took where they were tried, as a share of the bytes.
    """

    def __init__(self, found: Relative, new: New) -> None:
        matches = predict(new.signature, found.signature)
        grids = zip(new.signature.grids, matches, strict=True)
        self.snapshot, self.key, self.signature = found.snapshot, found.key, found.signature
        types = [grid.dtype for grid in found.signature.grids]
        self.numbers = [
            match.base
            if match.base is not None and _is_like(grid.dtype, types[match.base])
            else None
            for grid, match in grids
        ]
        self.costs = _costs(new.signature, matches, self.numbers)
        casts = [
            n
            for n, (like, grid) in enumerate(zip(self.numbers, new.signature.grids, strict=True))
            if like is not None and types[like] != grid.dtype
        ]
        self.costs[casts] *= _CALCULATED
        self._most = _MAX_CALCULATED_SHARE if 2 * len(casts) > len(types) else _MAX_SHARE
        self.alike = [number is not None for number in self.numbers]
        self._is_near = self.costs <= _NEAR * wholes(new)
        self.chunks = BaseChunks()
        self.share = 1.0
        self._tensors: Sequence[Sampled] = ()

    @property
    def is_worth_it(self) -> bool:
        """Whether the differences from it save enough."""
        return self.share < self._most

    def load(self, db: Database, new: New) -> bool:
        """Load the version; return False if it is gone, or not the one that was sampled."""
        with (
            suppress(IntegrityError, NotFoundError),
            # In a bucket, this reads all of a small version, and the commit reads it no more.
            db.snapshots.reading(self.snapshot) as version,
        ):
            files = ((file.path, file.size, file.header) for file in version.files)
            self._tensors = sampled_tensors(files)
            self.chunks = BaseChunks(version, new.files)
            return max((n for n in self.numbers if n is not None), default=0) < len(self._tensors)
        return False

    def counterpart(self, number: int) -> Counterpart | None:
        """Return the tensor that one of the new version's is like."""
        at = self.numbers[number]
        if at is None:
            return None
        path, tensor, _ = self._tensors[at]
        name = tensor.name if tensor else None
        return Counterpart(self.chunks, path, name, is_near=bool(self._is_near[number]))

    def measure(self, db: Database, new: New, trial: Trial, *, is_clear: bool) -> None:
        """Encode a few chunks as differences from this version.

        Args:
            db: The store.
            new: The new version.
            trial: The chunks to choose from.
            is_clear: Whether no other version comes close, so that fewer chunks suffice.
        """
        taken = expected = whole = compared = 0.0
        for tried, number in enumerate(trial.chosen(self.numbers)):
            if tried == _SUFFICE and is_clear and _is_confirmed(compared, expected, whole):
                break
            piece = trial.pieces[number]
            size = self.size(db, new, number, piece, trial)
            most = trial.whole(number, exact=size > _SMALL * piece.nbytes)
            taken += min(size, most)
            whole += most
            # That no sample differs is a guess, which is not to make all others look larger.
            compared += max(min(size, most), _LEAST_COMPARED * most)
            expected += max(self._expected(new, number, trial), _LEAST_COMPARED * most)
        if whole:
            self.share = taken / whole
            self.costs[self.alike] *= compared / expected
            if not self.is_worth_it and taken > _SURELY_FALSE * expected:
                db.signatures.distrust(self.key)

    def _expected(self, new: New, number: int, trial: Trial) -> float:
        """Return the bytes that the first chunk of a tensor is expected to take.

        It may have other tensors, too.
        """
        piece, path, grids = trial.pieces[number], new.tensors[number].path, new.signature.grids
        if not piece.tensors:
            return float(self.costs[number]) * piece.nbytes / grids[number].nbytes
        numbers = ((trial.numbers.get((path, t.name)), size) for t, _, _, size in piece.parts())
        known = ((n, size) for n, size in numbers if n is not None)
        return float(sum(self.costs[n] * size / grids[n].nbytes for n, size in known))

    def size(self, db: Database, new: New, number: int, piece: Piece, trial: Trial) -> int:
        """Return the bytes of a chunk of a tensor as a difference from this version."""
        like = self.counterpart(number)
        path, reader = new.tensors[number].path, db.reader.with_local(db.cache)

        def old(chunk: ChunkId, nbytes: int) -> memoryview | None:
            content = scratch(nbytes)
            try:
                reader.readinto(chunk, content)
            except IntegrityError:  # its readers report it: damage must not stop a commit
                return None
            return content

        base = None if like is None else like.chunks.at(like.file, like.name, piece)
        if base is not None:
            content = old(base, piece.nbytes)
            if content is not None:
                raw = new.read(path, piece)
                encoded = encode_difference(raw, content, piece.dtype, piece.extents)
                return piece.nbytes if encoded is None else len(encoded[1])
            return piece.nbytes
        made = self._calculation(trial, path, piece)
        if made is None or not all(_is_plain(db, chunk) for chunk in made.chunks):
            return piece.nbytes
        frame = derive(new.read(path, piece), piece, made, self.chunks.tensors.sizes, old)
        return piece.nbytes if frame is None else len(frame.payload)

    def _calculation(self, trial: Trial, path: str, piece: Piece) -> Derivation | None:
        """Return what a chunk may be calculated from, if its tensors have likes of another type."""

        def floats_of(tensor: TensorInfo) -> Floats | None:
            number = trial.numbers.get((path, tensor.name))
            like = None if number is None else self.counterpart(number)
            return None if like is None else like.floats(tensor)

        return calculation(piece, [floats_of])


def _is_plain(db: Database, chunk: ChunkId) -> bool:
    """Whether other chunks can be made from one, because it is not made from others itself."""
    return db.index.find_chain(chunk) is not None and db.index.plain_chain(chunk) is not None


def _is_like(dtype: DType, other: DType) -> bool:
    """Whether a tensor can be a difference from one of another type, or calculated from it."""
    return dtype == other or (is_castable(dtype) and is_castable(other))


class Trial:
    """Chunks of the new version by which relatives are compared."""

    def __init__(self, new: New, chunk_size: int) -> None:
        self.numbers = {sampled.key: number for number, sampled in enumerate(new.tensors)}
        self.pieces = dict(_pieces(new, chunk_size))
        self._new = new
        self._wholes: dict[int, int] = {}

    def chosen(self, numbers: Sequence[int | None]) -> list[int]:
        """Return the numbers of a few tensors that have a like, spread over all their bytes."""
        grids = self._new.signature.grids
        found = [n for n in self.pieces if numbers[n] is not None]
        # Small tensors share a chunk, which has the number of the first one.
        ends = np.cumsum([max(self.pieces[n].nbytes, grids[n].nbytes) for n in found])
        total = int(ends[-1]) if found else 0
        at = (np.arange(_TRIED) + 0.5) * total / _TRIED
        spread = np.unique(np.searchsorted(ends, at)).tolist() if found else []
        return [found[n] for n in (*spread[1::2], *spread[::2])]

    def whole(self, number: int, *, exact: bool) -> float:
        """Return the bytes that the first chunk of a tensor takes without a base.

        Args:
            number: Number of the tensor.
            exact: Whether to encode the chunk; otherwise they may be a guess.
        """
        piece, grid = self.pieces[number], self._new.signature.grids[number]
        if number not in self._wholes:
            if not exact:
                return whole_size(grid) * piece.nbytes / grid.nbytes
            raw = self._new.read(self._new.tensors[number].path, piece)
            self._wholes[number] = len(encode(raw, piece.dtype, "auto")[1])
        return self._wholes[number]


def _pieces(new: New, chunk_size: int) -> Iterator[tuple[int, Piece]]:
    """Yield the first chunk of each tensor that begins one, with the tensor's number."""
    numbers = {sampled.key: number for number, sampled in enumerate(new.tensors)}
    for file in new.files:
        for piece in file_pieces(file.size, file.header, chunk_size):
            number = numbers.get((file.path, piece.name))
            if number is not None and piece.number == 0:
                yield number, piece


def _is_confirmed(taken: float, expected: float, whole: float) -> bool:
    """Whether a few chunks suffice, because they take what was expected, and little."""
    return taken < _MAX_SHARE / 2 * whole and expected / _CONFIRMED < taken < expected * _CONFIRMED


def wholes(new: New) -> NDArray[np.float64]:
    """Return the bytes that each tensor is expected to take whole."""
    return np.array([whole_size(grid) for grid in new.signature.grids])


def _costs(
    signature: Signature, matches: Sequence[Match], numbers: Sequence[int | None]
) -> NDArray[np.float64]:
    """Return the bytes that each tensor is expected to take, those without a like whole."""
    return np.array(
        [
            whole_size(grid) if number is None else match.nbytes
            for grid, match, number in zip(signature.grids, matches, numbers, strict=True)
        ]
    )
