"""A private folder for files in the making, beside the place where they will go.

A file is written here and then renamed (or linked) to its final name, so that nobody ever sees
half of it. What a killed process left behind is swept by the next one: a folder whose lock is free
has no owner any more. Where the file system has no locks, the folder's name says that it has none,
and it is swept once nothing in it has changed for a week.
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
    """A temporary folder inside `parent`; use it as a context manager or `close` it.

    It is locked where the file system has locks.

    Attributes:
        folder: Its path.
        descriptor: The folder itself, open. Who cannot trust the path uses it as ``dir_fd``.
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
        """Whether this very process made it, and not the one that it was forked from."""
        return os.getpid() == self._owner

    def new_name(self) -> str:
        """A name in the folder that nothing has used yet."""
        return str(next(self._numbers))

    def new_path(self) -> Path:
        """The path of a new name."""
        return self.folder / self.new_name()

    def close(self) -> None:
        """Remove the folder and all that is still in it; a forked child leaves it alone."""
        if not self.is_ours:
            return
        _remove(self._parent, self.folder.name)
        os.close(self.descriptor)
        self._parent.close()


def sweep(parent: Path | Folder) -> None:
    """Remove the folders that killed processes left in `parent`."""
    with _opened(parent) as folder:
        for name in os.listdir(folder.descriptor):
            with contextlib.suppress(OSError, InvalidInputError):  # what resists is left alone
                if name.startswith(UNLOCKED):
                    if _is_abandoned(folder, name):
                        _remove(folder, name)
                elif name.startswith(PREFIX):
                    lock = _lock(folder, name)
                    if lock is not None:
                        _remove(folder, name)
                        os.close(lock)


def _is_abandoned(parent: Folder, name: str) -> bool:
    """Whether nothing in a folder has changed for so long that nobody is at work there."""
    with parent.enter(name) as folder, os.scandir(folder.descriptor) as entries:
        times = [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
        times.append(os.fstat(folder.descriptor).st_mtime)
    return time.time() - max(times) > _WEEK


def _make(parent: Folder) -> tuple[Path, int]:
    """A new folder, open and locked, or named as one that has no lock."""
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
        if lock is not None:  # else a sweeper was faster than our lock
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
    """Lock a folder; None if somebody else has it or removes it meanwhile.

    Raises:
        OSError: This file system has no locks, the process no descriptors left, or the name is
            that of something else than a folder.
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
