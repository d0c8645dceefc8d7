"""Fetching, decoding and verifying the changes that bring live tensors to a version."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casweights.database.frames import read_frame
from casweights.database.reader import STRIDE, ChunkReader
from casweights.errors import IntegrityError
from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from casweights.database import Database
    from casweights.database.chains import Chain
    from casweights.database.frames import Spent
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId
    from casweights.sync.changes import ChunkRef, ElementChange
    from casweights.sync.live import LiveTensor
    from casweights.sync.target import Fit, Target, Wanted


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
        late: Chunks whose changes exceed the memory limit. They are fetched while writing.
        spent: Time and bytes spent on fetching so far.
    """

    version: Snapshot
    position: int | None
    fits: list[Fit]
    spent: Spent
    changes: list[tuple[Wanted, ElementChange | None]] = field(default_factory=list)
    late: list[Wanted] = field(default_factory=list)


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
        self._make_reader: Callable[[], ChunkReader] = lambda: kind(db.store, db.index, db.hasher)

    def prepare(self, version: Snapshot, position: int | None) -> Prepared:
        """Fetch, decode and verify the changes to a version, without writing to the target.

        Raises:
            InvalidInputError: The version does not fit the target.
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        fits = self._target.fit(version)
        self._target.identify()
        wanted = [wanted for fit in fits for wanted in fit.wanted()]
        reader = self._make_reader()
        prepared = Prepared(version, position, fits, reader.spent)
        taken, nbytes = 0, 0

        def affordable() -> Iterator[Wanted]:
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

    def stream(self, prepared: Prepared) -> Generator[tuple[Wanted, ElementChange | None]]:
        """Fetch the late changes of a version, one at a time.

        Make each change before taking the next one, so that memory stays bounded.
        """
        reader = self._make_reader()
        reader.spent = prepared.spent
        yield from self._changes(reader, iter(prepared.late), prepared.late)

    def _changes(
        self, reader: ChunkReader, taken: Iterator[Wanted], wanted: list[Wanted]
    ) -> Iterator[tuple[Wanted, ElementChange | None]]:
        """Fetch chunks as changes of the target.

        Args:
            reader: Reads chunks, and counts the time and bytes spent.
            taken: The chunks to fetch, taken one by one from `wanted` as memory permits.
            wanted: All chunks that may be taken, announced to the store so that it reads ahead.

        Yields:
            Each chunk with its change, in order.
        """
        local = reader.with_local(_LiveChunks(self._target.chunks()), self._db.cache)

        def fetch(one: Wanted) -> tuple[Wanted, ElementChange | None]:
            live, number = one.chunk
            out = self._buffers.take(live.size_of(number))
            local.readinto(one.id, out)
            begin = time.perf_counter()
            change = live.find_change(number, out)
            reader.spent.add(decode=time.perf_counter() - begin)
            return one, change

        try:
            with local.ahead() as announce:
                announce([one.id for one in wanted])
                yield from self._db.workers.map(fetch, taken)
        except IntegrityError:
            # Another writer may repair the damage: the next attempt reads the indexes again.
            self._db.index.reconsider()
            raise


class _LiveChunks:
    """The chunks of a target, as local chunks for a reader; see `LocalChunks`."""

    def __init__(self, chunks: Mapping[ChunkId, ChunkRef[LiveTensor]]) -> None:
        self._chunks = chunks

    @property
    def is_used(self) -> bool:
        return bool(self._chunks)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._chunks

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        found = self._chunks.get(chunk)
        if found is None or found.tensor.size_of(found.number) != len(out):
            return False
        found.tensor.readinto(found.number, out)
        return found.tensor.ids[found.number] == chunk  # another thread may have written


class _TrustingReader(ChunkReader):
    """Reads chunks without hashing those that are rebuilt from a local chunk."""

    def rebuild(self, chain: Chain, chunk: ChunkId, out: memoryview) -> int:
        # Without a local base there is no known content to rely on, and the base class keeps
        # verified intermediate chunks of a long chain.
        if chain.base is None or chain.links > STRIDE:
            return super().rebuild(chain, chunk, out)
        for location in chain.frames:
            read_frame(self.store, location, out, self.spent)
        return chain.nbytes
