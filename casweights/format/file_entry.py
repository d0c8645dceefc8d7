"""Files of a version: the rows of a manifest, and the structure chunks that complete them.

A row lists *structure chunks*: pieces of the file's header, and *pages* of the IDs of its chunks.
They are stored like the chunks of tensors, once for all versions that share them, and are read when
a caller first uses the header or the chunks of a file.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.format.fields import split_ids
from casweights.format.hashing import DIGEST_SIZES, chunk_hasher
from casweights.format.layout import count_chunks, file_pieces
from casweights.format.safetensors import MAX_HEADER_SIZE, Header, parse_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from casweights.config import StoreConfig
    from casweights.format.layout import Piece
    from casweights.ids import ChunkId

PAGE_IDS = 4096  # chunk IDs in a page: 128 KiB, so that a trillion parameters have 122 pages
MAX_EXPANDED_SIZE = 256 << 20  # bytes of all headers and chunk IDs of a version
_MAX_SIZE = 1 << 63  # sizes are signed and have 64 bits


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as its manifest lists it.

    Attributes:
        path: Name inside the version, parts separated by ``/``.
        size: Bytes of the file.
        header_size: Bytes of its safetensors header; None for a file of opaque bytes.
        header: IDs of the header's chunks.
        count: Number of the file's chunks.
        ids: The ID of the only chunk, or the IDs of the pages that list all chunks.
    """

    path: str
    size: int
    header_size: int | None
    header: tuple[ChunkId, ...]
    count: int
    ids: tuple[ChunkId, ...]

    @property
    def pages(self) -> tuple[ChunkId, ...]:
        """The IDs of the pages; none if the row itself lists the chunks."""
        return self.ids if self.count > 1 else ()

    def structure(self, config: StoreConfig) -> Iterator[tuple[ChunkId, int]]:
        """Yield the ID of each structure chunk with its size in bytes."""
        yield from zip(self.header, _cuts(self.header_size or 0, config.chunk_size), strict=True)
        page = PAGE_IDS * DIGEST_SIZES[config.digest]
        ids = self.count * DIGEST_SIZES[config.digest]
        yield from zip(self.pages, _cuts(ids if self.pages else 0, page), strict=True)

    def check(self, config: StoreConfig) -> int:
        """Check what the row claims, before its structure chunks are read.

        Returns:
            Bytes of the header and of the IDs of all chunks together.

        Raises:
            ValueError: The claims contradict each other or exceed a limit.
        """
        header = self.header_size or 0
        if not 0 <= self.size < _MAX_SIZE:
            raise ValueError(f"{self.path!r} claims {self.size} bytes")
        if self.header_size is not None and not 8 <= header <= min(self.size, MAX_HEADER_SIZE + 8):
            raise ValueError(f"{self.path!r} claims a header of {header} bytes")
        if len(self.header) != _count(header, config.chunk_size):
            count = len(self.header)
            raise ValueError(f"{self.path!r} claims {header} bytes of header in {count} chunks")
        expected = self.count if self.count < 2 else _count(self.count, PAGE_IDS)
        if self.count < 0 or len(self.ids) != expected:
            raise ValueError(f"{self.path!r} claims {self.count} chunks and lists {len(self.ids)}")
        if self.header_size is None:
            self._check_count(None, config)
        return header + self.count * DIGEST_SIZES[config.digest]

    def expand(
        self,
        config: StoreConfig,
        contents: Mapping[ChunkId, bytes],
        listed: Mapping[ChunkId, tuple[ChunkId, ...]],
    ) -> FileContent:
        """Complete the row with the contents of its structure chunks.

        Args:
            config: Digest and chunk size.
            contents: The structure chunks.
            listed: The IDs in each page.

        Raises:
            ValueError: The contents do not fit the row, or are not valid.
        """
        raw_header = header = None
        if self.header_size is not None:
            raw_header = b"".join(contents[chunk] for chunk in self.header)
            header = parse_header(raw_header, self.size - len(raw_header))
        self._check_count(header, config)
        ids = tuple(chain.from_iterable(listed[page] for page in self.pages))
        return FileContent(raw_header, header, ids if self.pages else self.ids)

    def _check_count(self, header: Header | None, config: StoreConfig) -> None:
        if self.count != count_chunks(self.size, header, config.chunk_size):
            raise ValueError(
                f"{self.path!r} claims {self.size} bytes and lists {self.count} chunks"
            )


