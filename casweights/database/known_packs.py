"""The packs of a store that are known, and the state of each. This module reads no store."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from casweights.format import names

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from casweights.database.merged import Merged
    from casweights.errors import CasweightsError
    from casweights.format.pack_table import PackTable
    from casweights.ids import ChunkId, PackId


_MAX_THINNED = 4096  # packs of which no frame is known any more; about 1.5 MiB


class ReadPack(NamedTuple):
    """A pack whose frames are known.

    Attributes:
        size: Number of bytes.
        generation: The pack's generation: 0 for packs of a commit, more for packs of a repack.
        since: Time at which this process read or wrote it, by the `uptime`.
        is_proof: Whether the store had it at that time under its own name. A pack that was set
            aside can be read, too, and so can one whose locator a snapshot has.
    """

    size: int
    generation: int
    since: float
    is_proof: bool = True


class KnownPacks:
    """The states of packs. `ChunkIndex` changes them under its lock.

    The states of a pack are:

    - *hinted*: a snapshot names it. A repack may have moved its chunks to another pack since.
    - *read*: its frames are known.
    - *thinned*: some of its frames were forgotten. It need not be read for a version whose chunks
      are known.
    - *absent*: the store did not have it when it was last looked for.
    - *damaged*: its index cannot be read. A pack that is also read has damaged frames.

    Hinted packs in no other state are *unread*: only those are worth reading. `drop` and
    `forget_indexes` make packs that were read or damaged unread again, and `reread` those that
    were thinned.

    Attributes:
        read: The packs whose frames are all known, by name.
        thinned: The packs that were read and of which some frames were forgotten, by name.
        damaged: The reason why each damaged pack is damaged, by name.
        absent: Names of the absent packs.
    """

    def __init__(self) -> None:
        self._pack_of: dict[ChunkId, PackId] = {}
        self._hinted: dict[PackId, None] = {}
        self.read: dict[str, ReadPack] = {}
        self.thinned: dict[str, ReadPack] = {}
        self.damaged: dict[str, CasweightsError] = {}
        self.absent: set[str] = set()

    def hint(self, table: PackTable, known: Container[ChunkId]) -> None:
        """Remember the packs that a snapshot names for its chunks and their bases.

        Args:
            table: The snapshot's pack table.
            known: Chunks with known frames. If frames of other chunks were forgotten, all thinned
                packs of the snapshot become unread.
        """
        self._pack_of.update(table.chunks)
        self._hinted.update(dict.fromkeys(table.packs))
        lacking = {pack for chunk, pack in table.chunks.items() if chunk not in known}
        if not self.thinned.keys().isdisjoint(map(names.pack_name, lacking)):
            self.reread(table.packs)

    def reread(self, packs: Iterable[PackId]) -> None:
        """Make thinned packs unread, because forgotten frames of them are needed."""
        for pack in packs:
            self.thinned.pop(names.pack_name(pack), None)

    def hinted(self) -> list[PackId]:
        """Return all hinted packs."""
        return list(self._hinted)

    def pack_of(self, chunk: ChunkId) -> PackId | None:
        """Return the hinted pack of a chunk, or None if no snapshot named one."""
        return self._pack_of.get(chunk)

    def chunks(self) -> Iterator[ChunkId]:
        """Yield the chunks for which snapshots name packs."""
        yield from self._pack_of

    def chunks_of(self, chunk: ChunkId) -> Iterator[ChunkId]:
        """Yield the chunks that were in the same pack as this one, according to snapshots."""
        pack = self._pack_of.get(chunk)
        if pack is not None:
            yield from (other for other, own in self._pack_of.items() if own == pack)

    def packs_of(self, chunks: Iterable[ChunkId]) -> list[PackId]:
        """Return the hinted packs of these chunks, each once."""
        return list(dict.fromkeys(p for chunk in chunks if (p := self._pack_of.get(chunk))))

    def unread(self, packs: Iterable[PackId]) -> list[str]:
        """Return the names of the packs among these that are in none of the four states."""
        known = (self.read, self.thinned, self.damaged, self.absent)
        return [name for name in map(names.pack_name, packs) if not any(name in k for k in known)]

    def unreadable(self) -> list[str]:
        """Return the names of the packs whose index cannot be read."""
        return sorted(self.damaged.keys() - self.read.keys())

    def lost(self, listed: Container[str], oldest: float) -> Iterator[str]:
        """Yield the names of the known packs that a listing does not show.

        Args:
            listed: The names that the listing shows.
            oldest: A time by the `uptime`. Packs that became known later are left out, because they
                may be too new for the listing.
        """
        known = self.read | self.thinned
        for name, pack in known.items():
            if name not in listed and pack.since <= oldest:
                yield name
        for name in self.damaged:
            if name not in listed and name not in known:
                yield name

    def drop(self, packs: Iterable[str]) -> None:
        """Forget that these packs were read or found damaged."""
        for name in packs:
            self.read.pop(name, None)
            self.thinned.pop(name, None)
            self.damaged.pop(name, None)

    def with_frames(self) -> Iterator[PackId]:
        """Yield all packs of which frames may be known."""
        for name in (*self.read, *self.thinned):
            yield names.pack_of(name)

    def since(self, begin: float) -> set[PackId]:
        """Return the packs that were read or written here at this time or later."""
        known = (*self.read.items(), *self.thinned.items())
        return {names.pack_of(name) for name, pack in known if pack.since >= begin}

    def proven(self, begin: float) -> set[PackId]:
        """Return the packs that the store had at this time or later."""
        known = (*self.read.items(), *self.thinned.items())
        return {
            names.pack_of(name) for name, pack in known if pack.since >= begin and pack.is_proof
        }

    def thin(
        self, packs: Iterable[PackId], in_use: Iterable[PackId], tables: Iterable[PackTable]
    ) -> None:
        """Record that frames were forgotten.

        Args:
            packs: The packs of the forgotten frames.
            in_use: The packs of which frames are still known.
            tables: The snapshots whose hints are kept. Of the other packs that are not in use, only
                the latest are remembered as thinned, so that they are not read again.
        """
        self._pack_of, self._hinted = {}, {}
        for table in tables:
            self._pack_of.update(table.chunks)
            self._hinted.update(dict.fromkeys(table.packs))
        used = set(map(names.pack_name, in_use))
        # Those without any frame include the objects of snapshots that carry none.
        for name in {*map(names.pack_name, packs), *(self.read.keys() - used)}:
            if name in self.read:
                self.thinned[name] = self.read.pop(name)
        kept = used.union(map(names.pack_name, self._hinted))
        kept.update(islice(reversed(self.thinned), _MAX_THINNED))
        self.thinned = {name: pack for name, pack in self.thinned.items() if name in kept}

    def replace(self, merged: Merged) -> None:
        """Forget packs that were merged, and hint at the new ones in their place."""
        self.drop(merged.old)
        self._pack_of = {c: merged.place(c, pack) for c, pack in self._pack_of.items()}
        self._hinted = dict.fromkeys(merged.replaced(list(self._hinted)))

    def forget_indexes(self) -> None:
        """Forget which packs were read or found damaged, but keep the hints."""
        self.read.clear()
        self.thinned.clear()
        self.damaged.clear()
