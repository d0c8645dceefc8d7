"""What is known of the packs of a store; no store is read here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.format import names

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator

    from casweights.errors import CasweightsError
    from casweights.format.snapshot import PackTable
    from casweights.ids import ChunkId, PackId


class ReadPack(NamedTuple):
    """A pack whose frames are known.

    Attributes:
        size: Its bytes.
        generation: Its generation, see `build_index`.
        since: When it was read or written here, by the monotonic clock, in seconds.
    """

    size: int
    generation: int
    since: float


class KnownPacks:
    """The states of packs, which `ChunkIndex` changes under its lock.

    A pack is *hinted* from the time that a snapshot names it: its chunks should be there, but a
    repack may have moved them since. It is *read* once its frames are known, *absent* if the store
    was asked for it in vain, and *damaged* if its index cannot be read. Hinted packs that are in no
    other state are *unread*. A pack may be read and damaged: some of its frames are.

    Attributes:
        read: Packs whose frames are known, by name.
        damaged: What is wrong with packs, by name.
        absent: Names of packs that the store does not have.
    """

    def __init__(self) -> None:
        self._pack_of: dict[ChunkId, PackId] = {}
        self._hinted: dict[PackId, None] = {}
        self.read: dict[str, ReadPack] = {}
        self.damaged: dict[str, CasweightsError] = {}
        self.absent: set[str] = set()

    def hint(self, table: PackTable) -> None:
        """Remember in which packs a snapshot's chunks and their bases should be."""
        self._pack_of.update(table.chunks)
        self._hinted.update(dict.fromkeys(table.packs))

    def hinted(self) -> list[PackId]:
        """All hinted packs."""
        return list(self._hinted)

    def pack_of(self, chunk: ChunkId) -> PackId | None:
        """The hinted pack of a chunk."""
        return self._pack_of.get(chunk)

    def packs_of(self, chunks: Iterable[ChunkId]) -> list[PackId]:
        """The hinted packs of these chunks, each once."""
        return list(dict.fromkeys(p for chunk in chunks if (p := self._pack_of.get(chunk))))

    def unread(self, packs: Iterable[PackId]) -> list[str]:
        """The names of those of these packs whose indexes are worth a read."""
        known = (self.read, self.damaged, self.absent)
        return [name for name in map(names.pack_name, packs) if not any(name in k for k in known)]

    def unreadable(self) -> list[str]:
        """Packs whose index cannot be read, so that none of their frames is known."""
        return sorted(self.damaged.keys() - self.read.keys())

    def lost(self, listed: Container[str], oldest: float) -> Iterator[str]:
        """Known packs that a listing does not show.

        Args:
            listed: The names that it shows.
            oldest: Packs that are known since a later time may be too new for the listing.
        """
        for name, pack in self.read.items():
            if name not in listed and pack.since <= oldest:
                yield name
        for name in self.damaged:
            if name not in listed and name not in self.read:
                yield name

    def drop(self, packs: Iterable[str]) -> None:
        """Forget that packs were read or found damaged."""
        for name in packs:
            self.read.pop(name, None)
            self.damaged.pop(name, None)

    def retain(self, packs: Collection[PackId]) -> None:
        """Forget the hints and the indexes of all other packs."""
        self._hinted = {pack: None for pack in self._hinted if pack in packs}
        self._pack_of = {chunk: pack for chunk, pack in self._pack_of.items() if pack in packs}
        kept = {names.pack_name(pack) for pack in packs}
        self.read = {name: pack for name, pack in self.read.items() if name in kept}

    def forget_indexes(self) -> None:
        """Forget which packs were read or found damaged; hints stay."""
        self.read.clear()
        self.damaged.clear()
