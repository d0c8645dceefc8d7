"""The directory of a checkout: its existing files, and changes to it.

No symbolic link inside the directory is ever followed, not even one that another process creates
during the checkout: see `casweights.system.folders`.
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

# Errors of removing a folder that are ignored: it is not empty, is a mount point, or is gone.
_FOLDER_STAYS = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOENT)


class Worktree(Closing):
    """A directory that may not exist yet; use it as a context manager.

    The calls come in this order, from one thread:

    1. `look` at the path of each file, and list all `others`. Keep the statuses that they return.
    2. `create` the directory.
    3. `put` and `remove` files, passing the statuses. Both refuse a file that has changed since.
    4. `sync` makes the changes durable.

    Changes stay if a later step fails. Other threads may `open` files at any time.

    Paths are those of a version: relative, with ``/`` between their parts.

    Args:
        path: The directory. Symbolic links in this path are followed.
        overwrite: Let `put` and `remove` accept files that have changed.

    Attributes:
        path: The directory.

    Raises:
        InvalidInputError: It is a file, or it is a store or inside one.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self._overwrite = overwrite
        self._since = time.time_ns()
        self._checked: set[tuple[str, ...]] = set()  # folders that are not stores
        self._touched: set[tuple[str, ...]] = set()  # folders to sync with all folders above them
        self._root: Folder | None = None
        resolved = path.resolve()
        for folder in (resolved, *resolved.parents):
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
            FileNotFoundError: It does not exist yet.
        """
        if self._root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        return self._root

    @property
    def exists(self) -> bool:
        """Whether the directory exists."""
        return self._root is not None

    def create(self) -> None:
        """Create the directory and its missing parents, unless it exists."""
        if self._root is None:
            missing = takewhile(lambda folder: not folder.exists(), (self.path, *self.path.parents))
            above = [folder.parent for folder in missing]
            self.path.mkdir(parents=True, exist_ok=True)
            self._root = Folder.open(self.path)
            # A new folder survives a crash only once the folder that contains it is synced.
            for parent in above:
                with suppress(PermissionError), Folder.open(parent) as folder:
                    folder.sync()

    def look(self, path: str) -> os.stat_result | None:
        """Return the status of the file, link or special file at a path; None if nothing exists.

        Raises:
            InvalidInputError: A folder of the path is a link, a file or a store; or a folder exists
                at the path itself.
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
        with closing(self._along(folders)) as opened:
            for names, folder in opened:
                if names not in self._checked and _has_store(folder):
                    raise _is_a_store(folder.path)
                self._checked.add(names)

    def _along(self, names: Sequence[str]) -> Generator[tuple[tuple[str, ...], Folder]]:
        """Open the folders from below the directory down to one, and yield each with its names.

        Each folder is open until the next one is requested.
        """
        folder = self.root.below()
        try:
            for n, name in enumerate(names, 1):
                above, folder = folder, folder.enter(name)
                above.close()
                yield tuple(names[:n]), folder
        finally:
            folder.close()

    def others(self, keep: Container[str]) -> dict[str, os.stat_result]:
        """Return the status of every file that is not in `keep`, by path.

        Files that a commit leaves out are left out here, too: those in git repositories, caches,
        stores and folders of drafts.
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
        """Open a regular file for reading, and return its descriptor.

        Raises:
            OSError: There is no such file, or it cannot be read.
            InvalidInputError: A folder of the path is a link.
        """
        *above, name = path.split("/")
        # Without O_NONBLOCK, opening a pipe that replaced the file would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with self.root.below(above) as folder:
            descriptor = os.open(name, flags, dir_fd=folder.descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "it is not a regular file", path)
        return descriptor

    def check(self, path: str, seen: os.stat_result | None) -> None:
        """Check that a file has not changed; one that was removed passes.

        Args:
            path: The file.
            seen: The status that `look` or `others` returned.

        Raises:
            ConflictError: It has changed, or was created.
        """
        *above, name = path.split("/")
        with suppress(FileNotFoundError), self.root.below(above) as folder:
            self._check(folder, name, seen)

    def _check(self, folder: Folder, name: str, seen: os.stat_result | None) -> None:
        now = None if self._overwrite else folder.status(name)
        if now is not None and (seen is None or not _same(seen, now)):
            raise self.changed(str(folder.path.relative_to(self.path) / name))

    def changed(self, path: str) -> ConflictError:
        """Return the error for a file that changed after its status was read."""
        error = ConflictError(
            ErrorCode.UNSAVED_FILES,
            f"{self.path / path} changed during the checkout and was left alone: repeat the "
            "command when its writer has finished",
        )
        error.files = (path,)
        return error

    def was_new(self, seen: os.stat_result | None) -> bool:
        """Whether a file had been written so recently that a change would not show in its time."""
        if seen is None or self._overwrite:
            return False
        return self._since - granule(seen.st_mtime_ns) <= seen.st_mtime_ns <= time.time_ns()

    def put(
        self, drafts: staging.Staging, draft: str, path: str, seen: os.stat_result | None
    ) -> None:
        """Rename a draft to a file's path.

        Args:
            drafts: The folder of the draft.
            draft: The draft's name.
            path: The file's path.
            seen: The status that `look` returned for it.

        Raises:
            ConflictError: The file has changed, or was created.
        """
        *above, name = path.split("/")
        with self.root.below(above, create=True) as folder:
            self._check(folder, name, seen)
            os.replace(draft, name, src_dir_fd=drafts.descriptor, dst_dir_fd=folder.descriptor)
        self._touched.add(tuple(above))

    def remove(self, path: str, seen: os.stat_result) -> bool:
        """Remove a file, and the folders that are empty without it.

        Args:
            path: The file's path.
            seen: The status that `others` returned for it.

        Returns:
            False if another process has removed it already.

        Raises:
            ConflictError: The file has changed.
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
        """Remove a folder if it is empty; return whether it was removed."""
        try:
            with self.root.below(names[:-1]) as folder:
                os.rmdir(names[-1], dir_fd=folder.descriptor)
        except OSError as error:
            if error.errno not in _FOLDER_STAYS:
                raise
            return False
        return True

    def sync(self, workers: Workers) -> None:
        """Make all changes since the last call durable."""
        synced: set[tuple[str, ...]] = set()
        for _ in workers.map(partial(self._sync_along, synced), sorted(self._touched)):
            pass
        if self._touched:
            self.root.sync()
        self._touched.clear()

    def _sync_along(self, synced: set[tuple[str, ...]], names: Sequence[str]) -> None:
        """Sync a folder and its parents, except those that another worker syncs or has synced."""
        with suppress(FileNotFoundError), closing(self._along(names)) as opened:
            for path, folder in opened:
                if path not in synced:
                    synced.add(path)
                    folder.sync()

    def close(self) -> None:
        """Close the directory's descriptor."""
        if self._root is not None:
            self._root.close()


