"""The chunks whose frames are known, and their chains. This module reads no store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casweights.database.chain import Node
from casweights.database.derived_chains import DerivedFinder
from casweights.database.frame_table import FrameTable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from casweights.database.chain import Chain, Cost
    from casweights.database.chains import ChainFinder
    from casweights.database.pack_rows import PackRows
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId, Suspect


class KnownChunks:
    """The chunks of a store whose frames are known. Safe for use from several threads.

    Methods that change the frames take the lock. Look-ups do not take it, and see the frames
    before or after a change; each finder has a lock of its own for its results.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._table = FrameTable()
        self._finder = DerivedFinder(self._table)
        self._last_resorts = [
            DerivedFinder(self._table, frames=frames)
            for frames in (self._table.undamaged_frames, self._table.all_frames)
        ]

    def add_frames(self, locations: Iterable[Location]) -> None:
        """Add frames whose packs need not be known."""
        with self._lock:
            self._table.add(locations)

    def tidy(self) -> None:
        """Forget what look-ups have made and found; it is made and found again if needed."""
        with self._lock:
            self._table.tidy()
        for finder in (self._finder, *self._last_resorts):
            finder.forget(())

    def rows(self) -> PackRows:
        """Return the frames of all packs whose index was read, including damaged ones."""
        with self._lock:
            return self._table.rows()

    def abandon(self, chunk: ChunkId) -> None:
        """Count all frames of a chunk as missing, because many of them are damaged."""
        with self._lock:
            self._table.exclude(self._table.all_frames(chunk))

    def _forget(self, needed: Iterable[ChunkId], packs: Container[PackId]) -> set[PackId]:
        """Forget all chunks except those needed, those on their chains, and those in some packs.

        Returns:
            The packs of which frames were forgotten.
        """
        kept, seen = set(needed), set[Node]()
        chains = [chain for chunk in kept if (chain := self._finder.chain(chunk))]
        kept.update(location.frame.chunk for chain in chains for location in chain.back(seen))
        thinned = self._table.forget(kept, packs)
        for finder in (self._finder, *self._last_resorts):
            finder.forget(kept)
        return thinned

    def heed(self, suspects: set[Suspect]) -> None:
        """Put exactly these frames, and all frames of these packs, in doubt.

        Chunks that need such a frame count as missing, so that writers store them again. Readers
        still try a frame in doubt where no other chain exists, because it may be sound.
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
        """Return all known frames of a chunk, except those that this process found damaged."""
        return self._table.all_frames(chunk)

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether the known frames are enough to rebuild a chunk."""
        return self._finder.cost(chunk) is not None

    def __iter__(self) -> Iterator[ChunkId]:
        """Iterate over the chunks that have a known frame."""
        return iter(self._table)

    def having(self, chunks: Sequence[ChunkId | None]) -> list[ChunkId | None]:
        """Return these chunks, with None in place of those that cannot be rebuilt."""
        return self._finder.reachable(chunks)

    def packs(self, chunks: Iterable[ChunkId], seen: set[Node]) -> list[tuple[PackId, ...]]:
        """Return the packs of each chunk's chain, beginning with the pack of its own frame.

        Args:
            chunks: The chunks.
            seen: Limits each result to frames that no earlier chain had, as in `Chain.back`.

        Returns:
            A tuple for each chunk; empty if it cannot be rebuilt.
        """
        return self._finder.packs(chunks, seen)

    def finder(self, have: Container[ChunkId], *, with_roots: bool = True) -> ChainFinder:
        """Return a finder whose chains may begin at the chunks of `have`.

        Args:
            have: The chunks.
            with_roots: Whether the chains of roots may begin there, too.
        """
        for_roots = None if with_roots else self._finder
        return DerivedFinder(self._table, have, for_roots=for_roots)

    def finder_within(self, chunks: Container[ChunkId]) -> ChainFinder:
        """Return a finder of the chains that lead through these chunks alone."""
        return DerivedFinder(self._table, within=chunks)

    def chain(self, chunk: ChunkId) -> Chain | None:
        """Return the cheapest chain of known frames to a chunk, or None if no chain exists."""
        return self._finder.chain(chunk)

    def plain_chain(self, chunk: ChunkId) -> Chain | None:
        """Return the cheapest chain of known frames that are not derived, or None."""
        return self._finder.plain_chain(chunk)

    def cost(self, chunk: ChunkId) -> Cost | None:
        """Return the cost of the cheapest chain to a chunk, or None if no chain exists."""
        return self._finder.cost(chunk)
