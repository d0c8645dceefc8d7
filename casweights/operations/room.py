"""Whether a version keeps to its share of differences if each chunk is one from a given base."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import MiB
from casweights.format.codecs import decode
from casweights.format.differences import encode_difference
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.operations.differences import (
    MAX_CHAIN_SHARE,
    MAX_DIRECT_SHARE,
    MAX_TENSOR_SHARE,
)
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from casweights.database import Database
    from casweights.database.known_chunks import KnownChunks
    from casweights.ids import ChunkId
    from casweights.operations.rewriting import Rewrite

_MAX_STEPS = 256 * MiB  # of differences that are kept in memory


class Room(NamedTuple):
    """What the differences of all chunks of a version take together.

    Attributes:
        is_enough: Whether that is their share at most. Then some may have longer chains than a
            writer allows, who does not know the others.
        steps: Differences of chunks from their bases, those that fit into memory. Each was
            decoded.
    """

    is_enough: bool
    steps: Mapping[ChunkId, EncodedFrame]


class _Shares(NamedTuple):
    """The bytes of a chunk's whole frame, and those of its differences; the last one, if new."""

    whole: float = 0.0
    spent: float = 0.0
    step: EncodedFrame | None = None


def look_for_room(db: Database, jobs: Iterable[Rewrite], plan: KnownChunks) -> Room:
    """Add up what the differences of all chunks of a version take.

    Args:
        db: The store.
        jobs: All chunks of the version, those that are stored, too.
        plan: The frames that are stored.

    Raises:
        IntegrityError: A chunk is damaged.
        StoreError: The store could not be read.
    """
    whole = spent = 0.0
    steps: dict[ChunkId, EncodedFrame] = {}
    left = _MAX_STEPS
    for job, found in db.workers.map(partial(_shares, db, plan), _elements(jobs)):
        if found.step is not None and len(found.step.payload) <= left:
            left -= len(found.step.payload)
            steps[job.chunk] = found.step
        if found.spent > MAX_TENSOR_SHARE * found.whole:
            return Room(is_enough=False, steps=steps)
        whole, spent = whole + found.whole, spent + found.spent
    return Room(spent <= MAX_CHAIN_SHARE * whole, steps)


def _elements(jobs: Iterable[Rewrite]) -> Iterator[Rewrite]:
    """Yield the chunks that hold tensors or files."""
    return (job for job in jobs if not job.is_structure)


def _shares(db: Database, plan: KnownChunks, job: Rewrite) -> tuple[Rewrite, _Shares]:
    if (stored := plan.chain(job.chunk)) is not None:
        return job, _Shares(stored.whole_size, stored.read_size - stored.whole_size)
    chain = None if job.base is None else plan.chain(job.base)
    if job.base is None or chain is None or chain.base is not None or chain.roots:
        return job, _Shares()  # it is stored whole, and its share is left to nobody
    reader = db.reader.with_local(db.cache)
    new, old = (uninitialized(job.piece.nbytes) for _ in range(2))
    if chain.frames[-1].frame.raw_size != len(old):
        return job, _Shares()
    reader.readinto(job.chunk, new)
    db.cache.put(job.chunk, new)
    reader.readinto(job.base, old)
    encoded = encode_difference(new, old, job.piece.dtype, job.piece.extents)
    if encoded is None:
        return job, _Shares()
    decode(*encoded, old)
    job.check(old, new)
    step = EncodedFrame(*encoded, checksum(encoded[1]), job.base)
    if len(step.payload) > MAX_DIRECT_SHARE * chain.whole_size:
        return job, _Shares(step=step)
    spent = chain.read_size - chain.whole_size + len(step.payload)
    return job, _Shares(chain.whole_size, spent, step)
