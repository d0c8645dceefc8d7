"""A temporary folder for unfinished files, in the folder that they are meant for.

A file is written there and then renamed (or linked) to its final name, so that readers never see a
part of it. The next process deletes folders that killed processes left: if a folder's lock is
free, its owner has ended. On a file system without locks, the folder's name says that it has no
lock, and the folder is deleted once nothing in it has changed for a week.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import time
from typing import TYPE_CHECKING

from casweights.errors import InvalidInputError
from casweights.system.closing import Closing
from casweights.system.files import is_refusal
from casweights.system.folders import Folder

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = ".casweights-tmp-"
UNLOCKED = f"{PREFIX}unlocked-"
_WEEK = 7 * 24 * 3600  # seconds


class Staging(Closing):
    """A temporary folder inside `parent`. Use it as a context manager, or `close` it.

    It is locked if the file system has locks.

    Args:
        parent: The folder to create it in. Abandoned temporary folders there are deleted first.

    Attributes:
        folder: Path of the temporary folder.
        descriptor: Descriptor of the folder. Pass it as ``dir_fd`` if its path may change.
    """

    def __init__(self, parent: Path | Folder) -> None:
        sweep(parent)
        self._owner = os.getpid()
        self._numbers = itertools.count()
        self._parent = _opened(parent)
        try:
            self.folder, self.descriptor = _make(self._parent)
        except BaseException:
            self._parent.close()
            raise

    @property
    def is_ours(self) -> bool:
        """Whether this process made the folder, and not a process that it was forked from."""
        return os.getpid() == self._owner

    def new_name(self) -> str:
        """Return a name in the folder that was not returned before."""
        return str(next(self._numbers))

    def new_path(self) -> Path:
        """Return the path of a `new_name`."""
        return self.folder / self.new_name()

    def close(self) -> None:
        """Delete the folder with its content. Does nothing in a forked child."""
        if not self.is_ours:
            return
        _remove(self._parent, self.folder.name)
        os.close(self.descriptor)
        self._parent.close()


def sweep(parent: Path | Folder) -> None:
    """Delete the temporary folders that killed processes left in `parent`."""
    with _opened(parent) as folder:
        for name in os.listdir(folder.descriptor):
            # A folder that cannot be deleted stays.
            with contextlib.suppress(OSError, InvalidInputError):
                if name.startswith(UNLOCKED):
                    if _is_abandoned(folder, name):
                        _remove(folder, name)
                elif name.startswith(PREFIX):
                    lock = _lock(folder, name)
                    if lock is not None:
                        _remove(folder, name)
                        os.close(lock)


def in_use(parent: Path | Folder) -> set[str]:
    """Return the names of the temporary folders in `parent` whose owners may still live."""
    sweep(parent)
    with _opened(parent) as folder:
        return {name for name in os.listdir(folder.descriptor) if name.startswith(PREFIX)}


def _is_abandoned(parent: Folder, name: str) -> bool:
    """Return whether nothing in a folder has changed for a week, so that its owner has ended."""
    with parent.enter(name) as folder, os.scandir(folder.descriptor) as entries:
        times = [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
        times.append(os.fstat(folder.descriptor).st_mtime)
    return time.time() - max(times) > _WEEK


def _make(parent: Folder) -> tuple[Path, int]:
    """Create a folder with a lock, or with a name that says that it has none.

    Returns:
        Its path, and its descriptor, which holds the lock.
    """
    while True:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        os.mkdir(name, dir_fd=parent.descriptor)
        try:
            lock = _lock(parent, name)
        except OSError as error:
            os.rmdir(name, dir_fd=parent.descriptor)
            if error.errno != errno.ENOLCK and not is_refusal(error):
                raise
            return _make_unlocked(parent)
        if lock is not None:  # otherwise a sweep deleted the folder before it was locked
            return parent.path / name, lock


def _make_unlocked(parent: Folder) -> tuple[Path, int]:
    name = f"{UNLOCKED}{secrets.token_hex(8)}"
    os.mkdir(name, dir_fd=parent.descriptor)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    return parent.path / name, os.open(name, flags, dir_fd=parent.descriptor)


def _opened(parent: Path | Folder) -> Folder:
    return parent.below() if isinstance(parent, Folder) else Folder.open(parent)


def _remove(parent: Folder, name: str) -> None:
    shutil.rmtree(name, ignore_errors=True, dir_fd=parent.descriptor)


def _lock(parent: Folder, name: str) -> int | None:
    """Lock a folder, and return its descriptor; None if another process locked or deleted it.

    Raises:
        OSError: The file system has no locks, the process has no descriptors left, or the name is
            not that of a folder.
    """
    try:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent.descriptor
        )
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = parent.status(name)
        if status is not None and os.path.samestat(os.fstat(descriptor), status):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
