"""A private folder for files in the making, beside the place where they will go.

A file is written here and then renamed (or linked) to its final name, so that nobody ever sees
half of it. What a killed process left behind is swept by the next one: a folder whose lock is free
has no owner any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PREFIX = ".casweights-tmp-"


class Staging:
    """A locked temporary folder inside `parent`; use it as a context manager or `close` it."""

    def __init__(self, parent: Path) -> None:
        sweep(parent)
        self._owner = os.getpid()
        self._numbers = itertools.count()
        while True:
            self.folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
            self.folder.mkdir()
            lock = _lock(self.folder)
            if lock is not None:  # else a sweeper was faster than our lock
                self._lock = lock
                return

    @property
    def is_ours(self) -> bool:
        """Whether this very process made it, and not the one that it was forked from."""
        return os.getpid() == self._owner

    def new_path(self) -> Path:
        """A path in the folder that nothing has used yet."""
        return self.folder / str(next(self._numbers))

    def close(self) -> None:
        """Remove the folder and all that is still in it; a forked child leaves it alone."""
        if not self.is_ours:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def sweep(parent: Path) -> None:
    """Remove the folders that killed processes left in `parent`."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # what cannot be locked is left alone
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; None if somebody else has it or removes it meanwhile.

    Raises:
        OSError: This file system has no locks, or the process no descriptors left.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
