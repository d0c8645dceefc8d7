"""Find the versions of a store that a new version resembles, tensor by tensor.

Signatures tell which versions share anything with it, and samples what a difference from each of
their tensors would take. The best few are confirmed by encoding some chunks.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.errors import IntegrityError, NotFoundError
from casweights.format.codecs import encode, encode_difference
from casweights.format.layout import file_pieces
from casweights.format.sampling import sampled_tensors
from casweights.operations.bases import BaseChunks, Bases, Counterpart
from casweights.operations.prediction import predict, whole_size
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from numpy.typing import NDArray

    from casweights.database import Database
    from casweights.database.reader import LocalFirstReader
    from casweights.database.signatures import Relative
    from casweights.format.layout import Piece
    from casweights.format.sampling import Sampled
    from casweights.format.signature import Signature
    from casweights.ids import SnapshotId
    from casweights.operations.bases import LaidOut
    from casweights.operations.prediction import Match
    from casweights.stores.base import ObjectInfo

    Read = Callable[[str, Piece], memoryview]

_MOST = 4  # versions that are tried by encoding; each costs a few reads
_TRIED = 4  # chunks of each
# Share of the whole chunks as stored. What builds on a larger difference must be stored whole in
# turn, because two such differences cost too much to read: the larger one has saved nothing.
_MAX_SHARE = 0.5
_SURELY_FALSE = 0.25  # share that a signature promises of chunks that have nothing in common
_LEAST_SAVED = 1 / 50  # of the bytes, for which one more version is read
_PREFERRED = 0.5  # share of the best version's bytes that another one must beat: samples are few


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


class _Relative:
    """A version that shares something with the new one.

    Attributes:
        snapshot: The version.
        numbers: For each tensor of the new version, the number of its like; None without one.
        costs: The bytes that each tensor is expected to take.
        chunks: The version's chunks.
        share: What differences from it took where they were tried, as a share of the bytes.
    """

    def __init__(self, found: Relative, new: New) -> None:
        matches = predict(new.signature, found.signature)
        grids = zip(new.signature.grids, matches, strict=True)
        self.snapshot = found.snapshot
        self.numbers = [
            match.base
            if match.base is not None and found.signature.grids[match.base].dtype == grid.dtype
            else None
            for grid, match in grids
        ]
        self.costs = _costs(new.signature, matches, self.numbers)
        self.chunks = BaseChunks()
        self.share = 1.0
        self._tensors: Sequence[Sampled] = ()

    def load(self, db: Database, new: New) -> bool:
        """Load the version; return False if it is gone, or not the one that was sampled."""
        with suppress(IntegrityError, NotFoundError):
            version = db.snapshots.load(self.snapshot, with_locations=True)
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
        return Counterpart(self.chunks, path, tensor.name if tensor else None)

    def measure(self, db: Database, new: New, trial: _Trial) -> None:
        """Encode a few chunks as differences from this version.

        Args:
            db: The store.
            new: The new version.
            trial: The chunks to choose from.
        """
        reader = db.reader.with_local(db.cache)
        taken = expected = whole = 0.0
        for number in trial.chosen(self.numbers):
            piece, grid = trial.pieces[number], new.signature.grids[number]
            most = trial.whole(number)
            taken += min(self._size(new, number, piece, reader), most)
            whole += most
            expected += self.costs[number] * piece.nbytes / grid.nbytes
        if whole:
            self.share = taken / whole
            self.costs[[number is not None for number in self.numbers]] *= taken / expected
            if taken == whole and expected < _SURELY_FALSE * whole:
                db.signatures.distrust(self.snapshot)

    def _size(self, new: New, number: int, piece: Piece, reader: LocalFirstReader) -> int:
        like = self.counterpart(number)
        base = None if like is None else like.chunks.at(like.file, like.name, piece)
        if base is None:
            return piece.nbytes
        raw, old = new.read(new.tensors[number].path, piece), scratch(piece.nbytes)
        try:
            reader.readinto(base, old)
        except (
            IntegrityError
        ):  # damage must not stop a commit; the readers of that version report it
            return piece.nbytes
        encoded = encode_difference(raw, old, piece.dtype, piece.sizes)
        return piece.nbytes if encoded is None else len(encoded[1])


class _Trial:
    """Chunks of the new version by which relatives are compared."""

    def __init__(self, new: New, chunk_size: int) -> None:
        self.pieces = dict(_pieces(new, chunk_size))
        self._new = new
        self._wholes: dict[int, int] = {}

    def chosen(self, numbers: Sequence[int | None]) -> list[int]:
        """Return the numbers of a few tensors that have a like, spread over all their bytes."""
        grids = self._new.signature.grids
        found = [n for n in self.pieces if numbers[n] is not None]
        ends = np.cumsum([grids[n].nbytes for n in found])
        total = int(ends[-1]) if found else 0
        at = (np.arange(_TRIED) + 0.5) * total / _TRIED
        return [found[n] for n in np.unique(np.searchsorted(ends, at)).tolist()] if found else []

    def whole(self, number: int) -> int:
        """Return the bytes that the first chunk of a tensor takes without a base."""
        if number not in self._wholes:
            piece = self.pieces[number]
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


def relatives(
    db: Database,
    new: New,
    parent: BaseChunks | None = None,
    *,
    within: Container[SnapshotId] | None = None,
    listed: dict[str, ObjectInfo] | None = None,
) -> Bases:
    """Find the chunks of other versions that a new one is best stored as differences from.

    Args:
        db: The store.
        new: The version, or those of its tensors that the parent lacks.
        parent: The chunks of the parent; None to find a version in its place.
        within: The versions to choose from; None for all.
        listed: The signatures of the store, if they have just been listed.

    Raises:
        StoreError: The store could not be read.
    """
    nearest = db.signatures.nearest(new.signature, within=within, listed=listed)
    chosen = _chosen([_Relative(found, new) for found in nearest], new)
    trial, worth = _Trial(new, db.config.chunk_size), []
    for one in (one for one in chosen if one.load(db, new)):
        one.measure(db, new, trial)
        if one.share < _MAX_SHARE:
            worth.append(one)
    if not worth:
        return Bases(parent)
    worth.sort(key=lambda one: float(one.costs.sum()))
    return Bases(parent or worth[0].chunks, _assigned(new, worth))


def _assigned(new: New, worth: Sequence[_Relative]) -> dict[tuple[str, str | None], Counterpart]:
    """Return what each tensor is like: one of the best version, unless another one is nearer."""
    costs = np.array([one.costs for one in worth])
    costs[0] *= _PREFERRED
    assigned = {}
    for number, sampled in enumerate(new.tensors):
        like = worth[int(np.argmin(costs[:, number]))].counterpart(number)
        if like is not None:
            assigned[sampled.key] = like
    return assigned


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


def _chosen(found: Sequence[_Relative], new: New) -> list[_Relative]:
    """Return the relatives to try, the best one first.

    The next one is that which saves most in addition to those before, if that is a fiftieth of
    the bytes; otherwise the one that would be best alone.
    """
    best = np.array([whole_size(grid) for grid in new.signature.grids])
    left = [one for one in found if one.costs.sum() < best.sum()]
    chosen: list[_Relative] = []
    while left and len(chosen) < _MOST:
        together = [float(np.minimum(best, one.costs).sum()) for one in left]
        alone = [float(one.costs.sum()) for one in left]
        saved = best.sum() - min(together)
        by = together if saved >= _LEAST_SAVED * best.sum() else alone
        chosen.append(left.pop(by.index(min(by))))
        best = np.minimum(best, chosen[-1].costs)
    return chosen
