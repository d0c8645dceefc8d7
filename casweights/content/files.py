"""Files to commit: their layout and bytes, from a disk or elsewhere."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from casweights.config import DEFAULT_EXCLUDE
from casweights.content.source_tree import SourceTree, matches, source_changed
from casweights.errors import CasweightsError, ErrorCode, InvalidInputError
from casweights.format import safetensors
from casweights.format.file_paths import check_new_path, check_paths
from casweights.format.layout import Piece, file_pieces, runs
from casweights.system.files import read_exactly

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from casweights.ids import ChunkId
    from casweights.system.buffers import Pool


GLIMPSE = 512  # bytes at the beginning of a file from which its type is guessed
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_CLOCK_REALTIME_COARSE = 5  # Linux; Python has no name for it
_SLOWEST_TICK = 10**7  # nanoseconds; used where the kernel does not report its own

LFS_ADVICE = (
    "it is a pointer of git-lfs, and the file that it stands for was not downloaded: run `git lfs "
    "pull`"
)


class SourceFile(ABC):
    """A file to commit.

    For each run, a commit calls `chunk_ids`, perhaps `look`, and `read`, on several threads. When
    all bytes have been read, it calls `check_unchanged`.

    Attributes:
        path: Its path inside the version.
        size: Its size in bytes.
        raw_header: Its safetensors header, verbatim; None if it is stored as plain bytes.
        header: `raw_header`, parsed.
        tree: The directory that it belongs to; None for a file that exists only in memory.
        is_pointer: Whether it is a pointer of git-lfs instead of the file itself.
    """

    path: str
    size: int
    raw_header: bytes | None = None
    header: safetensors.Header | None = None
    tree: SourceTree | None = None
    is_pointer: bool = False

    def pieces(self, chunk_size: int) -> Iterator[Piece]:
        """Return the places of its chunks, in the order of the file."""
        return file_pieces(self.size, self.header, chunk_size)

    def runs(self, chunk_size: int) -> Iterable[list[Piece]]:
        """Return the same pieces in runs of neighbours, each about as large as a chunk."""
        return runs(self.pieces(chunk_size), chunk_size)

    def chunk_ids(self, run: Sequence[Piece]) -> Sequence[ChunkId | None]:
        """Return the chunk IDs of a run's pieces; None where the bytes must be read first."""
        return [None] * len(run)

    def base(self, piece: Piece) -> ChunkId | None:
        """Return the chunk that was at a piece's place in the last version, if this is known."""
        return None

    @abstractmethod
    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        """Return the bytes of neighbouring pieces. May be called from several threads at once.

        The bytes do not change while a view of them exists: a chunk is first hashed and then
        encoded from them, and both must see the same bytes. Memory that others may write to in
        between must therefore be copied.

        Args:
            run: Neighbouring pieces of the file.
            buffers: Memory to read into.
        """

    def look(self, run: Sequence[Piece]) -> list[memoryview] | None:
        """Return the same bytes without a copy, or None if `read` does not copy them anyway.

        Others may write to the bytes at any time. A digest of them may be used to find that the
        store already contains the chunk, but they must not be encoded: the frame might not match
        the digest.
        """
        return None

    def check_unchanged(self) -> bool:
        """Check that the file has not changed since it was opened.

        Returns:
            True if it is unchanged; False if only a comparison of its bytes can decide.

        Raises:
            InvalidInputError: The file has changed.
        """
        return True

    def changed(self) -> CasweightsError:
        """Return the error for a file that changed while it was read."""
        return source_changed(f"{self.path} changed while it")