class WorktreeFile(SourceFile):
    """A regular file of a directory that a checkout writes to.

    Args:
        tree: The directory.
        path: The file's path in it.
        opaque: Treat it as plain bytes; otherwise only if it has no valid safetensors header.

    Raises:
        OSError: There is no such file, or it cannot be read.
        InvalidInputError: A folder of the path is a link.
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
        """Return the bytes of neighbouring pieces.

        Raises:
            OSError: The file cannot be read.
            InvalidInputError: The file is shorter now, or a folder of the path is a link.
        """
        start = run[0].offset
        buffer = buffers.take(sum(piece.nbytes for piece in run))
        if not self.readinto(start, buffer):
            raise InvalidInputError(ErrorCode.SOURCE_CHANGED, f"{self.path} became shorter")
        return [buffer[p.offset - start : p.offset - start + p.nbytes] for p in run]

    def readinto(self, start: int, out: memoryview) -> bool:
        """Fill `out` from offset `start` in bytes; return False if the file ends too early."""
        descriptor = self._tree.open(self.path)
        try:
            return read_exactly(descriptor, start, out)
        finally:
            os.close(descriptor)


def _entries(folder: Folder) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder.descriptor) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # it was removed since it was listed
                yield entry.name, entry.stat(follow_symlinks=False)


def _has_store(folder: Folder) -> bool:
    status = folder.status(CONFIG)
    return status is not None and not stat.S_ISDIR(status.st_mode)


def _is_a_store(folder: Path) -> InvalidInputError:
    return InvalidInputError(
        ErrorCode.BAD_PATH, f"{folder} is a casweights store: check out elsewhere"
    )


def _same(seen: os.stat_result, now: os.stat_result) -> bool:
    """Whether two statuses show the same file, unchanged; a very recent change may not show."""
    names = ["st_dev", "st_ino", "st_size", "st_mtime_ns"]
    # Adding or removing a hard link changes ctime without a change of the content.
    if max(seen.st_nlink, now.st_nlink) == 1:
        names.append("st_ctime_ns")
    return all(getattr(seen, name) == getattr(now, name) for name in names)
