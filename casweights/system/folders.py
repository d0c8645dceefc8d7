"""Folders held open: what is reached through one lies below it, whatever links appear meanwhile.

The system follows a path anew at every use, and between two uses another process can put a link in
place of a folder. An open folder stays the same folder. Names below it are followed one by one, and
none of these steps follows a symbolic link.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from casweights.errors import ErrorCode, InvalidInputError
from casweights.system.closing import Closing
from casweights.system.files import sync_names

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY
_NOT_A_FOLDER = (errno.ENOTDIR, errno.ELOOP, errno.EMLINK)  # systems differ in what a link gives


class Folder(Closing):
    """A folder held open; use it as a context manager or `close` it.

    Attributes:
        path: Where it was found, for messages.
        descriptor: What calls of `os` take as ``dir_fd``, together with a single name.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder. Links on the way to it are followed: they are the caller's choice."""
        return cls(path, os.open(path, _FLAGS))

    def below(self, names: Iterable[str] = (), *, create: bool = False) -> Folder:
        """Open a folder below this one, or this one again. At most two are open on the way.

        Args:
            names: The way to it, a name for each step.
            create: Make the folders that are missing.

        Raises:
            FileNotFoundError: A folder is missing.
            InvalidInputError: A link, or something else that is not a folder, is in the way.
        """
        folder = Folder(self.path, os.open(".", _FLAGS, dir_fd=self.descriptor))
        for name in names:
            with folder as above:
                if create and above.status(name) is None:
                    above.make(name)
                folder = above.enter(name)
        return folder

    def enter(self, name: str) -> Folder:
        """Open one of its folders.

        Raises:
            FileNotFoundError: It is not there.
            InvalidInputError: It is a link or not a folder.
        """
        try:
            descriptor = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in _NOT_A_FOLDER:
                raise in_the_way(self.path / name, "a folder") from error
            raise
        return Folder(self.path / name, descriptor)

    def make(self, name: str) -> None:
        """Make a folder in it, unless something of that name is there."""
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=self.descriptor)

    def status(self, name: str) -> os.stat_result | None:
        """What lies in it under this name, a link itself and not its target; None if nothing."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def sync(self) -> None:
        """Make its names durable, where the file system can do that for a folder."""
        sync_names(self.descriptor)

    def close(self) -> None:
        """Release it."""
        os.close(self.descriptor)


def in_the_way(path: Path, wanted: str) -> InvalidInputError:
    """The error for a path that is taken by something else than what must be there."""
    return InvalidInputError(
        ErrorCode.BAD_PATH,
        f"{path} is in the way: {wanted} must be there. Move it, or check out elsewhere",
    )