class DiskFile(SourceFile):
    """A file on disk.

    A file with a valid safetensors header is stored as tensors under any name. A file whose name
    ends in ``.safetensors`` must have a valid header.

    Args:
        path: Its path inside the version.
        location: Its location on disk.
        opaque: Store it as plain bytes in any case.
        tree: The directory that it belongs to.

    Raises:
        InvalidInputError: It cannot be read, or its name ends in ``.safetensors`` and it has no
            valid header.
    """

    def __init__(
        self,
        path: str,
        location: Path,
        *,
        opaque: bool = False,
        tree: SourceTree | None = None,
    ) -> None:
        self.path = path
        self.tree = tree
        self.location = location
        self._since = time.time_ns()  # before `_stat` is read, so that no write falls in between
        try:
            with location.open("rb") as file:
                self._stat = _status(file.fileno())
                self.size = self._stat.st_size
                if not opaque:
                    self._look_inside(file)
        except OSError as error:
            raise self._unreadable(error) from error

    def _look_inside(self, file: BinaryIO) -> None:
        first = file.read(GLIMPSE)
        self.is_pointer = first.startswith(_LFS_POINTER)
        if self.path.endswith(safetensors.SUFFIX):
            try:
                self._parse(first, file)
            except InvalidInputError as error:
                raise self._unusable(error) from error
        elif safetensors.may_be(first, self.size):
            with suppress(InvalidInputError):
                self._parse(first, file)

    def _unusable(self, error: InvalidInputError) -> InvalidInputError:
        code, why = error.code, f"{error}. Repair or re-download it"
        if self.is_pointer:
            code, why = ErrorCode.LFS_POINTER, LFS_ADVICE
        return InvalidInputError(
            code, f"{self.location}: {why}, or commit it as plain bytes by listing it in opaque"
        )

    def _parse(self, first: bytes, file: BinaryIO) -> None:
        size = safetensors.header_size(first[: safetensors.LENGTH_SIZE], self.size)
        raw_header = first[:size] + file.read(max(0, size - len(first)))
        self.header = safetensors.parse_header(raw_header, self.size - size)
        self.raw_header = raw_header

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        start = run[0].offset
        buffer = buffers.take(sum(piece.nbytes for piece in run))
        try:
            descriptor = os.open(self.location, os.O_RDONLY)
            try:
                if not read_exactly(descriptor, start, buffer):
                    raise self.changed()
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unreadable(error) from error
        return [buffer[p.offset - start : p.offset - start + p.nbytes] for p in run]

    def check_unchanged(self) -> bool:
        """Check that the file has not changed since it was opened.

        Returns:
            False if its times cannot decide: it was written to just before it was opened, so that
            a later write may have left the same modification time; or only ``ctime`` has changed,
            which a new hard link may have caused.

        Raises:
            InvalidInputError: The file was replaced, or its size or modification time has changed.
        """
        try:
            now = _status(self.location)
        except OSError as error:
            raise self.changed() from error
        for name in ("st_ino", "st_dev", "st_size", "st_mtime_ns"):
            if getattr(now, name) != getattr(self._stat, name):
                raise self.changed()
        oldest = self._since - granule(now.st_mtime_ns)
        is_too_new = oldest <= now.st_mtime_ns <= time.time_ns()  # times in the future are not new
        return now.st_ctime_ns == self._stat.st_ctime_ns and not is_too_new

    def changed(self) -> CasweightsError:
        return source_changed(f"{self.location} changed while it")

    def _unreadable(self, error: OSError) -> CasweightsError:
        return InvalidInputError(
            ErrorCode.SOURCE_UNREADABLE, f"cannot read {self.location}: {error.strerror}"
        )


# Units in which file systems may count times, in nanoseconds, the coarsest first. FAT counts in
# pairs of seconds.
_TICKS: list[int] = [2 * 10**9, *(10**n for n in range(9, -1, -1))]


def granule(moment: int) -> int:
    """Return how long writes to a file may leave its modification time unchanged, in nanoseconds.

    This is the largest unit that divides the time (a time in whole seconds may come from a file
    system that counts in seconds), plus the tick of the kernel's clock for file times.

    Args:
        moment: The file's modification time, in nanoseconds.
    """
    return _kernel_tick() + next(tick for tick in _TICKS if moment % tick == 0)


@cache
def _kernel_tick() -> int:
    try:
        return int(time.clock_getres(_CLOCK_REALTIME_COARSE) * 10**9)
    except OSError:  # this system has no such clock
        return _SLOWEST_TICK


def _status(file: Path | int) -> os.stat_result:
    return os.stat(file)


def file_runs(files: Sequence[SourceFile], chunk_size: int) -> Iterator[tuple[int, list[Piece]]]:
    """Yield all pieces of several files in runs of about a chunk, each with its file's position."""
    for number, file in enumerate(files):
        for run in file.runs(chunk_size):
            yield number, run


def scan(
    root: Path, *, exclude: Sequence[str] = DEFAULT_EXCLUDE, opaque: Sequence[str] = ()
) -> list[SourceFile]:
    """Return all files in a directory and its subfolders, or the file that `root` is.

    Symbolic links are followed. Stores inside the directory are left out.

    Args:
        root: A directory or a file.
        exclude: Patterns of files and folders to leave out. They are matched with whole relative
            paths; ``*`` also matches ``/``.
        opaque: Patterns of files to store as plain bytes in any case.

    Raises:
        InvalidInputError: An entry cannot be read, is neither a file nor a folder, or has a name
            that some systems do not allow; or symbolic links form a circle.
    """
    tree = SourceTree(root, exclude)
    try:
        check_paths(tree.found)
        for path in tree.found:
            check_new_path(path)
    except InvalidInputError as error:
        raise InvalidInputError(
            error.code, f"{root}: {error}. Rename it, or exclude it with a pattern"
        ) from error
    return [
        DiskFile(path, location, opaque=matches(path, opaque), tree=tree)
        for path, location in sorted(tree.found.items())
    ]
