"""Folders held open, so that no symbolic link can lead out of them.

The system resolves a path again at every use, and between two uses another process can replace a
folder by a link. An open folder stays the same folder. Paths below it are resolved one name at a
time, and no step follows a symbolic link.
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
_NOT_A_FOLDER = (errno.ENOTDIR, errno.ELOOP, errno.EMLINK)  # systems differ in the error of links


class Folder(Closing):
    """An open folder. Use it as a context manager, or `close` it.

    Attributes:
        path: Path at which the folder was opened, for messages.
        descriptor: Descriptor of the folder. Pass it to calls of `os` as ``dir_fd``, together with
            a single name.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder. Links in `path` are followed, because the caller chose the path."""
        return cls(path, os.open(path, _FLAGS))

    def below(self, names: Iterable[str] = (), *, create: bool = False) -> Folder:
        """Open a folder below this one, or this one again. Opens at most two at the same time.

        Args:
            names: The names on the path from this folder to the other, in order.
            create: Create missing folders.

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
        """Open a folder directly in this one.

        Raises:
            FileNotFoundError: The folder does not exist.
            InvalidInputError: The name is that of a link, or of something else than a folder.
        """
        try:
            descriptor = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in _NOT_A_FOLDER:
                raise in_the_way(self.path / name, "a folder") from error
            raise
        return Folder(self.path / name, descriptor)

    def make(self, name: str) -> None:
        """Create a folder in this one, unless the name is taken."""
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=self.descriptor)

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of a name in this folder, without following a link; None if free."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def sync(self) -> None:
        """Make the names in this folder durable, if the file system can do that."""
        sync_names(self.descriptor)

    def close(self) -> None:
        """Close the folder's descriptor."""
        os.close(self.descriptor)


def in_the_way(path: Path, wanted: str) -> InvalidInputError:
    """Return the error for a path at which something else than `wanted` exists."""
    return InvalidInputError(
        ErrorCode.BAD_PATH,
        f"{path} is in the way of {wanted}: move it, or check out to another directory",
    )
