"""Files whose chunks are stored, as a version lists them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.database.writer import seal
from casweights.format.file_entry import FileEntry, stored_chunks, structure_sizes
from casweights.format.pack_table import PackTable
from casweights.system.clocks import Moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database import Database
    from casweights.database.index import Hold
    from casweights.format.lineage import Origin
    from casweights.format.pack import OpenPack
    from casweights.format.signature import Signature


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
    """Files whose chunks are in the store, or ready to be written in one object.

    After `encode_files`, the last frames are only in memory: `detached` copies those that may
    change, and `durable` writes them as a pack. The result of `durable` may be pickled, and joined
    with that of other processes.

    Attributes:
        files: The files, as a manifest lists them.
        last: The frames that are not written yet; None if all are.
        written: Counts of what was written, the last frames included as a pack.
        table: The packs of the chunks of durable files, so that another process need not search
            for them; None for files that are not durable.
        signature: Samples of the files; None if the version is to have none. Files of several
            processes have none.
        lineage: The versions that the frames were made from, if not only the first parent; none for
            files of several processes.
        hold: Keeps the index from forgetting the new packs before a snapshot names them.
        seen: When all that they rely on was still in the store.
    """

    files: tuple[FileEntry, ...]
    last: OpenPack | None
    written: Written
    table: PackTable | None = None
    hold: Hold | None = None
    seen: Moment = field(default_factory=Moment.now)
    signature: Signature | None = None
    lineage: Sequence[Origin] = ()

    def detached(self) -> Self:
        """Return a copy that shares no memory with the files, which may change before the write.

        The frame of a chunk that is stored raw is a view of the memory that the chunk was read
        into.
        """
        if self.last is None:
            return self
        payloads = [bytes(p) if isinstance(p, memoryview) else p for p in self.last.payloads]
        return replace(self, last=replace(self.last, payloads=payloads))

    def durable(self, db: Database) -> Self:
        """Write the last frames as a pack; return the files with their table.

        Raises:
            StoreError: The store could not be written.
        """
        if self.last is not None:
            pack = seal(db, self.last)
            db.store.put(pack.name, pack.parts)
            db.index.add(pack.name, pack.size, pack.locations)
        rows = [file.row(db.config) for file in self.files]
        structure = len(structure_sizes(rows, db.config))
        chunks = stored_chunks(self.files, db.config)
        table = db.snapshots.placed(db.snapshots.pack_table_of(chunks, structure))
        return replace(self, last=None, table=table, hold=None, signature=None, lineage=())


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
        seen=Moment.earliest([part.seen for part in parts]),
    )
