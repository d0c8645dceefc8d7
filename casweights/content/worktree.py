"""A directory that a version is put into: what lies there, and changes to it.

Nothing here follows a symbolic link below the directory, at any time: see `folders`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import closing, suppress
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from casweights.config import DEFAULT_EXCLUDE
from casweights.content.files import GLIMPSE, SourceFile, granule
from casweights.content.source_tree import matches
from casweights.errors import ConflictError, ErrorCode, InvalidInputError
from casweights.format import safetensors
from casweights.format.names import CONFIG
from casweights.system import staging
from casweights.system.closing import Closing
from casweights.system.files import read_exactly
from casweights.system.folders import Folder, in_the_way

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterator, Sequence
    from pathlib import Path

    from casweights.format.layout import Piece
    from casweights.system.buffers import Pool
    from casweights.system.threads import Workers

# Why a folder stays: it is not empty, something is mounted there, or it is gone already.
_FOLDER_STAYS = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOENT)


class Worktree(Closing):
    """A directory that may not exist yet; use it as a context manager.

    First `look` at each file's place, or at all `others`; what that returns is passed on. Then
    `create` the directory and `put` or `remove` files, each of which refuses a place that has
    changed since the look. `sync` makes all of it durable. What was put stays if a later step
    fails. One thread does all this; others may `open` files at any time.

    Paths are those of a version: relative, with ``/`` between their parts.

    Args:
        path: Where it is. It may itself be reached through links.
        overwrite: Whether `put` and `remove` accept whatever they find.

    Attributes:
        path: Where it is.

    Raises:
        InvalidInputError: It is a file, or it is or lies in a store.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self._overwrite = overwrite
        self._since = time.time_ns()
        self._checked: set[tuple[str, ...]] = set()
        self._touched: set[tuple[str, ...]] = set()  # with all folders above them
        self._root: Folder | None = None
        place = path.resolve()
        for folder in (place, *place.parents):
            if (folder / CONFIG).is_file():
                raise _is_a_store(folder)
        try:
            self._root = Folder.open(path)
        except NotADirectoryError as error:
            raise in_the_way(path, "a folder") from error
        except FileNotFoundError:
            pass

    @property
    def root(self) -> Folder:
        """The open directory.

        Raises:
            FileNotFoundError: There is none yet.
        """
        if self._root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        return self._root

    @property
    def exists(self) -> bool:
        """Whether there is a directory."""
        return self._root is not None

    def create(self) -> None:
        """Make the directory and those above it, unless it exists."""
        if self._root is None:
            missing = takewhile(lambda folder: not folder.exists(), (self.path, *self.path.parents))
            above = [folder.parent for folder in missing]
            self.path.mkdir(parents=True, exist_ok=True)
            self._root = Folder.open(self.path)
            for parent in above:
                with suppress(PermissionError), Folder.open(parent) as folder:
                    folder.sync()

    def look(self, path: str) -> os.stat_result | None:
        """What lies in a file's place: a file, a link or something special; None if nothing.

        Raises:
            InvalidInputError: A folder of the path is a link, not a folder, or a store; or there
                is a folder in the file's place.
        """
        *above, name = path.split("/")
        try:
            self._refuse_stores(above)
            with self.root.below(above) as folder:
                status = folder.status(name)
        except FileNotFoundError:
            return None
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise in_the_way(self.path / path, "a file")
        return status

    def _refuse_stores(self, folders: Sequence[str]) -> None:
        if tuple(folders) in self._checked:
            return
        with closing(self._along(folders)) as way:
            for names, folder in way:
                if names not in self._checked and _has_store(folder):
                    raise _is_a_store(folder.path)
                self._checked.add(names)

    def _along(self, names: Sequence[str]) -> Generator[tuple[tuple[str, ...], Folder]]:
        """The folders on the way to one, the directory aside; each is open until the next one."""
        folder = self.root.below()
        try:
            for n, name in enumerate(names, 1):
                above, folder = folder, folder.enter(name)
                above.close()
                yield tuple(names[:n]), folder
        finally:
            folder.close()

    def others(self, keep: Container[str]) -> dict[str, os.stat_result]:
        """What lies below the directory and is not to be kept, folders aside.

        What a commit leaves out is left out here, too: repositories, caches, stores, drafts.
        """
        found = {}
        pending: list[tuple[str, ...]] = [()] if self.exists else []
        while pending:
            above = pending.pop()
            with suppress(FileNotFoundError, PermissionError), self.root.below(above) as folder:
                if above and _has_store(folder):
                    continue
                for name, status in _entries(folder):
                    path = "/".join((*above, name))
                    if name.startswith(staging.PREFIX) or matches(path, DEFAULT_EXCLUDE):
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        pending.append((*above, name))
                    elif path not in keep:
                        found[path] = status
        return found

    def open(self, path: str) -> int:
        """A descriptor of a regular file, for reading.

        Raises:
            OSError: There is none that can be read.
            InvalidInputError: A link is in the way.
        """
        *above, name = path.split("/")
        # A pipe that takes the file's place meanwhile must not make us wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with self.root.below(above) as folder:
            descriptor = os.open(name, flags, dir_fd=folder.descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "it is not a regular file", path)
        return descriptor

    def check(self, path: str, seen: os.stat_result | None) -> None:
        """Check that a file's place is as it was.

        Args:
            path: The file.
            seen: What `look` or `others` found there.

        Raises:
            ConflictError: Something else lies there now.
        """
        *above, name = path.split("/")
        with suppress(FileNotFoundError), self.root.below(above) as folder:
            self._check(folder, name, seen)

    def _check(self, folder: Folder, name: str, seen: os.stat_result | None) -> None:
        now = None if self._overwrite else folder.status(name)
        if now is not None and (seen is None or not _same(seen, now)):
            raise self.changed(str(folder.path.relative_to(self.path) / name))

    def changed(self, path: str) -> ConflictError:
        """The error for a file that changed after it was looked at."""
        error = ConflictError(
            ErrorCode.UNSAVED_FILES,
            f"{self.path / path} changed during the checkout and was left alone: repeat the "
            "command when its writer is done",
        )
        error.files = (path,)
        return error

    def was_new(self, seen: os.stat_result | None) -> bool:
        """Whether a file was so new when it was looked at that its time may hide a later change."""
        if seen is None or self._overwrite:
            return False
        return self._since - granule(seen.st_mtime_ns) <= seen.st_mtime_ns <= time.time_ns()

    def put(
        self, drafts: staging.Staging, draft: str, path: str, seen: os.stat_result | None
    ) -> None:
        """Rename a draft to a file's place, if that is as it was; see `check`."""
        *above, name = path.split("/")
        with self.root.below(above, create=True) as folder:
            self._check(folder, name, seen)
            os.replace(draft, name, src_dir_fd=drafts.descriptor, dst_dir_fd=folder.descriptor)
        self._touched.add(tuple(above))

    def remove(self, path: str, seen: os.stat_result) -> bool:
        """Remove a file that is as it was, see `check`, and the folders that this leaves empty.

        Returns:
            Whether it was there.
        """
        *above, name = path.split("/")
        try:
            with self.root.below(above) as folder:
                self._check(folder, name, seen)
                os.unlink(name, dir_fd=folder.descriptor)
        except FileNotFoundError:
            return False
        while above and self._remove_folder(above):
            above.pop()
        self._touched.add(tuple(above))
        return True

    def _remove_folder(self, names: Sequence[str]) -> bool:
        """Remove a folder if it is empty."""
        try:
            with self.root.below(names[:-1]) as folder:
                os.rmdir(names[-1], dir_fd=folder.descriptor)
        except OSError as error:
            if error.errno not in _FOLDER_STAYS:
                raise
            return False
        return True

    def sync(self, workers: Workers) -> None:
        """Make what was put and removed since the last time durable."""
        synced: set[tuple[str, ...]] = set()
        for _ in workers.map(partial(self._sync_along, synced), sorted(self._touched)):
            pass
        if self._touched:
            self.root.sync()
        self._touched.clear()

    def _sync_along(self, synced: set[tuple[str, ...]], names: Sequence[str]) -> None:
        """Sync a folder, and those above it that nobody has begun to sync."""
        with suppress(FileNotFoundError), closing(self._along(names)) as way:
            for place, folder in way:
                if place not in synced:
                    synced.add(place)
                    folder.sync()

    def close(self) -> None:
        """Release it."""
        if self._root is not None:
            self._root.close()


