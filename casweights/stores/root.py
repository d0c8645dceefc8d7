"""The folder that a store in a directory lives in, held open.

A path may lead elsewhere later: a mount is dropped and leaves an empty folder, a job cleans up,
another store is moved to its place. Everything here is relative to the folder that was opened, and
`Root.check` tells whether the path still leads to it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
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
    from casweights.system.staging import Staging

_HOLD = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY  # needs no permission to list it
SHARED = stat.S_IRWXG | stat.S_ISGID  # of folders; what is made in them gets their group
MAX_CLAIM = 1 << 16  # bytes: a file that is claimed is read whole to be compared
_HELD = 8  # folders: those of packs, snapshots and findings, and of some branches
_ATTEMPTS = 100  # each fails only if another writer removes a folder in that very moment
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


class _HeldFolders:
    """The folders used last whose names are durable, held open.

    An open folder keeps its number, so one that was removed and made again is not taken for it.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._descriptors: dict[str, int] = {}  # the one used last is the last one
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._descriptors)

    def has(self, folder: str) -> bool:
        """Whether the folder of this name is one that is held."""
        with self._lock:
            descriptor = self._descriptors.pop(folder, None)
            if descriptor is None:
                return False
            self._descriptors[folder] = descriptor
            try:
                there = os.stat(folder, dir_fd=self._root)
            except OSError:
                return False
            return os.path.samestat(there, os.fstat(descriptor))

    def add(self, folder: str, descriptor: int) -> None:
        """Hold a folder, and let go of the one that was used least recently."""
        with self._lock:
            gone = [self._descriptors.pop(folder, None)]
            self._descriptors[folder] = descriptor
            if len(self._descriptors) > _HELD:
                gone.append(self._descriptors.pop(next(iter(self._descriptors))))
        for old in gone:
            if old is not None:
                os.close(old)


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


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
        self._held = _HeldFolders(self.descriptor)

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
            return os.read(descriptor, MAX_CLAIM)
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

    def sync_below(self, folder: str) -> None:
        """Make the names in a folder durable, and its own name, and those of the folders above it.

        What is gone by now had lost its last object.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            if not folder or self._held.has(folder):
                return self.sync(folder)
            descriptor = os.open(folder, _HOLD, dir_fd=self.descriptor)
            try:
                self.sync(folder)
                self._sync_above(folder)
                self._held.add(folder, os.dup(descriptor))
            finally:
                os.close(descriptor)
        return None

    def _sync_above(self, folder: str) -> None:
        for path in ["", *_and_above(folder)][:-1]:
            with suppress(FileNotFoundError, PermissionError):  # others made it, and long ago
                self.sync(path)

    def make_folders(self, folder: str) -> None:
        """Make a folder and those above it, unless they are there.

        They come and go with their objects, see `remove_empty`. `sync_below` makes their names
        durable.

        Raises:
            NotFoundError: See `check`.
            FileExistsError: A folder with objects has a name that differs in case alone, and the
                disk ignores case.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self._make_folders(folder)
            except FileNotFoundError:  # another writer has removed a folder that was empty
                if attempt == _ATTEMPTS - 1:
                    raise
        return None

    def _make_folders(self, folder: str) -> None:
        if self._held.has(folder):
            return
        if folder and not self.has(folder):
            self.check()  # a part of the store that is gone must not be made again
        for path in _and_above(folder):
            self._make_folder(path)
            self._share(path)
        self.notice(folder)

    def _make_folder(self, folder: str) -> None:
        """Make a folder of exactly this name, unless it is there."""
        try:
            os.mkdir(folder, dir_fd=self.descriptor)
        except FileExistsError:
            if not self._is_spelled_so(folder):
                self._remove_leftover(folder)
                os.mkdir(folder, dir_fd=self.descriptor)

    def _is_spelled_so(self, name: str) -> bool:
        """Whether the name is listed; a disk that ignores case also finds it in another case."""
        above, _, last = name.rpartition("/")
        try:
            descriptor = os.open(above or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.descriptor)
        except PermissionError:
            return True  # nobody can tell
        try:
            return last in os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def _remove_leftover(self, folder: str) -> None:
        """Remove a folder that holds no object.

        Raises:
            FileExistsError: It holds one.
        """
        for _, folders, _, parent in os.fwalk(folder, topdown=False, dir_fd=self.descriptor):
            for name in folders:
                with suppress(OSError):
                    os.rmdir(name, dir_fd=parent)
        try:
            os.rmdir(folder, dir_fd=self.descriptor)
        except FileNotFoundError:
            raise
        except OSError:
            raise FileExistsError(
                errno.EEXIST,
                f"this disk ignores case and has a folder that differs from {folder} in case alone",
            ) from None

    def remove_empty(self, folder: str) -> None:
        """Remove a folder and those above it that hold nothing any more.

        The highest one stays, since open stores take its absence for damage, see `check`. Who is
        about to put an object into one of the others makes it again.
        """
        for path in reversed([*_and_above(folder)][1:]):
            try:
                os.rmdir(path, dir_fd=self.descriptor)
            except FileNotFoundError:
                continue
            except OSError:  # it is not empty, or others may not remove it
                return

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

        Raises:
            NotFoundError: See `check`.
            FileNotFoundError: The draft is gone.
        """
        for _ in range(_ATTEMPTS):
            self.check()  # as late as possible, before anybody can see the object
            try:
                if call is None and self.has(name):
                    return False
                (call or replace)(str(draft), name, self.descriptor)
            except FileExistsError:
                return False
            except FileNotFoundError:
                if not draft.exists():
                    raise
                self.make_folders(name.rpartition("/")[0])
            else:
                return True
        raise FileNotFoundError(errno.ENOENT, "other writers keep removing its folder", name)

    def claim(self, draft: Path, name: str, drafts: Staging) -> bool:
        """Give a small file the name of an object that is never deleted, where no call can.

        A folder that is not empty cannot be replaced, so a folder with the finished object in it
        is the claim. Until the object has its name there is one claim, and whoever finds it
        finishes the work of its writer, who may be dead. docs/design/022 has the reasoning.

        Returns:
            Whether it is this file that has the name, or one with the same content.
        """
        mine, claim = drafts.new_path(), f".casweights-claim-{name}"
        content = draft.read_bytes()
        mine.mkdir()
        draft.rename(mine / "object")
        try:
            os.rename(mine, claim, dst_dir_fd=self.descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # it cannot rename folders
                (mine / "object").rename(draft)
                return self.give_name(draft, name, None)
        with suppress(FileNotFoundError):  # it was finished and removed
            self._finish(claim, name, drafts.new_path())
        with suppress(OSError):  # all that come later find the object
            os.rename(claim, drafts.new_path(), src_dir_fd=self.descriptor)
        return self._content(name) == content

    def _finish(self, claim: str, name: str, draft: Path) -> None:
        content = self._content(f"{claim}/object")
        if self.has(name):  # then a late writer made this claim
            return
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.check()
        replace(str(draft), name, self.descriptor)
        self.sync("")

    def unlink(self, name: str) -> None:
        """Remove a file, unless it is gone."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)


def _and_above(folder: str) -> Iterator[str]:
    """A folder and those above it, the highest first."""
    parts = folder.split("/") if folder else []
    for n in range(len(parts)):
        yield "/".join(parts[: n + 1])
