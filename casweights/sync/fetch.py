"""Fetching, decoding and verifying the changes that bring live tensors to a version."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casweights.database.frames import read_frame
from casweights.database.reader import ChunkReader
from casweights.database.recent import STRIDE
from casweights.errors import IntegrityError
from casweights.sync.live_spans import LiveChunks, covering, fetched_together
from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from casweights.database import Database
    from casweights.database.chain import Chain
    from casweights.database.frames import Spent
    from casweights.database.reader import ReadLocal
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId
    from casweights.sync.changes import ElementChange
    from casweights.sync.live_spans import LiveSpan
    from casweights.sync.target import Fit, Target


@dataclass(slots=True)
class Prepared:
    """Everything that brings live tensors to a version.

    Attributes:
        version: The version.
        position: Number of moves of the branch up to this version; None if the version is not
            known to have been a head of the branch.
        fits: The wanted content of each tensor.
        changes: Changes of chunks, ready to be made; None for a chunk that already has the
            wanted bytes.
        late: Groups of chunks whose changes exceed the memory limit, each fetched as one chunk of
            the store. They are fetched while writing.
        spent: Time and bytes spent on fetching so far.
    """

    version: Snapshot
    position: int | None
    fits: list[Fit]
    spent: Spent
    changes: list[tuple[LiveSpan, ElementChange | None]] = field(default_factory=list)
    late: list[list[LiveSpan]] = field(default_factory=list)


class Fetcher:
    """Fetches chunks of a version as changes of the chunks in a target.

    Args:
        db: The store.
        target: The live tensors.
        trusting: Whether to skip hashing chunks that are rebuilt from chunks of the target. Frames
            have checksums, and the content of the target is known.
        memory: Maximum bytes of changes to hold at once.
    """

    def __init__(self, db: Database, target: Target, *, trusting: bool, memory: int) -> None:
        self._db = db
        self._target = target
        self._memory = memory
        self._buffers = Pool(db.config.chunk_size)
        kind = _TrustingReader if trusting else ChunkReader
        self._make_reader: Callable[[], ChunkReader] = lambda: kind(
            db.store, db.index, db.hasher, db.config.chunk_size
        )

    def prepare(self, version: Snapshot, position: int | None) -> Prepared:
        """Fetch, decode and verify the changes to a version, without writing to the target.

        Raises:
            InvalidInputError: The version does not fit the target.
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        fits = self._target.fit(version)
        self._target.identify(fits)
        wanted = fetched_together(wanted for fit in fits for wanted in fit.wanted())
        reader = self._make_reader()
        prepared = Prepared(version, position, fits, reader.spent)
        taken, nbytes = 0, 0

        def affordable() -> Iterator[list[LiveSpan]]:
            nonlocal taken
            for one in wanted:
                if nbytes >= self._memory:
                    return
                taken += 1
                yield one

        for one, change in self._changes(reader, affordable(), wanted):
            prepared.changes.append((one, change))
            nbytes += change.nbytes if change else 0
        prepared.late = wanted[taken:]
        return prepared

    def stream(self, prepared: Prepared) -> Generator[tuple[LiveSpan, ElementChange | None]]:
        """Fetch the late changes of a version, one at a time.

        Make each change before taking the next one, so that memory stays bounded.
        """
        if prepared.late:
            reader = self._make_reader()
            reader.spent = prepared.spent
            yield from self._changes(reader, iter(prepared.late), prepared.late)

    def differing(self, wanted: Sequence[LiveSpan]) -> list[LiveSpan]:
        """Fetch the wanted bytes, and return the chunks that have others; the rest is known then.

        Raises:
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        groups, wrong = fetched_together(wanted), []
        for one, change in self._changes(self._make_reader(), iter(groups), groups):
            if change is None:
                one.hold(one.span)
            else:
                wrong.append(one)
        return wrong

    def _changes(
        self,
        reader: ChunkReader,
        taken: Iterator[list[LiveSpan]],
        wanted: Sequence[list[LiveSpan]],
    ) -> Iterator[tuple[LiveSpan, ElementChange | None]]:
        """Fetch chunks as changes of the target.

        Args:
            reader: Reads chunks, and counts the time and bytes spent.
            taken: The groups to fetch, taken one by one from `wanted` as memory permits.
            wanted: All groups that may be taken, announced to the store so that it reads ahead.

        Yields:
            Each chunk of the target with its change, in order.
        """
        local = reader.with_local(LiveChunks(self._target.chunks()), self._db.cache)

        def fetch(group: list[LiveSpan]) -> list[tuple[LiveSpan, ElementChange | None]]:
            chunk, size, *_ = group[0].span
            out = self._buffers.take(size)
            local.readinto(chunk, out)
            # Of a chunk that the target holds in part, it has no base for the next version. What
            # the cache holds is trusted, so the chunk is checked even by a trusting reader.
            if self._db.cache.is_used and not covering(group) and reader.is_right(chunk, out):
                self._db.cache.put(chunk, out)
            begin = time.perf_counter()
            changes = [
                (one, one.chunk.tensor.find_change(one.chunk.number, one.cut(out))) for one in group
            ]
            reader.spent.add(decode=time.perf_counter() - begin)
            return changes

        try:
            with local.ahead() as announce:
                announce([group[0].span.chunk for group in wanted])
                for changes in self._db.workers.map(fetch, taken):
                    yield from changes
        except IntegrityError:
            # Another writer may repair the damage: the next attempt reads the indexes again.
            self._db.index.reconsider()
            raise


class _TrustingReader(ChunkReader):
    """Reads chunks without hashing those that are rebuilt from a local chunk."""

    def rebuild(
        self, chain: Chain, chunk: ChunkId, out: memoryview, local: ReadLocal | None = None
    ) -> int:
        # Without a local base there is no known content to rely on, and the base class keeps
        # verified intermediate chunks of a long chain.
        if chain.base is None or chain.links > STRIDE:
            return super().rebuild(chain, chunk, out, local)
        for location in chain.frames:
            read_frame(self.store, location, out, self.spent)
        return chain.nbytes
