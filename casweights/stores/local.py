"""A store in a directory."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from casweights.errors import NotFoundError
from casweights.stores.base import (
    NO_NAMES,
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    missing,
    truncated,
)
from casweights.stores.naming import exclusive_call
from casweights.stores.root import MAX_CLAIM, SHARED, Root
from casweights.stores.walk import Stray, walk, walk_names
from casweights.system.files import (
    allow_group,
    fsync_folder,
    read_bytes,
    read_exactly,
    storage_errors,
    write_fully,
)
from casweights.system.staging import Staging, in_use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from casweights.stores.naming import Call
    from casweights.system.buffers import Buffer

_ATTEMPTS = 3  # writes of one draft, since clean-up jobs may delete the temporary folder
# Errors of names that are not regular files; opening a socket fails with ENXIO.
_NO_OBJECT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}


class LocalStore(ObjectStore):
    """Objects as files below a root directory. Many processes on one machine may write to it.

    A folder is removed with its last object, except for folders directly in the root.

    Only `create` makes the root. After `require`, every write goes to the folder that was opened,
    or fails if the path leads elsewhere by then.

    Args:
        root: Path of the directory, which need not exist before `create`.
    """

    def __init__(self, root: Path) -> None:
        self.capabilities = Capabilities(exclusive_create=True)  # until `probe` knows better
        self.root = root
        self._exclusive_call: Call | None = None
        self._opened: Root | None = None
        self._staging: Staging | None = None
        self._close_staging: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Path of the directory."""
        return str(self.root)

    def create(self) -> None:
        """Create the directory, unless it exists."""
        with storage_errors(f"cannot make {self.root}"):
            _make_durable_folder(self.root.absolute())

    def share(self) -> None:
        """Create the directory, and let all users of its group write to it."""
        self.create()
        with storage_errors(f"cannot give {self.root} to its group"):
            os.chmod(self.root, stat.S_IMODE(self.root.stat().st_mode) | SHARED)

    def require(self, name: str) -> None:
        with self._reading(name):
            self._open().mark(name)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        folder = check_name(name).rpartition("/")[0]
        with storage_errors(f"cannot write {name}"):
            root = self._open()
            root.make_folders(folder)
            created = not root.has(name) and self._create(root, name, parts)
            if not created:
                root.check()
                _check_is_file(self._path(name))
            # For an existing object, too: its writer may not have synced the folder yet.
            root.sync_below(folder)
        return created

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        """Copy objects. Within this directory, a copy is another link to the same file."""
        if source is not self:
            super().copy_from(source, names, called)
            return
        for name in names:
            if not self._link(called.get(name, name), name):
                super().copy_from(source, [name], called)

    def _link(self, old: str, new: str) -> bool:
        """Give an object a second name, and the present time; return False if that fails."""
        folder = check_name(new).rpartition("/")[0]
        with storage_errors(f"cannot write {new}"):
            root = self._open()
            root.make_folders(folder)
            root.check()
            if not root.link(check_name(old), new):
                return False
            root.sync_below(folder)
        return True

    def _create(self, root: Root, name: str, parts: Sequence[Buffer]) -> bool:
        """Write an object, and return True; False if another writer created it first."""
        for attempt in range(_ATTEMPTS):
            try:
                drafts = self._staged(root)
                draft = drafts.new_path()
                try:
                    _write_durably(draft, parts, shared=root.is_shared)
                    if self._exclusive_call is None and _can_be_claimed(name, parts):
                        return root.claim(draft, name, drafts)
                    return root.give_name(draft, name, self._exclusive_call)
                finally:
                    with suppress(OSError):  # the next sweep of the folder deletes it
                        draft.unlink(missing_ok=True)
            except FileNotFoundError:  # a clean-up job has deleted the draft
                if attempt == _ATTEMPTS - 1:
                    raise
            except NotADirectoryError:
                root.check()
                raise
        raise AssertionError("the last attempt returns or raises")

    def probe(self) -> Capabilities:
        with suppress(OSError, NotFoundError):
            self._staged(self._open())
        return self.capabilities

    def size(self, name: str) -> int:
        with self._reading(name):
            status = os.stat(self._path(name))
        if not stat.S_ISREG(status.st_mode):
            raise missing(name)
        return status.st_size

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        with self._opened_object(name) as (descriptor, _):
            if not read_exactly(descriptor, start, out):
                raise truncated(name)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with self._opened_object(name) as (descriptor, whole):
            wanted = whole - start if size is None else size
            # No memory is allocated for bytes that are not there.
            data = read_bytes(descriptor, start, wanted) if start + wanted <= whole else None
        if data is None:
            raise truncated(name)
        return data

    @contextmanager
    def _opened_object(self, name: str) -> Iterator[tuple[int, int]]:
        """Open an object for reading; provide its descriptor and its size."""
        with self._reading(name):
            # Opening a named pipe would block until a writer opens it.
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise missing(name)
                yield descriptor, status.st_size
            finally:
                os.close(descriptor)
        self._notice(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = [item for item in walk(self.root, prefix) if isinstance(item, ObjectInfo)]
        self._listed(prefix, any_found=bool(found))
        return iter(sorted(found, key=lambda info: info.name))

    def list_names(self, prefix: str = "") -> Iterator[str]:
        found = sorted(walk_names(self.root, prefix))
        self._listed(prefix, any_found=bool(found))
        return iter(found)

    def _listed(self, prefix: str, *, any_found: bool) -> None:
        """Check after a listing that the directory is still the one that was opened."""
        with storage_errors(f"cannot list {prefix or 'the store'}"):
            self._check()
        if any_found:
            self._notice(prefix)

    def strays(self) -> dict[str, str]:
        """Return name and description of everything in the directory that is not an object."""
        return dict(item for item in walk(self.root) if isinstance(item, Stray))

    def other_writers(self) -> int:
        """Return how many other stores are open here that have written or probed."""
        with storage_errors("cannot look for other writers"):
            found = in_use(self.root)
        return len(found - ({self._staging.folder.name} if self._staging else set()))

    def delete(self, name: str) -> None:
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        paths = [check_name(name) for name in names]
        if not paths or (self._opened is None and not self.root.is_dir()):
            return
        with storage_errors(f"cannot delete {names[0]}"):
            root = self._open()
            root.check()
            # Until a folder is synced, its changes may reach the disk in any order. So the last
            # object is deleted after the others are gone for good.
            for batch in (paths[:-1], paths[-1:]):
                for path in batch:
                    root.unlink(path)
                for folder in {path.rpartition("/")[0] for path in batch}:
                    with suppress(FileNotFoundError, NotADirectoryError):
                        root.sync(folder)
            for folder in {path.rpartition("/")[0] for path in paths}:
                root.remove_empty(folder)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        with storage_errors(f"cannot read {name}"):
            try:
                yield
            except OSError as error:
                if error.errno not in _NO_OBJECT:
                    raise
                self._check()
                raise missing(name) from None

    def _check(self) -> None:
        """After `require`: raise if the store is gone, so that it does not look empty."""
        if self._opened is not None and self._opened.is_marked:
            self._opened.check()

    def _notice(self, name: str) -> None:
        if self._opened is not None:
            self._opened.notice(name.rpartition("/")[0])

    def _path(self, name: str) -> str:
        return f"{self.root}/{check_name(name)}"  # a path object takes as long as the system call

    def _open(self) -> Root:
        with self._lock:
            if self._opened is None:
                self._opened = Root(self.root.absolute())
            return self._opened

    def _staged(self, root: Root) -> Staging:
        """Return the folder for drafts. Creating it determines what the file system can do."""
        with self._lock:
            staging = self._staging
            if staging is None or not staging.is_ours or not staging.folder.is_dir():
                root.check()
                self._close_staging()
                self._staging = staging = Staging(self.root)
                self._close_staging = weakref.finalize(self, staging.close)
                if root.is_shared:  # another user may have to sweep it
                    allow_group(staging.descriptor, SHARED)
                self._exclusive_call = exclusive_call(staging)
                self.capabilities = Capabilities(
                    exclusive_create=self._exclusive_call is not None,
                    durable=fsync_folder(".", root.descriptor),
                )
            return staging


def _make_durable_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_durable_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def _write_durably(path: Path, parts: Sequence[Buffer], *, shared: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if shared:
            allow_group(descriptor, stat.S_IRGRP)
        write_fully(descriptor, parts)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _can_be_claimed(name: str, parts: Sequence[Buffer]) -> bool:
    """Return whether `Root.claim` can create this object.

    It must be small, and in no folder: only objects in folders are ever deleted.
    """
    return "/" not in name and sum(map(len, parts)) <= MAX_CLAIM


def _check_is_file(path: str) -> None:
    """Make sure that the name is taken by a regular file, or by a link to one.

    Nothing at the path is fine, too: the object was deleted in between.

    Raises:
        FileExistsError: Something else is at the path.
    """
    with suppress(FileNotFoundError):
        kind = os.lstat(path).st_mode
        if not stat.S_ISREG(kind) and not (stat.S_ISLNK(kind) and os.path.isfile(path)):
            raise FileExistsError(
                errno.EEXIST, "something that is not a regular file is in the way, remove it"
            )
