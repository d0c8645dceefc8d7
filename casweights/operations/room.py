"""Whether a version keeps to its share of differences if each chunk is one from a given base."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from casweights.format.codecs import encode_difference
from casweights.operations.differences import (
    MAX_CHAIN_SHARE,
    MAX_DIRECT_SHARE,
    MAX_TENSOR_SHARE,
)
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casweights.database import Database
    from casweights.database.known_chunks import KnownChunks
    from casweights.operations.rewriting import Rewrite


def has_room(db: Database, jobs: Iterable[Rewrite], plan: KnownChunks) -> bool:
    """Return whether the differences of all chunks of a version take their share together at most.

    Then some may have longer chains than a writer allows, who does not know the others. Every
    chunk is encoded for that.

    Args:
        db: The store.
        jobs: All chunks of the version, those that are stored, too.
        plan: The frames that are stored.

    Raises:
        IntegrityError: A chunk is damaged.
        StoreError: The store could not be read.
    """
    whole = spent = 0.0
    chunks = (job for job in jobs if not job.is_structure)
    for one_whole, one_spent in db.workers.map(partial(_shares, db, plan), chunks):
        if one_spent > MAX_TENSOR_SHARE * one_whole:
            return False
        whole, spent = whole + one_whole, spent + one_spent
    return spent <= MAX_CHAIN_SHARE * whole


def _shares(db: Database, plan: KnownChunks, job: Rewrite) -> tuple[float, float]:
    """Return the bytes of a chunk's whole frame, and those of its differences."""
    if (stored := plan.chain(job.chunk)) is not None:
        return stored.whole_size, stored.read_size - stored.whole_size
    chain = None if job.base is None else plan.chain(job.base)
    if job.base is None or chain is None or chain.base is not None or chain.roots:
        return 0.0, 0.0  # it is stored whole, and its share is left to nobody
    reader = db.reader.with_local(db.cache)
    new, old = (uninitialized(job.piece.nbytes) for _ in range(2))
    if chain.frames[-1].frame.raw_size != len(old):
        return 0.0, 0.0
    reader.readinto(job.chunk, new)
    reader.readinto(job.base, old)
    encoded = encode_difference(new, old, job.piece.dtype, job.piece.extents)
    if encoded is None or len(encoded[1]) > MAX_DIRECT_SHARE * chain.whole_size:
        return 0.0, 0.0
    spent = chain.read_size - chain.whole_size + len(encoded[1])
    return float(chain.whole_size), float(spent)
