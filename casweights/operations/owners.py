"""Which of several relatives each tensor of a new version comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from casweights.database import Database
    from casweights.operations.candidates import Candidate, New, Trial

    Owners = Sequence[Sequence[Candidate]]

_PREFERRED = 0.5  # share of a better version's bytes that another one must beat: samples are few
_TRIED = 4  # chunks for which another version was chosen, and of those for which several were
_LITTLE = 1 / 8  # of a chunk's bytes: a difference that several versions cannot save much of


def taking(
    best: NDArray[np.float64], one: Candidate, before: Sequence[Candidate]
) -> NDArray[np.float64]:
    """Return the bytes of each tensor if it comes from another version where that is nearer.

    With a smaller margin, chance would make some tensors of a cousin look nearer.
    """
    return np.where(one.costs < (_PREFERRED if before else 1.0) * best, one.costs, best)


def owners_of(worth: Sequence[Candidate], whole: NDArray[np.float64]) -> list[list[Candidate]]:
    """Return the version that each tensor is like, after those that others were nearer than.

    Args:
        worth: The versions, the best one first.
        whole: The bytes of each tensor by itself.
    """
    left, before = list(worth[1:]), [worth[0]]
    owners = [[worth[0]] for _ in whole]
    best = worth[0].costs
    while left:
        one = min(left, key=lambda one: float(taking(best, one, before).sum()))
        taken = taking(best, one, before)
        for n in np.flatnonzero(taken < best).tolist():
            owners[n].append(one)
        best = taken
        before.append(one)
        left.remove(one)
    return owners


def chosen(db: Database, new: New, trial: Trial, owners: Owners) -> list[Candidate]:
    """Return the version of each tensor, after a trial of some for which another one was chosen.

    Samples are few, and of some tensor none differ by chance. Tensors that share a chunk are
    confirmed together.
    """
    found = [several[-1] for several in owners]
    doubts = sorted(_doubts(new, trial, owners), key=lambda doubt: -doubt.nbytes)
    # Of one kind, those that are tried tell about the others.
    for kind in (True, False):
        alike = [doubt for doubt in doubts if (doubt.after is None) == kind]
        for doubt in _wrong(db, new, trial, alike):
            for n in doubt.tensors:
                found[n] = doubt.before
    return found


def _wrong(db: Database, new: New, trial: Trial, doubts: Sequence[_Doubt]) -> list[_Doubt]:
    """Return the doubts that are right: a few are tried, and the others go by most of these."""
    tried, others = doubts[:_TRIED], doubts[_TRIED:]
    wrong = [doubt for doubt in tried if _is_wrong(db, new, trial, doubt)]
    return [*wrong, *(others if 2 * len(wrong) > _TRIED else ())]


class _Doubt(NamedTuple):
    """A chunk for which the best version of all was not chosen.

    Attributes:
        tensors: The numbers of the tensors that share it; only the first may have more chunks.
        nbytes: The bytes of the tensors.
        before: The version that it comes from otherwise.
        after: The one that was chosen; None for several versions.
    """

    tensors: list[int]
    nbytes: int
    before: Candidate
    after: Candidate | None


def _doubts(new: New, trial: Trial, owners: Owners) -> Iterator[_Doubt]:
    """Yield the chunks that begin tensors and come from other versions than the best one."""
    for number, piece in trial.pieces.items():
        path = new.tensors[number].path
        numbers = [trial.numbers.get((path, tensor.name)) for tensor in piece.tensors]
        tensors = [n for n in numbers if n is not None] or [number]
        nbytes = sum(new.signature.grids[n].nbytes for n in tensors)
        after = {owners[n][-1] for n in tensors}
        if len(after) == 1:
            before = [one for one in owners[number][-2:-1] if one.alike[number]]
            yield from (_Doubt(tensors, nbytes, one, owners[number][-1]) for one in before)
        else:
            yield _Doubt(tensors, nbytes, _nearest(owners, tensors), None)


def _nearest(owners: Owners, tensors: Sequence[int]) -> Candidate:
    """Return the version that tensors come from if it has to be one: the best of all, or nearly."""
    best = owners[tensors[0]][0]
    for one in dict.fromkeys(owners[n][-1] for n in tensors):
        if one.costs[tensors].sum() < _PREFERRED * best.costs[tensors].sum():
            best = one
    return best


def _is_wrong(db: Database, new: New, trial: Trial, doubt: _Doubt) -> bool:
    """Whether a trial contradicts the choice of a version for a chunk."""
    first = doubt.tensors[0]
    piece = trial.pieces[first]
    before = doubt.before.size(db, new, first, piece, trial)
    if doubt.after is not None:
        return before <= doubt.after.size(db, new, first, piece, trial)
    # What is made from several versions costs more to read, and to list, than samples show.
    return before <= _LITTLE * piece.nbytes
