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
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    missing,
    truncated,
)
from casweights.stores.naming import exclusive_call
from casweights.stores.root import MAX_CLAIM, SHARED, Root
from casweights.stores.walk import Stray, walk
from casweights.system.files import (
    allow_group,
    fsync_folder,
    read_exactly,
    storage_errors,
    write_fully,
)
from casweights.system.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights.stores.naming import Call
    from casweights.system.buffers import Buffer

_ATTEMPTS = 3  # times to write a draft that jobs which clean up keep removing
# What the system says of names that have no file: a socket has no such device.
_NO_OBJECT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}


class LocalStore(ObjectStore):
    """Objects as files below a root directory. Writers may be many processes on one machine.

    A folder goes with its last object, except those in the root itself.

    Nothing but `create` makes the root. Once it is known (see `require`), writes go to the very
    folder that was opened, or fail.
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
        """The directory's path."""
        return str(self.root)

    def create(self) -> None:
        """Make the directory, unless it is there."""
        with storage_errors(f"cannot make {self.root}"):
            _make_durable_folder(self.root.absolute())

    def share(self) -> None:
        """See `SupportsSharing.share`."""
        self.create()
        with storage_errors(f"cannot give {self.root} to its group"):
            os.chmod(self.root, stat.S_IMODE(self.root.stat().st_mode) | SHARED)

    def require(self, name: str) -> None:
        """See `ObjectStore.require`."""
        with self._reading(name):
            self._open().mark(name)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        folder = check_name(name).rpartition("/")[0]
        with storage_errors(f"cannot write {name}"):
            root = self._open()
            root.make_folders(folder)
            created = not root.has(name) and self._create(root, name, parts)
            if not created:
                root.check()
                _check_is_file(self._path(name))
            root.sync_below(folder)  # of an object that is there, too: its writer may be about to
        return created

    def _create(self, root: Root, name: str, parts: Sequence[Buffer]) -> bool:
        """Write an object; False if another writer has just done so."""
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
                    with suppress(OSError):  # whoever sweeps the folder removes it
                        draft.unlink(missing_ok=True)
            except FileNotFoundError:  # a job that cleans up has removed the draft
                if attempt == _ATTEMPTS - 1:
                    raise
            except NotADirectoryError:
                root.check()
                raise
        raise AssertionError("the last attempt returns or raises")

    def probe(self) -> Capabilities:
        """See `ObjectStore.probe`. Where nothing can be written, nothing is found out."""
        with suppress(OSError, NotFoundError):
            self._staged(self._open())
        return self.capabilities

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        with self._reading(name):
            status = self._path(name).stat()
        if not stat.S_ISREG(status.st_mode):
            raise missing(name)
        return status.st_size

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        with self._reading(name):
            # A named pipe would wait for somebody to write to it.
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise missing(name)
                if not read_exactly(descriptor, start, out):
                    raise truncated(name)
            finally:
                os.close(descriptor)
        self._notice(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`. What is no regular file is left out, see `strays`."""
        found = [item for item in walk(self.root, prefix) if isinstance(item, ObjectInfo)]
        with storage_errors(f"cannot list {prefix or 'the store'}"):
            self._check()
        if found:
            self._notice(prefix)
        return iter(sorted(found, key=lambda info: info.name))

    def strays(self) -> dict[str, str]:
        """See `SupportsStrays.strays`."""
        return dict(item for item in walk(self.root) if isinstance(item, Stray))

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete_all`."""
        paths = [check_name(name) for name in names]
        if not paths or (self._opened is None and not self.root.is_dir()):
            return
        with storage_errors(f"cannot delete {names[0]}"):
            root = self._open()
            root.check()
            # Until a folder is synced, its changes may survive a crash in any order.
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
        """Once the store is known: raise if it is gone, so that it does not look empty."""
        if self._opened is not None and self._opened.is_marked:
            self._opened.check()

    def _notice(self, name: str) -> None:
        if self._opened is not None:
            self._opened.notice(name.rpartition("/")[0])

    def _path(self, name: str) -> Path:
        return self.root / check_name(name)

    def _open(self) -> Root:
        with self._lock:
            if self._opened is None:
                self._opened = Root(self.root.absolute())
            return self._opened

    def _staged(self, root: Root) -> Staging:
        """The folder for drafts. What the file system can do is known once there is one."""
        with self._lock:
            staging = self._staging
            if staging is None or not staging.is_ours or not staging.folder.is_dir():
                root.check()
                self._close_staging()
                self._staging = staging = Staging(self.root)
                self._close_staging = weakref.finalize(self, staging.close)
                if root.is_shared:  # whoever sweeps it may be another user
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
    """Whether `Root.claim` works: a small object, and never deleted since it is in no folder."""
    return "/" not in name and sum(map(len, parts)) <= MAX_CLAIM


def _check_is_file(path: Path) -> None:
    """Refuse to take something else for an object that is there already.

    Raises:
        FileExistsError: It is no file. (An object that was deleted meanwhile was one.)
    """
    with suppress(FileNotFoundError):
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind) and not (stat.S_ISLNK(kind) and path.is_file()):
            raise FileExistsError(
                errno.EEXIST, "something that is no file is in the way, remove it"
            )
