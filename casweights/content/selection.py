"""Select parts of a version: files by path, tensors by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.content.source_tree import matches
from casweights.database.hints import note_similar
from casweights.errors import ErrorCode, NotFoundError
from casweights.format.file_entry import FileEntry
from casweights.format.safetensors import (
    TREE_KEY,
    TensorInfo,
    build_header,
    parse_header,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from casweights.format.manifest import Manifest
    from casweights.ids import ChunkId


class StoredTensor(NamedTuple):
    """A tensor of a version's file, and the IDs of its chunks in order."""

    info: TensorInfo
    chunks: tuple[ChunkId, ...]


def tensor_chunks(file: FileEntry, chunk_size: int) -> Iterator[StoredTensor]:
    """Yield the tensors of a safetensors file, each with its chunks; nothing for other files."""
    first = 0
    for info in _infos(file):
        count = -(-info.nbytes // chunk_size)  # rounded up: each tensor begins a new chunk
        yield StoredTensor(info, file.chunks[first : first + count])
        first += count


def select(manifest: Manifest, include: Sequence[str] | None) -> list[FileEntry]:
    """Return the selected files of a version, and smaller files with the selected tensors.

    Args:
        manifest: The version.
        include: Shell-style patterns. A file whose path matches is selected whole. From other
            safetensors files, the tensors whose names match are selected, as a smaller file. None
            selects everything.

    Raises:
        NotFoundError: Nothing matches.
    """
    if include is None:
        return list(manifest.files)
    chosen = []
    for file in manifest.files:
        if matches(file.path, include):
            chosen.append(file)
            continue
        names = {info.name for info in _infos(file) if matches(info.name, include)}
        if (part := part_of(file, names, manifest.config.chunk_size)) is not None:
            chosen.append(part)
    if not chosen:
        raise NotFoundError(
            ErrorCode.FILE_NOT_FOUND,
            f"no file or tensor matches {' or '.join(map(repr, include))}",
        )
    return chosen


def _infos(file: FileEntry) -> Sequence[TensorInfo]:
    return file.header.tensors if file.header else ()


def part_of(file: FileEntry, names: Collection[str], chunk_size: int) -> FileEntry | None:
    """Return the file reduced to these tensors; None if it contains none of them."""
    chunks = {
        info.name: (info, ids)
        for info, ids in tensor_chunks(file, chunk_size)
        if info.name in names
    }
    if not chunks or file.header is None:
        return None
    tensors = [(info.name, info.dtype, info.shape) for info, _ in chunks.values()]
    # The tree describes a state dict with all tensors, so a part of them cannot have it.
    metadata = {k: v for k, v in file.header.metadata.items() if k != TREE_KEY}
    raw_header = build_header(tensors, metadata)
    header = parse_header(raw_header, sum(info.nbytes for info, _ in chunks.values()))
    ids = tuple(chunk for info in header.tensors for chunk in chunks[info.name][1])
    return FileEntry(file.path, len(raw_header) + header.data_size, raw_header, header, ids)


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
