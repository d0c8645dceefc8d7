"""The contents of a directory's files, in a form that can be compared with a version's files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.content.files import file_runs
from casweights.content.worktree import WorktreeFile
from casweights.errors import InvalidInputError
from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casweights.content.worktree import Worktree
    from casweights.database import Database
    from casweights.format.file_entry import FileEntry
    from casweights.format.layout import Piece
    from casweights.format.safetensors import Header
    from casweights.ids import ChunkId


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file in one of two layouts: as tensors, or as plain bytes.

    Two of them are equal exactly if the files have the same bytes in the same layout.

    Attributes:
        size: Number of bytes.
        raw_header: The safetensors header; None for plain bytes.
        chunks: IDs of the chunks.
        header: `raw_header`, parsed.
    """

    size: int
    raw_header: bytes | None
    chunks: tuple[ChunkId, ...]
    header: Header | None = field(compare=False)

    @classmethod
    def of(cls, file: FileEntry) -> Self:
        """Return the content of a version's file."""
        return cls(file.size, file.raw_header, file.chunks, file.header)


class _Position(NamedTuple):
    """The file that contains a chunk, and the chunk's offset in bytes."""

    file: WorktreeFile
    offset: int


class WorktreeChunks:
    """The chunks of a directory's files, as `LocalChunks` that a checkout can copy from."""

    def __init__(self) -> None:
        self._positions: dict[ChunkId, _Position] = {}

    @property
    def is_used(self) -> bool:
        """Whether there are any chunks."""
        return bool(self._positions)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._positions

    def add(self, chunk: ChunkId, file: WorktreeFile, offset: int) -> None:
        """Record the position of a chunk, unless one is recorded already."""
        self._positions.setdefault(chunk, _Position(file, offset))

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk; return False if its file was removed or replaced.

        The caller verifies the bytes, because the file may have changed.
        """
        position = self._positions.get(chunk)
        if position is None:
            return False
        try:
            return position.file.readinto(position.offset, out)
        except (OSError, InvalidInputError):
            return False


def read_contents(
    db: Database, tree: Worktree, opaque: Mapping[str, bool]
) -> tuple[dict[str, Content], WorktreeChunks]:
    """Read and hash files.

    Args:
        db: The store whose chunk size and digest are used.
        tree: The directory.
        opaque: The paths of the files, and whether to treat each file as plain bytes. False means
            by tensors, if the file has a valid safetensors header.

    Returns:
        The content of each file by path, without files that cannot be read or change while they
        are read; and the chunks of all files.
    """
    files = [file for path in opaque if (file := _open(tree, path, opaque[path])) is not None]
    read: list[list[ChunkId]] = [[] for _ in files]
    failed: set[int] = set()
    found = WorktreeChunks()
    chunk_size = db.config.chunk_size
    hash_run = partial(_hash_run, db, files, Pool(chunk_size))
    for (number, run), chunks in db.workers.map(hash_run, file_runs(files, chunk_size)):
        if chunks is None:
            failed.add(number)
            continue
        read[number] += chunks
        for piece, chunk in zip(run, chunks, strict=True):
            found.add(chunk, files[number], piece.offset)
    contents = {
        file.path: Content(file.size, file.raw_header, tuple(chunks), file.header)
        for number, (file, chunks) in enumerate(zip(files, read, strict=True))
        if number not in failed
    }
    return contents, found


def _open(tree: Worktree, path: str, opaque: bool) -> WorktreeFile | None:
    try:
        return WorktreeFile(tree, path, opaque=opaque)
    except OSError:
        return None


def _hash_run(
    db: Database, files: Sequence[WorktreeFile], buffers: Pool, job: tuple[int, list[Piece]]
) -> tuple[tuple[int, list[Piece]], list[ChunkId] | None]:
    number, run = job
    try:
        return job, [db.hasher(view) for view in files[number].read(run, buffers)]
    except (OSError, InvalidInputError):  # the file was changed or removed while it was read
        return job, None
