"""A store in a directory."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from casweights.files import fsync_folder, read_exactly, storage_errors, write_fully
from casweights.staging import Staging
from casweights.stores.base import (
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    missing,
    truncated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.stores.base import Buffer


# What the system says of names that have no file: a socket has no such device.
_NO_OBJECT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


class LocalStore(ObjectStore):
    """Objects as files below a root directory. Writers may be many processes on one machine."""

    capabilities = Capabilities(exclusive_create=True)

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging: Staging | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The directory's path."""
        return str(self.root)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        path = self._path(name)
        with storage_errors(f"cannot write {name}"):
            if path.exists():
                _check_is_file(path)
                fsync_folder(path.parent)  # its writer may not have come so far yet
                return False
            self._make_folder(path.parent)
            draft = self._draft_path()
            try:
                _write_durably(draft, parts)
                created = _link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            if not created:
                _check_is_file(path)
            fsync_folder(path.parent)
        return created

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        with _reading(name):
            status = self._path(name).stat()
        if not stat.S_ISREG(status.st_mode):
            raise missing(name)
        return status.st_size

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        with _reading(name):
            # A named pipe would wait for somebody to write to it.
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise missing(name)
                if not read_exactly(descriptor, start, out):
                    raise truncated(name)
            finally:
                os.close(descriptor)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`. What is no regular file is passed over, see `strays`."""
        found = (item for item in self._items(prefix) if isinstance(item, ObjectInfo))
        return iter(sorted(found, key=lambda info: info.name))

    def strays(self) -> dict[str, str]:
        """See `ObjectStore.strays`."""
        return dict(item for item in self._items() if not isinstance(item, ObjectInfo))

    def _items(self, prefix: str = "") -> Iterator[ObjectInfo | tuple[str, str]]:
        """The regular files whose names begin with `prefix`; of anything else name and kind."""
        above = prefix.rpartition("/")[0]
        top = self._path(above) if above else self.root
        unreadable: list[OSError] = []
        with storage_errors(f"cannot list {prefix or 'the store'}"):
            for parent, folders, files in os.walk(top, onerror=unreadable.append):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for path in (Path(parent, name) for name in files if not name.startswith(".")):
                    name = self._name(path)
                    if not name.startswith(prefix):
                        continue
                    try:
                        item = _item(name, path)
                    except PermissionError as error:
                        if path.parent == top:
                            raise
                        item = name, f"a file: {error.strerror}"
                    if item is not None:
                        yield item
            for failure in unreadable:
                if isinstance(failure, FileNotFoundError | NotADirectoryError):
                    continue
                if failure.filename == str(top):
                    raise failure
                yield self._name(Path(failure.filename)), f"a folder: {failure.strerror}"

    def _name(self, path: Path) -> str:
        """The name of a path below the root, as text that can be printed."""
        return os.fsencode(path.relative_to(self.root)).decode("utf-8", "backslashreplace")

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        with storage_errors(f"cannot delete {name}"):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.root / check_name(name)

    def _draft_path(self) -> Path:
        with self._lock:
            if self._staging is None or not self._staging.is_ours:
                self._make_folder(self.root)
                self._staging = Staging(self.root)
                weakref.finalize(self, self._staging.close)
            return self._staging.new_path()

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            fsync_folder(folder.parent)


def _write_durably(path: Path, parts: Sequence[Buffer]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_fully(descriptor, parts)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(draft: Path, path: Path) -> bool:
    """Give a file its name; False if another one has it."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    return True


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


def _item(name: str, path: Path) -> ObjectInfo | tuple[str, str] | None:
    """An object, or the name and kind of something else; None if it was deleted meanwhile."""
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            return name, f"a link: {error.strerror}"
        if isinstance(error, FileNotFoundError):
            return None
        raise
    if stat.S_ISREG(status.st_mode):
        return ObjectInfo(name, status.st_size)
    return name, _KINDS.get(stat.S_IFMT(status.st_mode), "a device")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    with storage_errors(f"cannot read {name}"):
        try:
            yield
        except OSError as error:
            if error.errno in _NO_OBJECT:
                raise missing(name) from None
            raise