class FileContent(NamedTuple):
    """The parts of a file that its row only refers to.

    Attributes:
        raw_header: Safetensors header, length bytes included, verbatim; None for other files.
        header: The parsed `raw_header`; None for other files.
        chunks: IDs of the file's chunks, in file order.
    """

    raw_header: bytes | None
    header: Header | None
    chunks: tuple[ChunkId, ...]


class FileEntry:
    """A file of a version.

    The first use of `raw_header`, `header` or `chunks` of a stored version reads them from the
    store, for all files of the version together. It raises `StoreError` if the store cannot be
    read, and `IntegrityError` if a header or a list of chunks is damaged or missing.

    Args:
        path: Path inside the version, with parts separated by ``/``.
        size: Bytes of the file.
        raw_header: Safetensors header, length bytes included, verbatim; None for other files.
        header: The parsed `raw_header`; None for other files.
        chunks: IDs of the file's chunks, in file order.
    """

    __slots__ = ("_content", "_row", "path", "size")

    def __init__(
        self,
        path: str,
        size: int,
        raw_header: bytes | None,
        header: Header | None,
        chunks: tuple[ChunkId, ...],
    ) -> None:
        self.path = path
        self.size = size
        self._content: FileContent | Callable[[], FileContent]
        self._content = FileContent(raw_header, header, chunks)
        self._row: FileRow | None = None

    @classmethod
    def stored(cls, row: FileRow, load: Callable[[], FileContent]) -> Self:
        """Return the file of a row; `load` returns its header and chunks when they are needed."""
        entry = cls(row.path, row.size, None, None, ())
        entry._content, entry._row = load, row
        return entry

    def _loaded(self) -> FileContent:
        if not isinstance(self._content, FileContent):
            self._content = self._content()
        return self._content

    @property
    def raw_header(self) -> bytes | None:
        """The file's safetensors header, length bytes included, verbatim; None without one."""
        return self._loaded().raw_header

    @property
    def header(self) -> Header | None:
        """The file's safetensors header, parsed; None for a file of opaque bytes."""
        return self._loaded().header

    @property
    def chunks(self) -> tuple[ChunkId, ...]:
        """IDs of the file's chunks, in file order."""
        return self._loaded().chunks

    def pieces(self, chunk_size: int) -> Iterator[tuple[ChunkId, Piece]]:
        """Yield the ID and position of every chunk, in file order."""
        return zip(self.chunks, file_pieces(self.size, self.header, chunk_size), strict=True)

    def row(self, config: StoreConfig) -> FileRow:
        """Return the row of a manifest for this file."""
        if self._row is None:
            hasher = chunk_hasher(config.digest)
            header = tuple(map(hasher, _header_chunks(self.raw_header, config)))
            pages = tuple(map(hasher, _pages(self.chunks)))
            size = None if self.raw_header is None else len(self.raw_header)
            ids = pages or self.chunks
            self._row = FileRow(self.path, self.size, size, header, len(self.chunks), ids)
        return self._row

    def structure(self, config: StoreConfig) -> Iterator[tuple[ChunkId, bytes]]:
        """Yield each structure chunk with its content: those of the header, then the pages."""
        yield from self.header_chunks(config)
        row = self.row(config)
        yield from zip(row.pages, _pages(self.chunks), strict=True)

    def header_chunks(self, config: StoreConfig) -> Iterator[tuple[ChunkId, bytes]]:
        """Yield the pieces of the header with their IDs."""
        header = self.row(config).header
        yield from zip(header, _header_chunks(self.raw_header, config), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FileEntry):
            return NotImplemented
        here, there = self._loaded(), other._loaded()
        return (self.path, self.size, here.raw_header, here.chunks) == (
            other.path,
            other.size,
            there.raw_header,
            there.chunks,
        )

    def __hash__(self) -> int:
        return hash((self.path, self.size))

    def __repr__(self) -> str:
        return f"FileEntry(path={self.path!r}, size={self.size})"


