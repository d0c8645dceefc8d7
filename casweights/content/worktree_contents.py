"""What files of a directory hold, in the terms in which versions list their files."""

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
    from casweights.format.layout import Piece
    from casweights.format.manifest import FileEntry
    from casweights.format.safetensors import Header
    from casweights.ids import ChunkId


@dataclass(frozen=True, slots=True)
class Content:
    """All bytes of a file, in one of its two layouts: as tensors, or as plain bytes.

    Attributes:
        size: Their number.
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
        """What a file of a version holds."""
        return cls(file.size, file.raw_header, file.chunks, file.header)


class _Position(NamedTuple):
    """Where a chunk lies in a file."""

    file: WorktreeFile
    offset: int


class WorktreeChunks:
    """The chunks of files that were read; see `LocalChunks`."""

    def __init__(self) -> None:
        self._positions: dict[ChunkId, _Position] = {}

    @property
    def is_used(self) -> bool:
        """See `LocalChunks.is_used`."""
        return bool(self._positions)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._positions

    def add(self, chunk: ChunkId, file: WorktreeFile, offset: int) -> None:
        """Remember where a chunk lies, unless that is known already."""
        self._positions.setdefault(chunk, _Position(file, offset))

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """See `LocalChunks.readinto`."""
        position = self._positions.get(chunk)
        if position is None:
            return False
        try:
            return position.file.readinto(position.offset, out)
        except (OSError, InvalidInputError):  # it was removed or replaced
            return False


def read_contents(
    db: Database, tree: Worktree, opaque: Mapping[str, bool]
) -> tuple[dict[str, Content], WorktreeChunks]:
    """Read and hash files.

    Args:
        db: The store whose chunks they are cut into.
        tree: Where they lie.
        opaque: Their paths, and whether to take each for plain bytes; see `WorktreeFile`.

    Returns:
        What they hold, by path, without those that cannot be read or change meanwhile; and where
        their chunks lie.
    """
    files = [file for path in opaque if (file := _open(tree, path, opaque[path])) is not None]
    read: list[list[ChunkId]] = [[] for _ in files]
    failed: set[int] = set()
    places = WorktreeChunks()
    chunk_size = db.config.chunk_size
    hash_run = partial(_hash_run, db, files, Pool(chunk_size))
    for (number, run), chunks in db.workers.map(hash_run, file_runs(files, chunk_size)):
        if chunks is None:
            failed.add(number)
            continue
        read[number] += chunks
        for piece, chunk in zip(run, chunks, strict=True):
            places.add(chunk, files[number], piece.offset)
    contents = {
        file.path: Content(file.size, file.raw_header, tuple(chunks), file.header)
        for number, (file, chunks) in enumerate(zip(files, read, strict=True))
        if number not in failed
    }
    return contents, places


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
    except (OSError, InvalidInputError):  # it changes or goes while we look
        return job, None
