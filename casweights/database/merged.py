"""Packs that were merged into others, for handles that know the old ones.

Frames that a snapshot carried count as a pack that was merged, too, once a pack has them.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from casweights.format import names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database.packs import PackContents
    from casweights.format.pack_table import PackTable
    from casweights.ids import ChunkId, PackId


class Merged:
    """Packs, and those with copies of all their frames.

    Args:
        old: Names of the packs that were merged.
        new: The packs that hold copies of their frames.

    Attributes:
        old: Names of the packs that were merged.
        new: The packs that hold copies of their frames.
    """

    def __init__(self, old: Sequence[str], new: Sequence[PackContents]) -> None:
        self.old = old
        self.new = new

    @cached_property
    def gone(self) -> frozenset[PackId]:
        """The IDs of the old packs."""
        return frozenset(map(names.pack_of, self.old))

    @cached_property
    def places(self) -> dict[ChunkId, PackId]:
        """A new pack for each chunk that has a frame in one."""
        return {at.frame.chunk: at.pack for pack in self.new for at in pack.locations}

    @cached_property
    def packs(self) -> list[PackId]:
        """The IDs of the new packs."""
        return list(dict.fromkeys(self.places.values()))

    def table(self, table: PackTable) -> PackTable:
        """Return a pack table with the new packs in place of the old ones."""
        return table._replace(
            packs=self.replaced(table.packs),
            chunks={chunk: self.place(chunk, pack) for chunk, pack in table.chunks.items()},
            places={pack: at for pack, at in table.places.items() if pack not in self.gone},
            structure=None,
        )

    def place(self, chunk: ChunkId, pack: PackId) -> PackId:
        """Return the pack of a chunk that was in `pack` before."""
        return self.places.get(chunk, pack) if pack in self.gone else pack

    def replaced(self, packs: Sequence[PackId]) -> list[PackId]:
        """Return these packs, each once, with all new packs in place of the old ones."""
        found: dict[PackId, None] = {}
        for pack in packs:
            found.update(dict.fromkeys(self.packs if pack in self.gone else [pack]))
        return list(found)
