"""Live frames: of each chunk that stays, the one chain by which it is rebuilt from now on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from casweights.format import names
from casweights.format.pack_table import PackTable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from casweights.database.chain import Chain
    from casweights.database.chains import ChainFinder
    from casweights.database.index import ChunkIndex
    from casweights.database.pack_rows import PackRows
    from casweights.database.packs import PackContents
    from casweights.format.manifest import Snapshot
    from casweights.format.pack import Location
    from casweights.ids import ChunkId


_TIDY_EVERY = 8192  # chunks: what the index makes for look-ups takes some 1.2 KiB for each
_MAX_READ = 1.5  # stored bytes of a chain, as a share of those of its whole frame


def tidying(
    chunks: Iterable[ChunkId], index: ChunkIndex, finder: ChainFinder | None = None
) -> Iterator[ChunkId]:
    """Yield chunks; let an index, and a finder, forget now and then what is found about them."""
    for number, chunk in enumerate(chunks, 1):
        yield chunk
        if number % _TIDY_EVERY == 0:
            index.tidy()
            if finder is not None:
                finder.forget(())


def is_cheap(chain: Chain, more: int = 0) -> bool:
    """Whether a chain, with some more bytes, costs a reader no more than it may."""
    return chain.read_size + more <= _MAX_READ * chain.whole_size


def _rank(chain: Chain) -> tuple[bool, int]:
    """Return what makes a chain better than others: what has a plain chain keeps one."""
    return bool(chain.roots), chain.nbytes


class LiveFrames:
    """The frames that a store needs for the chunks that stay in it.

    The chain of a chunk leads through chunks that stay, where there is one that is cheap to read.
    Otherwise it leads through others, which are kept *only as bases*. A chunk with a chain without
    derived frames keeps one, because other chunks may be made from it. Of equal frames in several
    objects, the one counts that was copied last.

    Args:
        index: The index of the store, after `load`.
        rows: The rows of its packs.
        packs: The packs and snapshots in their places, by name; may be replaced after another look.

    Attributes:
        packs: The argument.
        nbytes: Stored bytes of the live frames in each object, by the name that it has in its
            place; objects without live frames are not in it.
    """

    def __init__(
        self, index: ChunkIndex, rows: PackRows, packs: Mapping[str, PackContents]
    ) -> None:
        self._index = index
        self._rows = rows
        self.packs = packs
        self.nbytes: Counter[str] = Counter()
        self._is_live = bytearray(len(rows))  # of each row
        self._others: dict[ChunkId, Location] = {}  # live frames without a row, which are few

    def __contains__(self, location: Location) -> bool:
        """Whether a frame is live."""
        row = self._rows.row(location)
        if row is None:
            return self._others.get(location.frame.chunk) == location
        return bool(self._is_live[row])

    def rebuilds(self, chunk: ChunkId) -> bool:
        """Whether a chunk is rebuilt by live frames."""
        return self._row(chunk) is not None or chunk in self._others

    def _row(self, chunk: ChunkId) -> int | None:
        return next((row for row in self._rows.rows(chunk) if self._is_live[row]), None)

    def __iter__(self) -> Iterator[Location]:
        row = self._is_live.find(1)
        while row >= 0:
            yield self._rows.location(row)
            row = self._is_live.find(1, row + 1)
        yield from self._others.values()

    def follow(self, chunks: Iterable[ChunkId], kept: Container[ChunkId]) -> list[ChunkId]:
        """Choose the chains of some chunks.

        Args:
            chunks: The chunks.
            kept: All chunks that stay.

        Returns:
            Those that cannot be rebuilt.
        """
        finder = self._index.finder_within(kept)
        return [
            chunk
            for chunk in tidying(chunks, self._index, finder)
            if not (self.rebuilds(chunk) or self._take_chain(chunk, finder))
        ]

    def _take_chain(self, chunk: ChunkId, finder: ChainFinder) -> bool:
        chain = finder.chain(chunk)
        if chain is None or chain.roots or not is_cheap(chain):
            any_chain = self._index.find_chain(chunk)
            if any_chain is not None and (chain is None or _rank(any_chain) < _rank(chain)):
                chain = any_chain
        for line in chain.lines() if chain is not None else ():
            for location in line:
                if self.rebuilds(location.frame.chunk):
                    break
                self._take(location)
        return chain is not None

    def _take(self, location: Location) -> None:
        """Make the copy of a frame live that was made last, of those in their places."""
        chunk, content = location.frame.chunk, location.frame.content
        frames = self._index.frames(chunk)
        copies = [at for at in frames if at.frame.content == content and not self._index.doubts(at)]
        best = max(copies, key=self._rank) if len(copies) > 1 else location
        row = self._rows.row(best)
        if row is None:
            self._others[chunk] = best
        else:
            self._is_live[row] = 1
        self.nbytes[names.pack_name(best.pack)] += best.frame.size

    def _rank(self, location: Location) -> tuple[int, bytes]:
        pack = self.packs.get(names.pack_name(location.pack))
        return -1 if pack is None else pack.generation, location.pack

    def keep(self, frames: Iterable[Location]) -> None:
        """Keep the objects with these frames, which rebuild no chunk."""
        for location in frames:
            self.nbytes[names.pack_name(location.pack)] += location.frame.size

    def own(self, chunk: ChunkId) -> Location:
        """Return the live frame of a chunk."""
        row = self._row(chunk)
        return self._others[chunk] if row is None else self._rows.location(row)

    def path(self, chunk: ChunkId, kept: Container[ChunkId]) -> Iterator[Location]:
        """Yield the frames of a chunk's chain, from its own back to the next chunks that stay."""
        todo = [chunk]
        while todo:
            own = self.own(todo.pop())
            yield own
            todo += [base for base in own.frame.bases if base not in kept]

    def table(self, version: Snapshot) -> PackTable:
        """Return the pack table of a version that stays."""
        seen: set[ChunkId] = set()
        chains = ((chunk, self.chain(chunk, seen)) for chunk in version.stored_chunks())
        found = ((chunk, [at.pack for at in chain]) for chunk, chain in chains)
        return PackTable.collect(found, len(version.structure()))

    def chain(self, chunk: ChunkId, seen: set[ChunkId]) -> Iterator[Location]:
        """Yield the live frames of a chunk's chain, from the last to the first.

        Args:
            chunk: The chunk.
            seen: Ends the walk after the first chunk that an earlier one passed, and is filled.
        """
        todo = [chunk]
        while todo:
            at = self.own(todo.pop())
            yield at
            if at.frame.chunk not in seen:
                seen.add(at.frame.chunk)
                todo += reversed(at.frame.bases)
