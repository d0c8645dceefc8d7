"""The packs of a store that are known, and the state of each. This module reads no store."""

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
        size: Number of bytes.
        generation: The pack's generation: 0 for packs of a commit, more for packs of a repack.
        since: Time at which this process read or wrote it, in seconds of the monotonic clock.
    """

    size: int
    generation: int
    since: float


class KnownPacks:
    """The states of packs. `ChunkIndex` changes them under its lock.

    The states of a pack are:

    - *hinted*: a snapshot names it. A repack may have moved its chunks to another pack since.
    - *read*: its frames are known.
    - *absent*: the store did not have it when it was last looked for.
    - *damaged*: its index cannot be read. A pack that is also read has damaged frames.

    Hinted packs in no other state are *unread*: only those are worth reading. `drop` and
    `forget_indexes` make packs that were read or damaged unread again; `retain` also forgets
    their hints.

    Attributes:
        read: The packs whose frames are known, by name.
        damaged: The reason why each damaged pack is damaged, by name.
        absent: Names of the absent packs.
    """

    def __init__(self) -> None:
        self._pack_of: dict[ChunkId, PackId] = {}
        self._hinted: dict[PackId, None] = {}
        self.read: dict[str, ReadPack] = {}
        self.damaged: dict[str, CasweightsError] = {}
        self.absent: set[str] = set()

    def hint(self, table: PackTable) -> None:
        """Remember the packs that a snapshot names for its chunks and their bases."""
        self._pack_of.update(table.chunks)
        self._hinted.update(dict.fromkeys(table.packs))

    def hinted(self) -> list[PackId]:
        """Return all hinted packs."""
        return list(self._hinted)

    def pack_of(self, chunk: ChunkId) -> PackId | None:
        """Return the hinted pack of a chunk, or None if no snapshot named one."""
        return self._pack_of.get(chunk)

    def packs_of(self, chunks: Iterable[ChunkId]) -> list[PackId]:
        """Return the hinted packs of these chunks, each once."""
        return list(dict.fromkeys(p for chunk in chunks if (p := self._pack_of.get(chunk))))

    def unread(self, packs: Iterable[PackId]) -> list[str]:
        """Return the names of the packs among these that are neither read, damaged nor absent."""
        known = (self.read, self.damaged, self.absent)
        return [name for name in map(names.pack_name, packs) if not any(name in k for k in known)]

    def unreadable(self) -> list[str]:
        """Return the names of the packs whose index cannot be read."""
        return sorted(self.damaged.keys() - self.read.keys())

    def lost(self, listed: Container[str], oldest: float) -> Iterator[str]:
        """Yield the names of the known packs that a listing does not show.

        Args:
            listed: The names that the listing shows.
            oldest: A time of the monotonic clock, in seconds. Packs that became known later are
                left out, because they may be too new for the listing.
        """
        for name, pack in self.read.items():
            if name not in listed and pack.since <= oldest:
                yield name
        for name in self.damaged:
            if name not in listed and name not in self.read:
                yield name

    def drop(self, packs: Iterable[str]) -> None:
        """Forget that these packs were read or found damaged."""
        for name in packs:
            self.read.pop(name, None)
            self.damaged.pop(name, None)

    def retain(self, packs: Collection[PackId]) -> None:
        """Forget the hints and the indexes of all packs but these."""
        self._hinted = {pack: None for pack in self._hinted if pack in packs}
        self._pack_of = {chunk: pack for chunk, pack in self._pack_of.items() if pack in packs}
        kept = {names.pack_name(pack) for pack in packs}
        self.read = {name: pack for name, pack in self.read.items() if name in kept}

    def forget_indexes(self) -> None:
        """Forget which packs were read or found damaged, but keep the hints."""
        self.read.clear()
        self.damaged.clear()
