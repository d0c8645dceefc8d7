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
_SUFFICE = 2  # of these, if they confirm what was expected
_CONFIRMED = 1.25  # times the expected bytes, or one part in as many
_CLEARLY = 1.3  # times the best version's bytes, which are not worth a trial
_SMALL = 1 / 8  # share of a chunk's bytes below which a difference is smaller than the whole
# Share of the whole chunks as stored. What builds on a larger difference must be stored whole in
# turn, because two such differences cost too much to read: the larger one has saved nothing.
_MAX_SHARE = 0.5
_SURELY_FALSE = 4.0  # times the bytes that a signature promises
_LEAST_SAVED = 1 / 50  # of the bytes, for which one more version is read
_PREFERRED = 0.5  # share of a better version's bytes that another one must beat: samples are few


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
        key: Tells the signature apart that says so.
        numbers: For each tensor of the new version, the number of its like; None without one.
        costs: The bytes that each tensor is expected to take.
        alike: Which tensors have a like.
        chunks: The version's chunks.
        share: What differences from it took where they were tried, as a share of the bytes.
    """

    def __init__(self, found: Relative, new: New) -> None:
        matches = predict(new.signature, found.signature)
        grids = zip(new.signature.grids, matches, strict=True)
        self.snapshot, self.key = found.snapshot, found.key
        self.numbers = [
            match.base
            if match.base is not None and found.signature.grids[match.base].dtype == grid.dtype
            else None
            for grid, match in grids
        ]
        self.costs = _costs(new.signature, matches, self.numbers)
        self.alike = [number is not None for number in self.numbers]
        self.chunks = BaseChunks()
        self.share = 1.0
        self._tensors: Sequence[Sampled] = ()

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
        return Counterpart(self.chunks, path, tensor.name if tensor else None)

    def measure(self, db: Database, new: New, trial: _Trial, *, is_clear: bool) -> None:
        """Encode a few chunks as differences from this version.

        Args:
            db: The store.
            new: The new version.
            trial: The chunks to choose from.
            is_clear: Whether no other version comes close, so that fewer chunks suffice.
        """
        reader = db.reader.with_local(db.cache)
        taken = expected = whole = 0.0
        for tried, number in enumerate(trial.chosen(self.numbers)):
            if tried == _SUFFICE and is_clear and _is_confirmed(taken, expected, whole):
                break
            piece, grid = trial.pieces[number], new.signature.grids[number]
            size = self.size(new, number, piece, reader)
            most = trial.whole(number, exact=size > _SMALL * piece.nbytes)
            taken += min(size, most)
            whole += most
            expected += self.costs[number] * piece.nbytes / grid.nbytes
        if whole:
            self.share = taken / whole
            self.costs[self.alike] *= taken / expected
            if self.share >= _MAX_SHARE and taken > _SURELY_FALSE * expected:
                db.signatures.distrust(self.key)

    def size(self, new: New, number: int, piece: Piece, reader: LocalFirstReader) -> int:
        """Return the bytes of a chunk of a tensor as a difference from this version."""
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
    trial = _Trial(new, db.config.chunk_size)
    worth = _tried(db, new, trial, [_Relative(found, new) for found in nearest])
    if not worth:
        return Bases(parent)
    owners = _confirmed(db, new, trial, _owners(worth, _wholes(new)))
    first = parent or worth[0].chunks
    likes = ((new.tensors[n].key, one.counterpart(n)) for n, one in enumerate(owners))
    return Bases(first, {key: like for key, like in likes if like is not None})


def _tried(db: Database, new: New, trial: _Trial, found: Sequence[_Relative]) -> list[_Relative]:
    """Return relatives that are worth it, the best one first: a few are tried.

    The next one is that which saves most in addition to those before, if that is a fiftieth of
    the bytes; otherwise the one that would be best alone, unless those before are clearly better.
    """
    best = doubtful = _wholes(new)
    left = [one for one in found if one.costs.sum() < best.sum()]
    worth: list[_Relative] = []
    for _ in range(_MOST):
        if not left:
            break
        one = min(left, key=lambda one: float(_taking(best, one, worth).sum()))
        if best.sum() - _taking(best, one, worth).sum() < _LEAST_SAVED * best.sum():
            one = min(left, key=lambda one: float(one.costs.sum()))
            if worth and one.costs[one.alike].sum() > _CLEARLY * doubtful[one.alike].sum():
                break
        left.remove(one)
        if one.load(db, new):
            promised = one.costs.copy()
            least = _CLEARLY * one.costs[one.alike].sum()
            rivals = (*worth, *(o for o in left if o.costs[one.alike].sum() < least))
            one.measure(db, new, trial, is_clear=not rivals)
            if one.share < _MAX_SHARE:
                taking = _taking(best, one, worth)
                doubtful = np.where(taking < best, np.maximum(promised, one.costs), doubtful)
                best = taking
                worth.append(one)
    return sorted(worth, key=lambda one: float(one.costs.sum()))


def _is_confirmed(taken: float, expected: float, whole: float) -> bool:
    """Whether a few chunks suffice, because they take what was expected, and little."""
    return taken < _MAX_SHARE / 2 * whole and expected / _CONFIRMED < taken < expected * _CONFIRMED


def _wholes(new: New) -> NDArray[np.float64]:
    """Return the bytes that each tensor is expected to take whole."""
    return np.array([whole_size(grid) for grid in new.signature.grids])


def _taking(
    best: NDArray[np.float64], one: _Relative, before: Sequence[_Relative]
) -> NDArray[np.float64]:
    """Return the bytes of each tensor if it comes from another version where that is nearer.

    With a smaller margin, chance would make some tensors of a cousin look nearer.
    """
    return np.where(one.costs < (_PREFERRED if before else 1.0) * best, one.costs, best)


def _owners(worth: Sequence[_Relative], whole: NDArray[np.float64]) -> list[list[_Relative]]:
    """Return the version that each tensor is like, after those that others were nearer than."""
    left, chosen = list(worth[1:]), [worth[0]]
    owners = [[worth[0]] for _ in whole]
    best = worth[0].costs
    while left:
        one = min(left, key=lambda one: float(_taking(best, one, chosen).sum()))
        taking = _taking(best, one, chosen)
        for n in np.flatnonzero(taking < best).tolist():
            owners[n].append(one)
        best = taking
        chosen.append(one)
        left.remove(one)
    return owners


def _confirmed(
    db: Database, new: New, trial: _Trial, owners: Sequence[Sequence[_Relative]]
) -> list[_Relative]:
    """Return the version of each tensor, after a trial of some for which another one was chosen.

    Samples are few, and of some tensor none differ by chance.
    """
    reader = db.reader.with_local(db.cache)
    found = [several[-1] for several in owners]
    earlier = {
        n: one
        for n, several in enumerate(owners)
        for one in several[-2:-1]
        if n in trial.pieces and one.alike[n]
    }
    largest = sorted(earlier, key=lambda n: -new.signature.grids[n].nbytes)
    wrong = 0
    for n in largest[:_TRIED]:
        before, after = (
            one.size(new, n, trial.pieces[n], reader) for one in (earlier[n], found[n])
        )
        if before <= after:
            found[n] = earlier[n]
            wrong += 1
    if 2 * wrong > len(largest[:_TRIED]):
        for n in largest[_TRIED:]:
            found[n] = earlier[n]
    return found


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
