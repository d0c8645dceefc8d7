"""A store in a directory."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, StoreError
from casweights.staging import Staging, fsync_folder
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

_MAX_PARTS = 512  # below the IOV_MAX of every system
_CODES = {
    errno.ENOSPC: ErrorCode.NO_SPACE,
    errno.EDQUOT: ErrorCode.NO_SPACE,
    errno.EFBIG: ErrorCode.NO_SPACE,
    errno.EACCES: ErrorCode.NO_PERMISSION,
    errno.EPERM: ErrorCode.NO_PERMISSION,
    errno.EROFS: ErrorCode.NO_PERMISSION,
}


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
                return False
            draft = self._draft_path()
            try:
                _write_durably(draft, parts)
                self._make_folder(path.parent)
                os.link(draft, path)
            except FileExistsError:
                return False
            finally:
                draft.unlink(missing_ok=True)
            fsync_folder(path.parent)
        return True

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        with storage_errors(f"cannot read {name}", name):
            return self._path(name).stat().st_size

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        with storage_errors(f"cannot read {name}", name):
            descriptor = os.open(self._path(name), os.O_RDONLY)
            try:
                if not read_exactly(descriptor, start, out):
                    raise truncated(name)
            finally:
                os.close(descriptor)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        folder = self.root / prefix.rpartition("/")[0]
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
            if self._staging is None:
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
        for n in range(0, len(parts), _MAX_PARTS):
            write_fully(descriptor, [memoryview(part) for part in parts[n : n + _MAX_PARTS]])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_fully(descriptor: int, views: list[memoryview]) -> None:
    """Write all of `views` (byte views), however often the system stops short."""
    while views:
        written = os.writev(descriptor, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def read_exactly(descriptor: int, start: int, out: memoryview) -> bool:
    """Fill `out` from offset `start` on; False if the file ends too early."""
    while out:
        n = os.preadv(descriptor, [out], start)
        if n == 0:
            return False
        out, start = out[n:], start + n
    return True


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def storage_errors(what: str, name: str | None = None) -> Iterator[None]:
    """Turn the system's errors into ours.

    Args:
        what: What was tried, for the message.
        name: The object, where its absence means that it is not in the store.

    Raises:
        NotFoundError: `name` is not there.
        StoreError: Anything else went wrong.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if name is not None:
            raise missing(name) from None
        raise StoreError(ErrorCode.IO_FAILED, f"{what}: {error}") from error
    except OSError as error:
        code = _CODES.get(error.errno or 0, ErrorCode.IO_FAILED)
        raise StoreError(code, f"{what}: {error.strerror or error}") from error