class WorktreeFile(SourceFile):
    """A regular file of a directory.

    Args:
        tree: The directory.
        path: Its path there.
        opaque: Take it for plain bytes; otherwise only if it has no valid safetensors header.

    Raises:
        OSError: There is no such file, or it cannot be read.
        InvalidInputError: A link is in the way.
    """

    def __init__(self, tree: Worktree, path: str, *, opaque: bool) -> None:
        self.path = path
        self._tree = tree
        descriptor = tree.open(path)
        try:
            self.size = os.fstat(descriptor).st_size
            if not opaque:
                with suppress(InvalidInputError):
                    self._parse(descriptor)
        finally:
            os.close(descriptor)

    def _parse(self, descriptor: int) -> None:
        first = os.pread(descriptor, GLIMPSE, 0)
        if not safetensors.may_be(first, self.size):
            return
        size = safetensors.header_size(first[: safetensors.LENGTH_SIZE], self.size)
        raw_header = bytearray(size)
        if read_exactly(descriptor, 0, memoryview(raw_header)):
            self.header = safetensors.parse_header(bytes(raw_header), self.size - size)
            self.raw_header = bytes(raw_header)

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        """See `SourceFile.read`.

        Raises:
            OSError: It cannot be read.
            InvalidInputError: It is shorter now, or a link is in the way.
        """
        start = run[0].offset
        buffer = buffers.take(sum(piece.nbytes for piece in run))
        if not self.readinto(start, buffer):
            raise InvalidInputError(ErrorCode.SOURCE_CHANGED, f"{self.path} became shorter")
        return [buffer[p.offset - start : p.offset - start + p.nbytes] for p in run]

    def readinto(self, start: int, out: memoryview) -> bool:
        """Fill `out` from offset `start` on; False if the file ends too early."""
        descriptor = self._tree.open(self.path)
        try:
            return read_exactly(descriptor, start, out)
        finally:
            os.close(descriptor)


def _entries(folder: Folder) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder.descriptor) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # it went meanwhile
                yield entry.name, entry.stat(follow_symlinks=False)


def _has_store(folder: Folder) -> bool:
    status = folder.status(CONFIG)
    return status is not None and not stat.S_ISDIR(status.st_mode)


def _is_a_store(folder: Path) -> InvalidInputError:
    return InvalidInputError(
        ErrorCode.BAD_PATH, f"{folder} is a casweights store: check out elsewhere"
    )


def _same(seen: os.stat_result, now: os.stat_result) -> bool:
    """Whether a file is still the one that was seen, unchanged as far as its times tell."""
    names = ["st_dev", "st_ino", "st_size", "st_mtime_ns"]
    if max(seen.st_nlink, now.st_nlink) == 1:  # links that come and go change this time, too
        names.append("st_ctime_ns")
    return all(getattr(seen, name) == getattr(now, name) for name in names)
