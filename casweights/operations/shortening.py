"""Shortening: chunks whose chains lead through chunks that nothing else needs are encoded again.

After versions have expired, a chunk may be a difference from a chunk of a version that is gone, and
that one from another. One difference over many steps takes less than the steps together.

Chunks whose new frames depend on each other, or free the same old frames, form a *family*. A family
is encoded again as a whole, or not at all.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import MiB
from casweights.database.cache import ChunkCache
from casweights.database.known_chunks import KnownChunks
from casweights.database.writer import PackWriter
from casweights.events import Stage
from casweights.operations.base_chunks import BaseChunks
from casweights.operations.bases import Bases
from casweights.operations.burdens import burdens
from casweights.operations.differences import DifferenceEncoder
from casweights.operations.live_frames import is_cheap
from casweights.operations.rewriting import rewrites

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.database import Database
    from casweights.format.pack import EncodedFrame, Location
    from casweights.ids import ChunkId, SnapshotId
    from casweights.operations.marking import Marking
    from casweights.operations.rewriting import Rewrite

_CACHE_BYTES = 64 * MiB  # of chunks that are bases of others
_MAX_SHARE = 0.95  # of the old frames that the new ones of a family may take
_MAX_NEW = 512 * MiB  # bytes of new frames that are in memory before their families are decided


class Family(NamedTuple):
    """Chunks that are encoded again together.

    Attributes:
        members: The chunks, in the order in which they are encoded.
        old: Bytes of the live frames that nothing needs afterwards.
        least: Bytes that the new frames take at least, about.
    """

    members: list[Rewrite]
    old: int
    least: int

    @property
    def gain(self) -> int:
        """Bytes that may be saved, at most, about."""
        return self.old - self.least

    @property
    def most(self) -> int:
        """Bytes that its new frames may take."""
        return min(int(_MAX_SHARE * self.old), _MAX_NEW)

    @property
    def nbytes(self) -> int:
        """Bytes of its chunks."""
        return sum(job.piece.nbytes for job in self.members)


class Shortening:
    """Finds the families of a store, and encodes them again.

    Args:
        db: The store.
        marking: What its versions need, made with `alone`.
    """

    def __init__(self, db: Database, marking: Marking) -> None:
        self._db = db
        self._kept = marking.chunks
        self._live = marking.frames
        self._marking = marking
        # The chunks whose own frames build on chunks that are only kept for that.
        self._leaves = {
            at.frame.chunk
            for at in marking.frames
            if at.frame.chunk in self._kept
            and any(base not in self._kept for base in at.frame.bases)
        }
        self._burdens = burdens(marking.frames, self._leaves, marking.numbers)

    def families(self) -> list[Family]:
        """Return the families that probably take less when they are encoded again.

        Raises:
            IntegrityError: The list of chunks of a version is lost.
        """
        jobs = self._jobs()
        groups = _Groups()
        for job in jobs.values():
            for location in self._live.path(job.chunk, self._kept):
                groups.join(job.chunk, location.frame.chunk)
            for base in job.bases:
                for leaf in self._leaves_below(base):
                    groups.join(job.chunk, leaf)
        members: dict[ChunkId, list[Rewrite]] = {}
        for job in jobs.values():
            members.setdefault(groups.find(job.chunk), []).append(job)
        # Bases of frames whose versions may not be written yet have no place in any version.
        fixed = {groups.find(chunk) for chunk in self._leaves - jobs.keys()}
        found = [self._family(group) for key, group in members.items() if key not in fixed]
        return [family for family in found if family.least < _MAX_SHARE * family.old]

    def _jobs(self) -> dict[ChunkId, Rewrite]:
        """Return the leaves, each at its place in the first version that has it."""
        jobs: dict[ChunkId, Rewrite] = {}
        if self._leaves:
            snapshots = self._db.snapshots
            for version, parent in self._in_order():
                if len(jobs) == len(self._leaves):
                    break
                snapshot = snapshots.load(version, with_locations=True)
                if self._leaves.isdisjoint(snapshot.stored_chunks()):
                    continue
                base = None if parent is None else snapshots.load(parent)
                bases = Bases(BaseChunks(base, snapshot.files))
                for job in rewrites(snapshot, bases, jobs):
                    if job.chunk in self._leaves:
                        jobs.setdefault(job.chunk, job)
        return jobs

    def _in_order(self) -> list[tuple[SnapshotId, SnapshotId | None]]:
        """Return the versions with the nearest ancestor of each that stays, ancestors first."""
        found = []
        for version in self._marking.versions:
            stored = self._db.snapshots.load_stored(version)
            parent = next(iter(self._marking.parents(stored)), None)
            found.append((stored.snapshot.number, stored.snapshot.time, version, parent))
        return [(version, parent) for *_, version, parent in sorted(found, key=lambda row: row[:3])]

    def _leaves_below(self, chunk: ChunkId) -> Iterator[ChunkId]:
        """Yield the first leaves on the way from a chunk to the beginning of its chain, if any."""
        if chunk in self._leaves:
            yield chunk
        else:
            below = (base for at in self._chain(chunk) for base in at.frame.bases)
            yield from (base for base in below if base in self._leaves)

    def _family(self, members: list[Rewrite]) -> Family:
        sizes: dict[ChunkId, int] = {}
        least = 0
        for job in members:
            path = [at.frame for at in self._live.path(job.chunk, self._kept)]
            # One difference over several steps is rarely smaller than the largest of them. What has
            # nothing to build on is stored whole.
            new = [frame for frame in path if frame.bases and frame.chunk not in sizes]
            least += max(frame.size for frame in (new if job.bases else path))
            sizes.update((frame.chunk, frame.size) for frame in path)
        return Family(members, sum(sizes.values()), least)

    def encode(self, families: Sequence[Family], generation: int) -> PackWriter:
        """Encode families again, and write those that take less than before, as durable packs.

        The packs are the same with any number of workers.

        Args:
            families: The families.
            generation: The generation of the packs.

        Raises:
            IntegrityError: A chunk cannot be rebuilt.
            StoreError: The store could not be read or written.
        """
        writer, reporter = PackWriter(self._db, generation), self._db.reporter
        cache = ChunkCache(_CACHE_BYTES, self._db.config.chunk_size)
        reporter.started(Stage.FOLD, sum(family.nbytes for family in families))
        try:
            for together in _batches(families):
                encoded = self._db.workers.map(partial(self._encode, cache), together)
                for family, found in zip(together, encoded, strict=True):
                    for job, frames in found:
                        writer.add(job.chunk, job.piece.nbytes, frames)
                    reporter.advanced(Stage.FOLD, family.nbytes)
            writer.finish()
        finally:
            reporter.finished(Stage.FOLD)
            writer.close()
        return writer

    def _encode(
        self, cache: ChunkCache, family: Family
    ) -> Sequence[tuple[Rewrite, list[EncodedFrame]]]:
        """Return the new frames of a family; none if they take too much.

        They take too much, too, if what builds on them would cost readers more than it may: it
        would go on building on the old frames. They depend on nothing that other families write at
        the same time.
        """
        reader, structure, plan = self._db.reader, self._db.snapshots.structure, KnownChunks()
        is_plain = self._db.config.standalone
        encoder = DifferenceEncoder(reader, plan, cache, structure, "auto", is_plain=is_plain)
        found, left = [], family.most
        for job in family.members:
            if (known := self._usable(job.chunk, plan)) is not None:
                plan.add_frames([known])
                continue
            for base in job.bases:
                plan.add_frames(self._chain(base))
            frames = job.encode(encoder, reader, cache, plain=self._is_plain(job.chunk))
            left -= sum(len(frame.payload) for frame in frames)
            if left < 0:
                return []
            plan.add_frames(job.planned(frames))
            if not self._bears(job.chunk, plan):
                return []
            found.append((job, frames))
        return found

    def _bears(self, chunk: ChunkId, plan: KnownChunks) -> bool:
        """Whether what builds on a chunk is cheap to read with its new frames."""
        burden, chain = self._burdens.get(chunk, 0), plan.plain_chain(chunk)
        return not burden or (chain is not None and is_cheap(chain, burden))

    def _is_plain(self, chunk: ChunkId) -> bool:
        """Whether the live chain of a chunk has no derived frame; it has none if any chain has."""
        return not any(at.frame.roots for at in self._live.chain(chunk, set()))

    def _usable(self, chunk: ChunkId, plan: KnownChunks) -> Location | None:
        """Return a frame of a chunk that builds on a new one, if its chain is cheap to read."""
        for location in self._db.index.frames(chunk):
            base = location.frame.base
            chain = None if base is None else plan.plain_chain(base)
            more = location.frame.size + self._burdens.get(chunk, 0)
            if chain is not None and is_cheap(chain, more):
                return location
        return None

    def _chain(self, chunk: ChunkId) -> Iterator[Location]:
        """Yield the live frames of a chunk back to the first leaves, which have new frames."""
        if chunk not in self._leaves:
            yield from self._live.path(chunk, self._leaves)


def _batches(families: Iterable[Family]) -> Iterator[list[Family]]:
    """Yield families that are encoded at the same time, as their new frames fit into memory."""
    together, nbytes = list[Family](), 0
    for family in families:
        if together and nbytes + family.most > _MAX_NEW:
            yield together
            together, nbytes = [], 0
        together.append(family)
        nbytes += family.most
    if together:
        yield together


class _Groups:
    """Disjoint sets of chunks."""

    def __init__(self) -> None:
        self._above: dict[ChunkId, ChunkId] = {}

    def find(self, chunk: ChunkId) -> ChunkId:
        """Return the chunk that stands for the set of a chunk."""
        while (above := self._above.get(chunk, chunk)) != chunk:
            self._above[chunk] = self._above.get(above, above)
            chunk = above
        return chunk

    def join(self, one: ChunkId, other: ChunkId) -> None:
        """Make the sets of two chunks one."""
        self._above[self.find(one)] = self.find(other)
