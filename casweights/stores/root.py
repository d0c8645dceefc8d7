"""The folder that a store in a directory lives in, held open.

A path may lead elsewhere later: a mount is dropped and leaves an empty folder, a job cleans up,
another store is moved to its place. Everything here is relative to the folder that was opened, and
`Root.check` tells whether the path still leads to it.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.errors import ErrorCode, NotFoundError
from casweights.stores.naming import replace
from casweights.system.files import allow_group, fsync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights.stores.naming import Call

_HOLD = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY  # needs no permission to list it
SHARED = stat.S_IRWXG | stat.S_ISGID  # of folders; what is made in them gets their group
_MAX_MARKER = 1 << 16  # bytes of it that are compared
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class _Marker(NamedTuple):
    """An object that tells this store from others.

    Attributes:
        name: Its name.
        status: What `os.stat` said of it; changes if it is replaced.
        content: Its bytes; where they are the same, it is the same marker all the same.
    """

    name: str
    status: tuple[int, ...]
    content: bytes


class Root:
    """A folder that is open; names are those of objects, or of folders below it.

    Args:
        path: Where it is.

    Raises:
        NotFoundError: There is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, _HOLD)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                ErrorCode.STORE_NOT_FOUND,
                f"there is no casweights store at {path}: make one with `casweights init` or "
                "`casweights.open(url, create=True)`",
            ) from None
        weakref.finalize(self, os.close, self.descriptor)
        self._marker: _Marker | None = None
        self._seen: set[str] = set()
        self._durable: set[str] = set()

    @property
    def is_marked(self) -> bool:
        """Whether an object was named that tells this store from others."""
        return self._marker is not None

    @property
    def is_shared(self) -> bool:
        """Whether the folder is one that a group writes to: it has the modes of `SHARED`."""
        return os.fstat(self.descriptor).st_mode & SHARED == SHARED

    def mark(self, name: str) -> None:
        """Take an object as what tells this store from others; from now on it must stay."""
        self._marker = _Marker(name, self._status(name), self._content(name))

    def notice(self, folder: str) -> None:
        """Remember that a folder has objects: if it goes, the store is damaged."""
        if folder:
            self._seen.add(folder.partition("/")[0])

    def check(self) -> None:
        """Make sure that the store is still what it was.

        Raises:
            NotFoundError: The path leads elsewhere, or a part of the store is gone.
        """
        try:
            what = self._what_is_wrong()
        except OSError as error:
            if error.errno not in _GONE:
                raise
            what = "its folder is gone"
        if what is not None:
            raise NotFoundError(
                ErrorCode.STORE_NOT_FOUND,
                f"the store at {self.path} has disappeared since it was opened: {what}. Nothing "
                "more is written to it. Bring it back (is a file system not mounted?), open it "
                "again and repeat the command",
            )

    def _what_is_wrong(self) -> str | None:
        if not os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
            return "another folder has taken its place"
        for name in (*([self._marker.name] if self._marker else ()), *self._seen):
            if not self.has(name):
                return f"it has no {name} any more"
        if self._marker is not None and self._status(self._marker.name) != self._marker.status:
            if self._content(self._marker.name) != self._marker.content:
                return f"{self._marker.name} is that of another store"
            self.mark(self._marker.name)
        return None

    def _status(self, name: str) -> tuple[int, ...]:
        found = os.stat(name, dir_fd=self.descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a file", name)
        return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size

    def _content(self, name: str) -> bytes:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=self.descriptor)
        try:
            return os.read(descriptor, _MAX_MARKER)
        finally:
            os.close(descriptor)

    def has(self, name: str) -> bool:
        """Whether there is something of this name."""
        try:
            os.stat(name, dir_fd=self.descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def sync(self, folder: str) -> None:
        """Make the names in a folder durable, where the file system can do that."""
        fsync_folder(folder or ".", self.descriptor)

    def make_folders(self, folder: str) -> None:
        """Make a folder and those above it, unless they are there, and make their names durable.

        Other writers may have made them a moment ago and not have made them durable yet.

        Raises:
            NotFoundError: See `check`.
        """
        if folder in self._durable and self.has(folder):
            return
        self.check()  # a part of the store that is gone must not be made again
        if folder in self._durable:  # somebody removed it, and maybe those above
            self._durable.clear()
        for path in _and_above(folder):
            above = path.rpartition("/")[0]
            try:
                os.mkdir(path, dir_fd=self.descriptor)
            except FileExistsError:
                if path not in self._durable:
                    with suppress(PermissionError):  # then others made it, and not just now
                        self.sync(above)
            else:
                self.sync(above)
            self._share(path)
            self._durable.add(path)
        self.notice(folder)

    def _share(self, folder: str) -> None:
        """Let the group write to a folder of a shared store. Other users share theirs."""
        if self.is_shared:
            with suppress(PermissionError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.descriptor)
                try:
                    allow_group(descriptor, SHARED)
                finally:
                    os.close(descriptor)

    def give_name(self, draft: Path, name: str, call: Call | None) -> bool:
        """Give a file its name; False if another one has it.

        Args:
            draft: The file.
            name: The name.
            call: A call that fails if the name is taken. Without one, another writer that comes
                in the same moment may be told the same, and the later file stays.
        """
        try:
            if call is None and self.has(name):
                return False
            (call or replace)(str(draft), name, self.descriptor)
        except FileExistsError:
            return False
        return True

    def unlink(self, name: str) -> None:
        """Remove a file, unless it is gone."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)


def _and_above(folder: str) -> Iterator[str]:
    """A folder and those above it, the highest first."""
    parts = folder.split("/") if folder else []
    for n in range(len(parts)):
        yield "/".join(parts[: n + 1])
