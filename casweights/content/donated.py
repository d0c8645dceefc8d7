"""Plain files as a source of chunks that a store has lost.

Files are cut as a commit cuts them, so that their chunks have the same IDs. A file with a
safetensors header is cut in two ways, by its tensors and as plain bytes, since a commit may have
done either.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import DEFAULT_EXCLUDE, MiB
from casweights.content.files import DiskFile, SourceFile
from casweights.content.source_tree import SourceTree
from casweights.errors import InvalidInputError
from casweights.format import safetensors
from casweights.format.file_entry import FileEntry
from casweights.format.layout import runs
from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights.config import StoreConfig
    from casweights.format.layout import Piece
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore
    from casweights.system.threads import Workers

_REQUEST = 16 * MiB  # bytes of a file that one request reads over a network


class CutChunk(NamedTuple):
    """A chunk of a file, or a piece of its header or of its list of chunks.

    Attributes:
        chunk: Its ID.
        content: Its bytes, valid until the next one is asked for.
        piece: Its place in the file; None for a header or list of chunks.
    """

    chunk: ChunkId
    content: memoryview
    piece: Piece | None


class PlainFiles:
    """Files of a directory or a repository, each as it may have been committed.

    Args:
        name: The name of the place, for reports.
        files: The files, cut by their tensors where they have any.
        opaque: Those of them that have tensors, as plain bytes.
        request: Bytes of a file that are read at a time.

    Attributes:
        name: The name of the place.
        nbytes: Bytes that `chunks` reads if it is not ended early.
    """

    def __init__(
        self, name: str, files: Sequence[SourceFile], opaque: Sequence[SourceFile], request: int
    ) -> None:
        self.name = name
        self._files = files
        self._opaque = opaque
        self._request = request
        self.nbytes = sum(file.size for file in (*files, *opaque))

    def headers(self, config: StoreConfig) -> Iterator[CutChunk]:
        """Yield the pieces of all headers, without reading the files further."""
        for file in self._files:
            if file.raw_header is not None:
                entry = FileEntry(file.path, file.size, file.raw_header, file.header, ())
                for chunk, content in entry.header_chunks(config):
                    yield CutChunk(chunk, memoryview(content), None)

    def chunks(
        self, config: StoreConfig, hasher: Callable[[memoryview], ChunkId], workers: Workers
    ) -> Iterator[CutChunk]:
        """Read all files, and yield their chunks and lists of chunks.

        Raises:
            InvalidInputError: A file cannot be read.
            StoreError: The repository cannot be read.
        """
        buffers = Pool(max(config.chunk_size, self._request))
        for file in (*self._files, *self._opaque):
            ids: list[ChunkId] = []

            def cut(run: list[Piece], file: SourceFile = file) -> list[CutChunk]:
                views = file.read(run, buffers)
                pairs = zip(run, views, strict=True)
                return [CutChunk(hasher(view), view, piece) for piece, view in pairs]

            for found in workers.map(cut, self._runs(file, config)):
                ids += [made.chunk for made in found]
                yield from found
            if len(ids) > 1:
                entry = FileEntry(file.path, file.size, None, None, tuple(ids))
                for chunk, content in entry.structure(config):
                    yield CutChunk(chunk, memoryview(content), None)

    def _runs(self, file: SourceFile, config: StoreConfig) -> Iterator[list[Piece]]:
        yield from runs(file.pieces(config.chunk_size), max(config.chunk_size, self._request))


class _ReadFile(SourceFile):
    """A file among the objects of a store.

    Args:
        store: The store.
        path: Name of the object.
        size: Its bytes.
        opaque: Whether not to look for tensors.
    """

    def __init__(self, store: ObjectStore, path: str, size: int, *, opaque: bool) -> None:
        self.path, self.size = path, size
        self._store = store
        if not opaque and size >= safetensors.LENGTH_SIZE:
            with suppress(InvalidInputError):
                self._parse()

    def _parse(self) -> None:
        length = self._store.get(self.path, 0, safetensors.LENGTH_SIZE)
        size = safetensors.header_size(length, self.size)
        raw_header = self._store.get(self.path, 0, size)
        self.header = safetensors.parse_header(raw_header, self.size - size)
        self.raw_header = raw_header

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        start = run[0].offset
        buffer = buffers.take(sum(piece.nbytes for piece in run))
        self._store.readinto(self.path, start, buffer)
        return [buffer[p.offset - start : p.offset - start + p.nbytes] for p in run]


def files_on_disk(root: Path, name: str) -> PlainFiles:
    """Return the files of a directory, or the file that `root` is.

    Raises:
        InvalidInputError: An entry cannot be read, or is neither a file nor a folder.
    """
    tree = SourceTree(root, DEFAULT_EXCLUDE)
    files: list[SourceFile] = []
    opaque: list[SourceFile] = []
    for path, location in sorted(tree.found.items()):
        plain = DiskFile(path, location, opaque=True)
        try:
            file = DiskFile(path, location)
        except InvalidInputError:  # a damaged safetensors file may still have sound bytes
            file = plain
        files.append(file)
        if file.header is not None:
            opaque.append(plain)
    return PlainFiles(name, files, opaque, 0)


def files_of_store(store: ObjectStore, name: str) -> PlainFiles:
    """Return the files that are the objects of a store, such as a model repository.

    Raises:
        NotFoundError: The repository does not exist.
        StoreError: It cannot be read.
    """
    files: list[SourceFile] = []
    opaque: list[SourceFile] = []
    for info in store.list():
        file = _ReadFile(store, info.name, info.size, opaque=False)
        files.append(file)
        if file.header is not None:
            opaque.append(_ReadFile(store, info.name, info.size, opaque=True))
    return PlainFiles(name, files, opaque, _REQUEST)
