"""Find the versions of a store that a new version resembles, tensor by tensor.

Signatures tell which versions share anything with it, and samples what a difference from each of
their tensors would take. The best few are confirmed by encoding some chunks.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.errors import IntegrityError, NotFoundError
from casweights.format.arithmetic import is_castable
from casweights.format.codecs import encode, encode_difference
from casweights.format.layout import file_pieces
from casweights.format.sampling import sampled_tensors
from casweights.operations.base_chunks import BaseChunks
from casweights.operations.bases import Bases, Counterpart, Sum
from casweights.operations.derivations import calculation, derive
from casweights.operations.merges import sum_weights
from casweights.operations.prediction import predict, whole_size
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from numpy.typing import NDArray

    from casweights.database import Database
    from casweights.database.signatures import Relative
    from casweights.format.dtypes import DType
    from casweights.format.layout import Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.format.sampling import Sampled
    from casweights.format.signature import Signature
    from casweights.ids import ChunkId, SnapshotId
    from casweights.operations.base_chunks import LaidOut
    from casweights.operations.derivations import Derivation, Floats
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
_MAX_CALCULATED_SHARE = 0.65  # the same for a version of another type, which may take less to read
_NEAR = 0.5  # share of a tensor's own bytes; above it, it may be made from rows of others
_SURELY_FALSE = 4.0  # times the bytes that a signature promises
_LEAST_COMPARED = 1 / 20  # share of a whole chunk, below which sizes are taken to be equal
_CALCULATED = 5 / 4  # of a difference's bytes: what a tensor of another type counts, costly to read
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
        self._is_near = self.costs <= _NEAR * _wholes(new)
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

    def measure(self, db: Database, new: New, trial: _Trial, *, is_clear: bool) -> None:
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

    def _expected(self, new: New, number: int, trial: _Trial) -> float:
        """Return the bytes that the first chunk of a tensor is expected to take.

        It may have other tensors, too.
        """
        piece, path, grids = trial.pieces[number], new.tensors[number].path, new.signature.grids
        if not piece.tensors:
            return float(self.costs[number]) * piece.nbytes / grids[number].nbytes
        numbers = ((trial.numbers.get((path, t.name)), size) for t, _, _, size in piece.parts())
        known = ((n, size) for n, size in numbers if n is not None)
        return float(sum(self.costs[n] * size / grids[n].nbytes for n, size in known))

    def size(self, db: Database, new: New, number: int, piece: Piece, trial: _Trial) -> int:
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
                encoded = encode_difference(raw, content, piece.dtype, piece.sizes)
                return piece.nbytes if encoded is None else len(encoded[1])
            return piece.nbytes
        made = self._calculation(trial, path, piece)
        if made is None or not all(_is_plain(db, chunk) for chunk in made.chunks):
            return piece.nbytes
        frame = derive(new.read(path, piece), piece, made, self.chunks.tensors.sizes, old)
        return piece.nbytes if frame is None else len(frame.payload)

    def _calculation(self, trial: _Trial, path: str, piece: Piece) -> Derivation | None:
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


class _Trial:
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
    found = [_Relative(one, new) for one in nearest]
    worth = _tried(db, new, trial, found)
    if not worth:
        return Bases(parent, related=_with_rows(db, found, new))
    owners = _confirmed(db, new, trial, _owners(worth, _wholes(new)))
    first = parent or worth[0].chunks
    likes = ((new.tensors[n].key, one.counterpart(n)) for n, one in enumerate(owners))
    assigned = {key: like for key, like in likes if like is not None}
    related = [one.chunks for one in worth]
    return Bases(first, assigned, related=related, sums=_sums(db, new, found, worth))


def _sums(
    db: Database, new: New, found: Sequence[_Relative], worth: Sequence[_Relative]
) -> dict[tuple[str, str | None], Sum]:
    """Return the tensors that are sums of those of two relatives."""
    nearest = sorted(found, key=lambda one: float(one.costs.sum()))[:_MOST]
    for pair in combinations(dict.fromkeys([*worth, *nearest]), 2):
        weights = sum_weights(new.signature, [(one.signature, one.numbers) for one in pair])
        if weights is not None and all(one in worth or one.load(db, new) for one in pair):
            likes = [[one.counterpart(n) for one in pair] for n in range(len(new.tensors))]
            return {
                sampled.key: Sum((one, other), weights)
                for sampled, (one, other) in zip(new.tensors, likes, strict=True)
                if one is not None and other is not None
            }
    return {}


def _with_rows(db: Database, found: Sequence[_Relative], new: New) -> Sequence[BaseChunks]:
    """Return the version that shares most, though no tensor as a whole: perhaps rows of some."""
    return [one.chunks for one in found[:1] if one.load(db, new)]


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
            if one.is_worth_it:
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
            one.size(db, new, n, trial.pieces[n], trial) for one in (earlier[n], found[n])
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
