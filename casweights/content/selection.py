"""Select parts of a version: files by path, tensors by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.content.source_tree import matches
from casweights.content.spans import reads_of, stored_tensors
from casweights.database.hints import note_similar
from casweights.errors import ErrorCode, NotFoundError
from casweights.format.file_entry import FileEntry
from casweights.format.layout import file_pieces
from casweights.format.safetensors import TREE_KEY, build_header, parse_header
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from casweights.content.spans import Span
    from casweights.database import Database
    from casweights.format.manifest import Manifest, Snapshot
    from casweights.ids import ChunkId


class CutChunks:
    """Chunks of parts of files, which are cut from chunks of the store, as `LocalChunks`.

    Small tensors share chunks with their neighbours. If not all neighbours are selected, the
    chunks of the smaller file are others than those of the whole one, and no pack has them.

    Args:
        db: The store.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._reader = db.reader.with_local(db.cache)
        self._spans: dict[ChunkId, tuple[Span, ...]] = {}

    @property
    def is_used(self) -> bool:
        """Whether there are any chunks."""
        return bool(self._spans)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._spans

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk; return False if it is not one of these chunks.

        Raises:
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        spans = self._spans.get(chunk)
        if spans is None or sum(span.nbytes for span in spans) != len(out):
            return False
        self._fill(spans, out)
        return True

    def add(self, spans: Sequence[Span]) -> ChunkId:
        """Return the ID of the chunk that these spans are, end to end, and remember the chunk."""
        if (whole := whole_chunk(spans)) is not None:
            return whole
        out = uninitialized(sum(span.nbytes for span in spans))
        self._fill(spans, out)
        chunk = self._db.hasher(out)
        self._spans[chunk] = tuple(spans)
        return chunk

    def _fill(self, spans: Sequence[Span], out: memoryview) -> None:
        for read in reads_of([(spans, out)]):
            read.perform(self._db, self._reader)

    def sources(self, chunks: Iterable[ChunkId]) -> list[ChunkId]:
        """Replace these chunks by the chunks of the store that they are cut from."""
        found: dict[ChunkId, None] = {}
        for chunk in chunks:
            spans = self._spans.get(chunk)
            found.update(dict.fromkeys([chunk] if spans is None else [s.chunk for s in spans]))
        return list(found)


def whole_chunk(spans: Sequence[Span]) -> ChunkId | None:
    """Return the chunk that these spans are, end to end; None if they are only parts of chunks."""
    first = spans[0]
    if any(span.chunk != first.chunk for span in spans):
        return None
    at = 0
    for span in spans:
        if span.offset != at:
            return None
        at += span.nbytes
    return first.chunk if at == first.size else None


class FilePart(NamedTuple):
    """Some tensors of a version's file, as the smaller file that a checkout writes.

    Attributes:
        path: Name inside the version.
        raw_header: The smaller file's header.
        data_size: Bytes after the header.
        chunks: For each of its chunks, the spans of the whole file that it consists of.
    """

    path: str
    raw_header: bytes
    data_size: int
    chunks: list[tuple[Span, ...]]

    @property
    def size(self) -> int:
        """Bytes of the smaller file."""
        return len(self.raw_header) + self.data_size

    def entry(self, cut: CutChunks) -> FileEntry:
        """Return the smaller file; its chunks are in the store, or else in `cut`."""
        header = parse_header(self.raw_header, self.data_size)
        ids = tuple(map(cut.add, self.chunks))
        return FileEntry(self.path, self.size, self.raw_header, header, ids)


class Selection(NamedTuple):
    """Selected files of a version.

    Attributes:
        files: The files.
        cut: Those of their chunks that the store does not have.
    """

    files: list[FileEntry]
    cut: CutChunks


def select(db: Database, snapshot: Snapshot, include: Sequence[str] | None) -> Selection:
    """Return the selected files of a version, and smaller files with the selected tensors.

    Args:
        db: The store.
        snapshot: The version, with locations.
        include: Shell-style patterns. A file whose path matches is selected whole. From other
            safetensors files, the tensors whose names match are selected, as a smaller file. None
            selects everything.

    Raises:
        NotFoundError: Nothing matches.
        IntegrityError: The store is damaged.
    """
    cut = CutChunks(db)
    if include is None:
        return Selection(list(snapshot.files), cut)
    chosen = []
    for file in snapshot.files:
        if matches(file.path, include):
            chosen.append(file)
            continue
        infos = file.header.tensors if file.header else ()
        names = {info.name for info in infos if matches(info.name, include)}
        if (part := part_of(file, names, snapshot.config.chunk_size)) is not None:
            chosen.append(part.entry(cut))
    if not chosen:
        raise NotFoundError(
            ErrorCode.FILE_NOT_FOUND,
            f"no file or tensor matches {' or '.join(map(repr, include))}",
        )
    return Selection(chosen, cut)


def part_of(file: FileEntry, names: Collection[str], chunk_size: int) -> FilePart | None:
    """Return the file reduced to these tensors; None if it contains none of them."""
    found = {
        stored.info.name: stored
        for stored in stored_tensors(file, chunk_size)
        if stored.info.name in names
    }
    if not found or file.header is None:
        return None
    tensors = [(s.info.name, s.info.dtype, s.info.shape) for s in found.values()]
    # The tree describes a state dict with all tensors, so a part of them cannot have it.
    metadata = {k: v for k, v in file.header.metadata.items() if k != TREE_KEY}
    raw_header = build_header(tensors, metadata)
    data_size = sum(stored.info.nbytes for stored in found.values())
    header = parse_header(raw_header, data_size)
    chunks = [
        tuple(
            span
            for tensor, start, _, nbytes in piece.parts()
            for span in found[tensor.name].spans(start, start + nbytes)
        )
        for piece in file_pieces(len(raw_header) + data_size, header, chunk_size)
    ]
    return FilePart(file.path, raw_header, data_size, chunks)


def find_file(manifest: Manifest, path: str) -> FileEntry:
    """Return the file of a version with this path.

    Raises:
        NotFoundError: The version has no such file; notes on the error name similar ones.
    """
    for file in manifest.files:
        if file.path == path:
            return file
    error = NotFoundError(ErrorCode.FILE_NOT_FOUND, f"the version has no file {path!r}")
    note_similar(error, path, (file.path for file in manifest.files))
    raise error
