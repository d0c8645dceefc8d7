"""A store in a directory."""

from __future__ import annotations

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
                fsync_folder(path.parent)  # its writer may not have come so far yet
                return False
            self._make_folder(path.parent)
            draft = self._draft_path()
            try:
                _write_durably(draft, parts)
                created = _link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
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
            descriptor = os.open(self._path(name), os.O_RDONLY)
            try:
                if not read_exactly(descriptor, start, out):
                    raise truncated(name)
            finally:
                os.close(descriptor)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        above = prefix.rpartition("/")[0]
        folder = self._path(above) if above else self.root
        found: list[ObjectInfo] = []
        with storage_errors(f"cannot list {prefix or 'the store'}"):
            for parent, folders, names in os.walk(folder, onerror=_raise_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for path in (Path(parent, name) for name in names if not name.startswith(".")):
                    name = path.relative_to(self.root).as_posix()
                    if name.startswith(prefix):
                        with suppress(FileNotFoundError):  # deleted meanwhile
                            found.append(ObjectInfo(name, path.stat().st_size))
        return iter(sorted(found, key=lambda info: info.name))

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


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def _reading(name: str) -> Iterator[None]:
    with storage_errors(f"cannot read {name}"):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise missing(name) from None
