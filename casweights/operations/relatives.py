"""Find the versions of a store that a new version resembles, tensor by tensor.

Signatures tell which versions share anything with it, and samples what a difference from each of
their tensors would take. The best few are confirmed by encoding some chunks.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from casweights.operations.bases import Bases, Sum
from casweights.operations.candidates import Candidate, Trial, wholes
from casweights.operations.merges import sum_weights
from casweights.operations.owners import chosen, owners_of, taking

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from casweights.database import Database
    from casweights.ids import SnapshotId
    from casweights.operations.base_chunks import BaseChunks
    from casweights.operations.candidates import New
    from casweights.stores.base import ObjectInfo

_MOST = 4  # versions that are tried by encoding; each costs a few reads
_CLEARLY = 1.3  # times the best version's bytes, which are not worth a trial
_LEAST_SAVED = 1 / 50  # of the bytes, for which one more version is read


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
    trial = Trial(new, db.config.chunk_size)
    found = [Candidate(one, new) for one in nearest]
    worth = _tried(db, new, trial, found)
    if not worth:
        return Bases(parent, related=_with_rows(db, found, new))
    owners = chosen(db, new, trial, owners_of(worth, wholes(new)))
    first = parent or worth[0].chunks
    likes = ((new.tensors[n].key, one.counterpart(n)) for n, one in enumerate(owners))
    assigned = {key: like for key, like in likes if like is not None}
    related = [one.chunks for one in worth]
    return Bases(first, assigned, related=related, sums=_sums(db, new, found, worth))


def _sums(
    db: Database, new: New, found: Sequence[Candidate], worth: Sequence[Candidate]
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


def _with_rows(db: Database, found: Sequence[Candidate], new: New) -> Sequence[BaseChunks]:
    """Return the version that shares most, though no tensor as a whole: perhaps rows of some."""
    return [one.chunks for one in found[:1] if one.load(db, new)]


def _tried(db: Database, new: New, trial: Trial, found: Sequence[Candidate]) -> list[Candidate]:
    """Return relatives that are worth it, the best one first: a few are tried.

    The next one is that which saves most in addition to those before, if that is a fiftieth of
    the bytes; otherwise the one that would be best alone, unless those before are clearly better.
    """
    best = doubtful = wholes(new)
    left = [one for one in found if one.costs.sum() < best.sum()]
    worth: list[Candidate] = []
    for _ in range(_MOST):
        if not left:
            break
        one = min(left, key=lambda one: float(taking(best, one, worth).sum()))
        if best.sum() - taking(best, one, worth).sum() < _LEAST_SAVED * best.sum():
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
                taken = taking(best, one, worth)
                doubtful = np.where(taken < best, np.maximum(promised, one.costs), doubtful)
                best = taken
                worth.append(one)
    return sorted(worth, key=lambda one: float(one.costs.sum()))
