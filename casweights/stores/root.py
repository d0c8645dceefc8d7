"""The root folder of a store in a directory, held open.

Its path may lead elsewhere later: a mount is dropped and leaves an empty folder, a job cleans up,
or another store is moved there. So all calls are relative to the open folder, and `Root.check`
verifies that the path still leads to it.
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

_HOLD = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY  # O_PATH needs no read permission
SHARED = stat.S_IRWXG | stat.S_ISGID  # mode of shared folders; new files inherit their group
MAX_CLAIM = 1 << 16  # bytes; a claimed file is read as a whole to compare it
_MAX_HELD = 8  # folders: those of packs, snapshots and findings, and of some branches
_ATTEMPTS = 100  # each fails only if another writer removes a folder at that moment
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class _Marker(NamedTuple):
    """The object that identifies this store.

    Attributes:
        name: Name of the object.
        status: Fields of its `os.stat` result that change if the file is replaced.
        content: Its bytes. A replaced file with the same bytes still identifies the store.
    """

    name: str
    status: tuple[int, ...]
    content: bytes


class _HeldFolders:
    """The most recently used folders whose names are durable, held open.

    An open folder keeps its inode number, so a folder that was removed and made again has another
    one and is not mistaken for it.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._descriptors: dict[str, int] = {}  # the least recently used first
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._descriptors)

    def has(self, folder: str) -> bool:
        """Return whether the folder at this name is the one held open."""
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
        """Hold an open folder, and close the least recently used one if there are too many."""
        with self._lock:
            gone = [self._descriptors.pop(folder, None)]
            self._descriptors[folder] = descriptor
            if len(self._descriptors) > _MAX_HELD:
                gone.append(self._descriptors.pop(next(iter(self._descriptors))))
        for old in gone:
            if old is not None:
                os.close(old)


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


