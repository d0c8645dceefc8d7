"""What is committed: files with a layout and readable bytes, wherever they come from."""

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


GLIMPSE = 512  # bytes at the beginning that tell what a file may be
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_CLOCK_REALTIME_COARSE = 5  # Linux; Python has no name for it
_SLOWEST_TICK = 10**7  # nanoseconds

LFS_ADVICE = (
    "it is a pointer of git-lfs, and the file that it stands for was not downloaded: `git lfs "
    "pull` brings it"
)


class SourceFile(ABC):
    """A file to commit.

    Attributes:
        path: Its name inside the version.
        size: Its bytes.
        raw_header: Its safetensors header, verbatim; None for opaque bytes.
        header: `raw_header`, parsed.
        tree: The directory that a commit takes it from, with all else there.
        is_pointer: Whether it is a pointer of git-lfs and not the file that this stands for.
    """

    path: str
    size: int
    raw_header: bytes | None = None
    header: safetensors.Header | None = None
    tree: SourceTree | None = None
    is_pointer: bool = False

    def pieces(self, chunk_size: int) -> Iterator[Piece]:
        """Its chunks' places, in file order."""
        return file_pieces(self.size, self.header, chunk_size)

    def runs(self, chunk_size: int) -> Iterable[list[Piece]]:
        """The same in runs of neighbours, of about a chunk's bytes each."""
        return runs(self.pieces(chunk_size), chunk_size)

    def chunk_ids(self, run: Sequence[Piece]) -> Sequence[ChunkId | None]:
        """The IDs of a run's pieces, where they are known without a look at the bytes."""
        return [None] * len(run)

    def base(self, piece: Piece) -> ChunkId | None:
        """The chunk that was in a piece's place before, where the file remembers that."""
        return None

    @abstractmethod
    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        """The bytes of neighbouring pieces. May be called from several threads at once.

        What is returned stays as it is while anybody holds a view of it: a chunk is hashed and
        encoded from it, one after the other, and the two must agree. Bytes that others may write
        to meanwhile are therefore copied first.
        """

    def look(self, run: Sequence[Piece]) -> list[memoryview] | None:
        """The same bytes where they lie, if reading copies them. Others may write to them.

        Their digest is that of bytes that were there at some moment: enough to tell that the store
        has such a chunk, but nothing may be encoded from them.
        """
        return None

    def check_unchanged(self) -> bool:
        """Check that the file is what it was when reading began.

        Returns:
            False if that cannot be told without comparing its bytes.

        Raises:
            InvalidInputError: The file has changed.
        """
        return True

    def changed(self) -> CasweightsError:
        """The error for a file that is not what it was when reading began."""
        return source_changed(f"{self.path} changed while it")


class DiskFile(SourceFile):
    """A file on disk.

    Its content decides whether it is a safetensors file. Its name says only whether it must be one.

    Args:
        path: Its name inside the version.
        location: Where it lies.
        opaque: Treat it as opaque bytes, whatever it is.
        tree: See `SourceFile.tree`.

    Raises:
        InvalidInputError: It cannot be read, or is called ``.safetensors`` and is none.
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
        self._since = time.time_ns()  # before its time is looked at
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
            code, f"{self.location}: {why}, or commit it as plain bytes by naming it opaque"
        )

    def _parse(self, first: bytes, file: BinaryIO) -> None:
        size = safetensors.header_size(first[: safetensors.LENGTH_SIZE], self.size)
        raw_header = first[:size] + file.read(max(0, size - len(first)))
        self.header = safetensors.parse_header(raw_header, self.size - size)
        self.raw_header = raw_header

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        """See `SourceFile.read`."""
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
        """See `SourceFile.check_unchanged`.

        A later write may leave the file's time as it was if that time is too new, and a change of
        ``ctime`` alone may come from a hard link: then only the bytes can tell.
        """
        try:
            now = _status(self.location)
        except OSError as error:
            raise self.changed() from error
        for name in ("st_ino", "st_dev", "st_size", "st_mtime_ns"):
            if getattr(now, name) != getattr(self._stat, name):
                raise self.changed()
        oldest = self._since - granule(now.st_mtime_ns)
        is_too_new = oldest <= now.st_mtime_ns <= time.time_ns()
        return now.st_ctime_ns == self._stat.st_ctime_ns and not is_too_new

    def changed(self) -> CasweightsError:
        """See `SourceFile.changed`."""
        return source_changed(f"{self.location} changed while it")

    def _unreadable(self, error: OSError) -> CasweightsError:
        return InvalidInputError(
            ErrorCode.SOURCE_UNREADABLE, f"cannot read {self.location}: {error.strerror}"
        )


_TICKS: list[int] = [
    2 * 10**9,
    *(10**n for n in range(9, -1, -1)),
]  # nanoseconds; FAT counts in pairs


def granule(moment: int) -> int:
    """How long a file may be written to without a change of its time, in nanoseconds.

    That is what the time itself shows (one without a fraction of a second comes from a file system
    that may count in seconds), plus the tick of the clock that the kernel takes times from.

    Args:
        moment: The file's time, in nanoseconds.
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
    """All pieces of several files in runs of about a chunk, each with its file's number."""
    for number, file in enumerate(files):
        for run in file.runs(chunk_size):
            yield number, run


def scan(
    root: Path, *, exclude: Sequence[str] = DEFAULT_EXCLUDE, opaque: Sequence[str] = ()
) -> list[SourceFile]:
    """The files below a directory, or the one file that `root` is.

    Symbolic links are followed. Stores of casweights inside the directory are left out.

    Args:
        root: A directory or a file.
        exclude: Patterns of names (relative, ``*`` matches ``/`` too) of files and folders to
            leave out.
        opaque: Patterns of files that are opaque bytes, whatever they hold.

    Raises:
        InvalidInputError: Something cannot be read, is neither file nor folder, has a name that
            not every system can hold, or links lead in a circle.
    """
    tree = SourceTree(root, exclude)
    try:
        check_paths(tree.found)
        for path in tree.found:
            check_new_path(path)
    except InvalidInputError as error:
        raise InvalidInputError(
            error.code, f"{root}: {error}. Rename it, or leave it out with an exclude pattern"
        ) from error
    return [
        DiskFile(path, location, opaque=matches(path, opaque), tree=tree)
        for path, location in sorted(tree.found.items())
    ]
