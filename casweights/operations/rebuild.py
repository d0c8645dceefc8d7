"""Rebuild: get the chunks that a store lacks from donors, and write them to it.

`Rebuild` decides nothing about damage: `repair` tells it which versions and chunks are wanted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.database.writer import PackWriter
from casweights.errors import IntegrityError, NotFoundError
from casweights.format.codecs import encode
from casweights.format.hashing import checksum
from casweights.format.manifest import Snapshot
from casweights.format.pack import EncodedFrame
from casweights.operations.donors import Place
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.dtypes import DType
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId
    from casweights.operations.donors import Donor, Wanted

THE_STORE = "the store"


class Rebuild:
    """The chunks that are rebuilt in one repair; nothing is written in a dry run.

    The order of calls: `structure_of` and `gather` for structure chunks, then for the others, then
    `finish`. One thread calls them.

    Args:
        db: The store.
        look: The same store, read past caches, which knows what is damaged.
        donors: Where chunks may come from, in the order in which they are asked.
        generation: Generation of the packs that are written.
        apply: Whether to write.

    Attributes:
        found: Chunks that donors had; they are durable after `finish`.
        regained: Chunks that can be read again since others were found.
        sources: Number of chunks by where they came from.
        writer: Writes the packs.
    """

    def __init__(
        self,
        db: Database,
        look: Database,
        donors: Sequence[Donor],
        *,
        generation: int,
        apply: bool,
    ) -> None:
        self._db = db
        self._look = look
        self._donors = donors
        self._apply = apply
        self._structure = _Held()
        self.found: set[ChunkId] = set()
        self.regained: set[ChunkId] = set()
        self.sources: dict[str, int] = {}
        self.writer = PackWriter(db, generation)

    def version(self, stored: StoredSnapshot) -> Snapshot:
        """Return a version whose headers and lists of chunks are also read from what was found."""

        def read(wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, bytes]:
            reader = self._look.reader.with_local(self._structure)
            return {chunk: reader.read(chunk, size) for chunk, size in wanted.items()}

        return Snapshot.decode(stored.encoded_manifest, stored.snapshot.id, read)

    def gather(self, wanted: Wanted, *, structure: bool = False) -> None:
        """Get chunks from the donors, and write them; those that no donor has stay in `wanted`.

        Args:
            wanted: The chunks.
            structure: Whether they are headers and lists of chunks.
        """
        for donor in self._donors:
            if not wanted:
                return
            for chunk, content in donor.chunks(wanted):
                place = wanted.pop(chunk, None)
                if place is None:
                    continue
                if structure:
                    self._structure.chunks[chunk] = bytes(content)
                self.found.add(chunk)
                self._count(donor.name)
                if self._apply:
                    add_whole(self.writer, chunk, content, place.dtype)

    def _count(self, source: str) -> None:
        self.sources[source] = self.sources.get(source, 0) + 1

    def finish(self, lacking: Iterable[ChunkId]) -> None:
        """Make all that was found durable, and find out which chunks can be read again by that.

        Args:
            lacking: Chunks that no donor had, and that may be stored as differences.
        """
        if self._apply:
            self.writer.finish()
            self._look.index.load()
        finder = self._look.index.finder(frozenset(self.found))
        for chunk in (chunk for chunk in lacking if chunk not in self.found):
            if self._look.index.frames(chunk) and finder.chain(chunk) is not None:
                if self._apply and read_chunk(self._look, chunk) is None:
                    continue
                self.regained.add(chunk)
                self._count(THE_STORE)

    def close(self) -> None:
        """End the threads of the writer."""
        self.writer.close()


class _Held:
    """Headers and lists of chunks that were found, for readers of versions; a dry run has no other.

    Attributes:
        chunks: Their bytes.
    """

    is_used = True

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, bytes] = {}

    def __contains__(self, chunk: object) -> bool:
        return chunk in self.chunks

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk; return False if it is not held or has another size."""
        found = self.chunks.get(chunk)
        if found is None or len(found) != len(out):
            return False
        out[:] = found
        return True


def add_whole(writer: PackWriter, chunk: ChunkId, raw: memoryview, dtype: DType) -> None:
    """Add a chunk to packs by itself, not as a difference."""
    encoding, encoded = encode(raw, dtype, "auto")
    payload = bytes(encoded)  # it may be the caller's buffer, which is used again
    writer.add(chunk, len(raw), [EncodedFrame(encoding, payload, checksum(payload), None)])


def read_chunk(db: Database, chunk: ChunkId) -> memoryview | None:
    """Return a chunk, checked against its ID; None if the store cannot rebuild it."""
    chain = db.index.find_chain(chunk)
    if chain is None:
        return None
    out = uninitialized(next(chain.back()).frame.raw_size)
    with suppress(IntegrityError, NotFoundError):
        db.reader.readinto(chunk, out)
        return out
    return None


def places_of(
    version: Snapshot, have: Container[ChunkId], *, structure: bool
) -> dict[ChunkId, Place]:
    """Return the chunks of a version that are not among `have`, with what is known of them.

    Args:
        version: The version.
        have: Chunks that need not be rebuilt.
        structure: Whether to return its headers and lists of chunks, or its other chunks.

    Raises:
        IntegrityError: `structure` is false, and a header or list of chunks is lost.
    """
    if not structure:
        return {c: Place(piece.dtype) for c, piece in version.pieces() if c not in have}
    rows = [file.row(version.config) for file in version.files]
    headers = {chunk for row in rows for chunk in row.header}
    structural = version.structure()
    return {c: Place(is_header=c in headers) for c in structural if c not in have}