class Root:
    """The open root folder. Names in its methods are those of objects or of folders below it.

    An object is written in this order: `make_folders`, `give_name` (or `claim`), `sync_below`.
    Only the last call makes its name durable. `give_name` and `claim` call `check` as late as
    possible, and raise its `NotFoundError` if the store is gone.

    Args:
        path: Path of the folder.

    Raises:
        NotFoundError: The folder does not exist.
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
        """Whether `mark` has named the object that identifies this store."""
        return self._marker is not None

    @property
    def is_shared(self) -> bool:
        """Whether a group may write to the folder: it has all mode bits of `SHARED`."""
        return os.fstat(self.descriptor).st_mode & SHARED == SHARED

    def mark(self, name: str) -> None:
        """Identify this store by an object; from now on, `check` requires that object."""
        self._marker = _Marker(name, self._status(name), self._content(name))

    def notice(self, folder: str) -> None:
        """Remember that a folder has objects; from now on, `check` requires its top folder."""
        if folder:
            self._seen.add(folder.partition("/")[0])

    def check(self) -> None:
        """Make sure that the path still leads to this store, and that the store is complete.

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
                "more is written to it. Restore it (is a file system not mounted?), open it again, "
                "and repeat the command",
            )

    def _what_is_wrong(self) -> str | None:
        """Describe why the path no longer leads to this store; None if it does."""
        if not os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
            return "another folder is at its path"
        for name in (*([self._marker.name] if self._marker else ()), *self._seen):
            if not self.has(name):
                return f"{name} is missing"
        if self._marker is not None and self._status(self._marker.name) != self._marker.status:
            if self._content(self._marker.name) != self._marker.content:
                return f"{self._marker.name} belongs to another store"
            self.mark(self._marker.name)
        return None

    def _status(self, name: str) -> tuple[int, ...]:
        """Return the fields of a file's status that change if the file is replaced."""
        found = os.stat(name, dir_fd=self.descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a file", name)
        return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size

    def _content(self, name: str) -> bytes:
        """Return the first `MAX_CLAIM` bytes of a file."""
        descriptor = os.open(name, os.O_RDONLY, dir_fd=self.descriptor)
        try:
            return os.read(descriptor, MAX_CLAIM)
        finally:
            os.close(descriptor)

    def has(self, name: str) -> bool:
        """Return whether anything has this name."""
        try:
            os.stat(name, dir_fd=self.descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def sync(self, folder: str) -> None:
        """Make the names in a folder durable, if the file system can do that."""
        fsync_folder(folder or ".", self.descriptor)

    def sync_below(self, folder: str) -> None:
        """Make the names in a folder durable, its own name, and those of the folders above it.

        A folder that does not exist is skipped: it was removed after its last object.
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
        """Make the names of a folder and of those above it durable."""
        for path in ["", *_and_above(folder)][:-1]:
            # A folder that this user may not open was synced by its maker; a missing one is empty.
            with suppress(FileNotFoundError, PermissionError):
                self.sync(path)

    def make_folders(self, folder: str) -> None:
        """Create a folder and those above it, unless they exist.

        `sync_below` makes their names durable; `remove_empty` removes them after their last object.

        Raises:
            NotFoundError: The store is gone, as `check` reports.
            FileExistsError: The disk ignores case, and another folder with objects has a name that
                differs only in case.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self._make_folders(folder)
            except FileNotFoundError:  # another writer removed a folder while it was empty
                if attempt == _ATTEMPTS - 1:
                    raise
        return None

    def _make_folders(self, folder: str) -> None:
        if self._held.has(folder):
            return
        if folder and not self.has(folder):
            self.check()  # a missing part of the store must not be created again
        for path in _and_above(folder):
            self._make_folder(path)
            self._share(path)
        self.notice(folder)

    def _make_folder(self, folder: str) -> None:
        """Create a folder of exactly this name, unless it exists."""
        try:
            os.mkdir(folder, dir_fd=self.descriptor)
        except FileExistsError:
            if not self._is_spelled_so(folder):
                self._remove_leftover(folder)
                os.mkdir(folder, dir_fd=self.descriptor)

    def _is_spelled_so(self, name: str) -> bool:
        """Return whether a listing shows exactly this name.

        A disk that ignores case also opens a name that is spelled in another case.
        """
        above, _, last = name.rpartition("/")
        try:
            descriptor = os.open(above or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.descriptor)
        except PermissionError:
            return True  # unknown: the folder cannot be listed
        try:
            return last in os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def _remove_leftover(self, folder: str) -> None:
        """Remove a folder that contains no object.

        Raises:
            FileExistsError: The folder contains an object.
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
                f"this disk ignores case and has a folder that differs from {folder} only in case",
            ) from None

    def remove_empty(self, folder: str) -> None:
        """Remove a folder and those above it if they are empty, except the topmost one.

        Open stores treat a missing topmost folder as damage (`check`). A writer that is about to
        put an object into one of the others creates it again.
        """
        for path in reversed([*_and_above(folder)][1:]):
            try:
                os.rmdir(path, dir_fd=self.descriptor)
            except FileNotFoundError:
                continue
            except OSError:  # it is not empty, or others may not remove it
                return

    def _share(self, folder: str) -> None:
        """Let the group write to a folder of a shared store, if this user owns the folder."""
        if self.is_shared:
            with suppress(PermissionError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.descriptor)
                try:
                    allow_group(descriptor, SHARED)
                finally:
                    os.close(descriptor)

    def give_name(self, draft: Path, name: str, call: Call | None) -> bool:
        """Give a file its name, and return True; False if the name is taken.

        Args:
            draft: The file.
            name: The object's name.
            call: A function that fails if the name is taken. If None, two writers at the same
                moment may both get True, and the later file replaces the earlier one.

        Raises:
            NotFoundError: The store is gone, as `check` reports.
            FileNotFoundError: The draft does not exist.
        """
        for _ in range(_ATTEMPTS):
            self.check()  # as late as possible before the object becomes visible
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
        """Give a small file its name exclusively, on a file system without an exclusive call.

        A folder that is not empty cannot be replaced by a rename, so a folder that contains the
        finished object serves as the claim. At most one claim exists until the object has its name.
        Any writer that finds a claim finishes it, because the claim's writer may be dead. This is
        only correct for objects that are never deleted; docs/design/022 explains why.

        Args:
            draft: The file, at most `MAX_CLAIM` bytes.
            name: The object's name.
            drafts: A folder for drafts on the same file system.

        Returns:
            Whether the object of this name has the content of `draft`.
        """
        mine, claim = drafts.new_path(), f".casweights-claim-{name}"
        content = draft.read_bytes()
        mine.mkdir()
        draft.rename(mine / "object")
        try:
            os.rename(mine, claim, dst_dir_fd=self.descriptor)
        except OSError as error:
            # Any other error: this file system cannot rename folders.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                (mine / "object").rename(draft)
                return self.give_name(draft, name, None)
        with suppress(FileNotFoundError):  # another writer finished and removed the claim
            self._finish(claim, name, drafts.new_path())
        with suppress(OSError):  # later writers find the object and need no claim
            os.rename(claim, drafts.new_path(), src_dir_fd=self.descriptor)
        return self._content(name) == content

    def _finish(self, claim: str, name: str, draft: Path) -> None:
        """Copy the object in a claim to its name, unless the name is taken."""
        content = self._content(f"{claim}/object")
        if self.has(name):  # the object was named before this claim was made
            return
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.check()
        replace(str(draft), name, self.descriptor)
        self.sync("")

    def link(self, old: str, new: str) -> bool:
        """Give a file a second name, and the present time.

        Returns:
            False if the file system or the file's owner does not allow it, or the new name is
            taken, or there is no such file; then nothing has changed.
        """
        try:
            os.link(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except OSError:
            return False
        try:
            os.utime(new, dir_fd=self.descriptor)
        except OSError:
            os.unlink(new, dir_fd=self.descriptor)
            return False
        return True

    def unlink(self, name: str) -> None:
        """Delete a file, if it exists."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)


def _and_above(folder: str) -> Iterator[str]:
    """Yield a folder and those above it, the topmost first."""
    parts = folder.split("/") if folder else []
    for n in range(len(parts)):
        yield "/".join(parts[: n + 1])
