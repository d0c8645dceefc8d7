"""The chunks whose frames are known, and the chains that rebuild them; no store is read here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casweights.database.chains import ChainFinder
from casweights.database.frame_table import FrameTable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from casweights.database.chains import Chain, Cost, Node
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId, Suspect


class KnownChunks:
    """Chunks by the frames that are known of them. May be used from several threads at once.

    Changes take the lock. Look-ups do not, and find the frames as they were before a change or as
    they are after it; each finder has a lock of its own for what it remembers.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._table = FrameTable()
        self._finder = ChainFinder(self._table)
        self._last_resort = ChainFinder(self._table, doubted=True)

    def add_frames(self, locations: Iterable[Location]) -> None:
        """Add frames."""
        with self._lock:
            self._table.add(locations)

    def abandon(self, chunk: ChunkId) -> None:
        """Count all frames of a chunk as missing, because many of them are damaged."""
        with self._lock:
            self._table.exclude(self._table.all_frames(chunk))

    def heed(self, suspects: set[Suspect]) -> None:
        """Count exactly these frames, and those of these packs, as in doubt.

        Chunks that have no other frames count as missing, so that they are stored again. Readers
        try frames in doubt where there is no other way: they may be sound.
        """
        with self._lock:
            self._table.doubt(suspects)

    @property
    def has_suspects(self) -> bool:
        """Whether any frame is in doubt."""
        return self._table.has_doubts

    def doubts(self, location: Location) -> bool:
        """Whether a frame is in doubt."""
        return self.has_suspects and self._table.doubts(location)

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All known frames of a chunk, except those that were found damaged here."""
        return self._table.all_frames(chunk)

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether the known frames are enough to rebuild this chunk."""
        return self._finder.cost(chunk) is not None

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk with a known frame."""
        return iter(self._table)

    def having(self, chunks: Sequence[ChunkId | None]) -> list[ChunkId | None]:
        """These chunks, with None in place of those that cannot be rebuilt."""
        return self._finder.reachable(chunks)

    def packs(self, chunks: Iterable[ChunkId], seen: set[Node]) -> list[tuple[PackId, ...]]:
        """The packs of each chunk's chain, that of its own frame first; empty without a chain.

        See `Chain.back` for `seen`.
        """
        return self._finder.packs(chunks, seen)

    def finder(self, have: Container[ChunkId]) -> ChainFinder:
        """A finder of chains that may begin at chunks that the reader has."""
        return ChainFinder(self._table, have)

    def chain(self, chunk: ChunkId) -> Chain | None:
        """The cheapest chain to a chunk; None if it cannot be rebuilt from the known frames."""
        return self._finder.chain(chunk)

    def cost(self, chunk: ChunkId) -> Cost | None:
        """The cost of that chain."""
        return self._finder.cost(chunk)
