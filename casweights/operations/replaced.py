"""Checks that the frames that stay replace those that go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.database.index import ChunkIndex
from casweights.database.reader import ChunkReader
from casweights.errors import IntegrityError
from casweights.ids import ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.database import Database
    from casweights.database.chain import Chain
    from casweights.database.chains import ChainFinder
    from casweights.operations.marking import Marking


_TOGETHER = 8192  # chunks that are rebuilt from one index, which has some KiB for each


class _FixedIndex(ChunkIndex):
    """An index of the frames that were added to it, which looks for no others."""

    def find_chain(self, chunk: ChunkId, finder: ChainFinder | None = None) -> Chain | None:
        return self.chain(chunk) if finder is None else finder.chain(chunk)


def check_replaced(db: Database, marking: Marking, dead: Iterable[str]) -> None:
    """Rebuild the chunks that stay and of which a frame goes, from the frames that stay alone.

    An index can say anything: that a pack has a copy of a frame, which was made last. The pack that
    really has it must not go for that.

    Args:
        db: The store.
        marking: What stays.
        dead: Names of the objects that go.

    Raises:
        IntegrityError: A chunk cannot be rebuilt. A finding says why, so that the next run chooses
            another frame.
    """
    for number, chunk in enumerate(_replaced(marking, dead)):
        if number % _TOGETHER == 0:
            index, seen = _FixedIndex(db.store, db.findings), set[ChunkId]()
            reader = ChunkReader(db.store, index, db.hasher, db.config.chunk_size)
        index.add_frames(marking.frames.chain(chunk, seen))
        out = memoryview(bytearray(marking.frames.own(chunk).frame.raw_size))
        try:
            reader.readinto(chunk, out)
        except IntegrityError as error:
            raise IntegrityError(
                error.code,
                f"{error.message}: nothing was set aside or deleted, as a sound frame would have "
                "gone for it. Repeat the command",
            ) from error


def _replaced(marking: Marking, dead: Iterable[str]) -> Iterator[ChunkId]:
    """Yield the chunks that stay and of which a frame goes."""
    seen = marking.no_chunks()
    for name in dead:
        pack = marking.places.packs.get(name)
        for location in pack.locations if pack is not None else ():
            chunk = location.frame.chunk
            if marking.frames.rebuilds(chunk) and seen.add(chunk) is not None:
                yield chunk
