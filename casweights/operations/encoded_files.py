"""Files whose chunks are stored, as a version lists them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.format.file_entry import FileEntry, stored_chunks, structure_sizes
from casweights.format.snapshot import PackTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database import Database
    from casweights.database.index import Hold
    from casweights.format.pack import SealedPack


class Written(NamedTuple):
    """Counts of what was written for some files.

    Attributes:
        new_bytes: Raw size in bytes of the chunks that the store lacked.
        stored_bytes: Size in bytes of their frames.
        new_chunks: Number of these chunks.
        packs: Number of packs that hold them.
    """

    new_bytes: int = 0
    stored_bytes: int = 0
    new_chunks: int = 0
    packs: int = 0


@dataclass(frozen=True, slots=True)
class EncodedFiles:
    """Files whose chunks are in the store, or in one pack that is ready to be written.

    After `encode_files`, the last pack is only in memory: `detached` copies the parts of it that
    may change, and `durable` writes it. The result of `durable` may be pickled, and joined with
    that of other processes.

    Attributes:
        files: The files, as a manifest lists them.
        last: The pack that is not written yet; None if all are.
        written: Counts of what was written, the last pack included.
        table: The packs of the chunks of durable files, so that another process need not search
            for them; None for files that are not durable.
        hold: Keeps the index from forgetting the new packs before a snapshot names them.
    """

    files: tuple[FileEntry, ...]
    last: SealedPack | None
    written: Written
    table: PackTable | None = None
    hold: Hold | None = None

    def detached(self) -> Self:
        """Return a copy that shares no memory with the files, which may change before the write.

        The frame of a chunk that is stored raw is a view of the memory that the chunk was read
        into.
        """
        if self.last is None:
            return self
        parts = [bytes(part) if isinstance(part, memoryview) else part for part in self.last.parts]
        return replace(self, last=replace(self.last, parts=parts))

    def durable(self, db: Database) -> Self:
        """Write the last pack; return the files with their table.

        Raises:
            StoreError: The store could not be written.
        """
        if self.last is not None:
            db.store.put(self.last.name, self.last.parts)
            db.index.add(self.last.name, self.last.size, self.last.locations)
        rows = [file.row(db.config) for file in self.files]
        structure = len(structure_sizes(rows, db.config))
        chunks = stored_chunks(self.files, db.config)
        table = db.snapshots.placed(db.snapshots.pack_table_of(chunks, structure))
        return replace(self, last=None, table=table, hold=None)


def join(parts: Sequence[EncodedFiles]) -> EncodedFiles:
    """Combine the durable files of several processes into the files of one version."""
    files = sorted((file for part in parts for file in part.files), key=lambda file: file.path)
    tables = [part.table for part in parts if part.table is not None]
    structure = dict.fromkeys(pack for table in tables for pack in table.packs[: table.structure])
    packs = structure | dict.fromkeys(pack for table in tables for pack in table.packs)
    return EncodedFiles(
        files=tuple(files),
        last=None,
        written=Written(*map(sum, zip(*(part.written for part in parts), strict=True))),
        table=PackTable(
            packs=list(packs),
            chunks={chunk: pack for table in tables for chunk, pack in table.chunks.items()},
            places={pack: place for table in tables for pack, place in table.places.items()},
            structure=len(structure),
        ),
    )