class Expansion:
    """The contents of a version's files, read all together when one of them is first needed.

    Args:
        rows: The files, as the manifest lists them.
        config: Digest and chunk size.
        read: Returns the contents of structure chunks, given the size of each by ID.
        failed: Returns the error for a version with invalid structure, given the reason.
    """

    def __init__(
        self,
        rows: Sequence[FileRow],
        config: StoreConfig,
        read: ReadStructure,
        failed: Callable[[str], Exception],
    ) -> None:
        self._rows = rows
        self._config = config
        self._read = read
        self._failed = failed
        self._lock = threading.Lock()
        self._contents: list[FileContent] | None = None

    def content(self, number: int) -> FileContent:
        """Return the content of the file with this number in `rows`."""
        with self._lock:
            if self._contents is None:
                read = self._read(structure_sizes(self._rows, self._config))
                try:
                    self._contents = self._expand(read)
                except ValueError as error:
                    raise self._failed(str(error)) from error
            return self._contents[number]

    def _expand(self, read: Mapping[ChunkId, bytes]) -> list[FileContent]:
        # Each page is split once: a manifest may list one page thousands of times.
        size = DIGEST_SIZES[self._config.digest]
        pages = dict.fromkeys(page for row in self._rows for page in row.pages)
        listed = {page: split_ids(read[page], size) for page in pages}
        found = [row.expand(self._config, read, listed) for row in self._rows]
        sizes: dict[ChunkId, int] = {}
        for row, content in zip(self._rows, found, strict=True):
            pieces = file_pieces(row.size, content.header, self._config.chunk_size)
            for chunk, piece in zip(content.chunks, pieces, strict=True):
                if sizes.setdefault(chunk, piece.nbytes) != piece.nbytes:
                    raise ValueError(f"its chunk {chunk} has two sizes")
        return found


if TYPE_CHECKING:
    ReadStructure = Callable[[Mapping[ChunkId, int]], Mapping[ChunkId, bytes]]


def structure_sizes(rows: Sequence[FileRow], config: StoreConfig) -> dict[ChunkId, int]:
    """Return the distinct structure chunks of some files, in order, with the size of each.

    Raises:
        ValueError: One of them is listed with two sizes.
    """
    sizes: dict[ChunkId, int] = {}
    for row in rows:
        for chunk, size in row.structure(config):
            if sizes.setdefault(chunk, size) != size:
                raise ValueError(f"its chunk {chunk} has two sizes")
    return sizes


def stored_chunks(files: Sequence[FileEntry], config: StoreConfig) -> dict[ChunkId, None]:
    """Return the distinct chunks that a reader of these files needs, structure chunks first."""
    structure = (c for file in files for c, _ in file.row(config).structure(config))
    return dict.fromkeys(structure) | dict.fromkeys(c for file in files for c in file.chunks)


def _header_chunks(raw_header: bytes | None, config: StoreConfig) -> Iterator[bytes]:
    raw, step = raw_header or b"", config.chunk_size
    return (raw[start : start + step] for start in range(0, len(raw), step))


def _pages(chunks: Sequence[ChunkId]) -> Iterator[bytes]:
    if len(chunks) > 1:
        for start in range(0, len(chunks), PAGE_IDS):
            yield b"".join(chunks[start : start + PAGE_IDS])


def _cuts(size: int, step: int) -> list[int]:
    """Return the sizes of the pieces of a run of bytes: `step` for all but the last."""
    return [min(step, size - start) for start in range(0, size, step)]


def _count(size: int, step: int) -> int:
    return -(-size // step)
