"""Lists the directory of a store: its objects, and other things in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from casweights.stores.base import ObjectInfo, check_name
from casweights.system.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


class Stray(NamedTuple):
    """Something in the directory that cannot be an object.

    Attributes:
        name: Its path below the root, as printable text.
        kind: Its kind, such as "a named pipe", and the error if it cannot be read.
    """

    name: str
    kind: str


def walk(root: Path, prefix: str = "") -> Iterator[ObjectInfo | Stray]:
    """Yield the regular files whose names begin with `prefix`, and strays among them.

    Names that begin with a dot are skipped: those are the store's own temporary files.

    Raises:
        StoreError: The folder that the prefix names cannot be read.
    """
    above = prefix.rpartition("/")[0]
    top = root / check_name(above) if above else root
    unreadable: list[OSError] = []
    with storage_errors(f"cannot list {prefix or 'the store'}"):
        if above and not _has_folder(root, above):
            return
        for parent, folders, files in os.walk(top, onerror=unreadable.append):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(parent, name) for name in files if not name.startswith(".")):
                name = _name(root, path)
                if name.startswith(prefix) and (item := _item(name, path, top)) is not None:
                    yield item
        for failure in unreadable:
            if isinstance(failure, FileNotFoundError | NotADirectoryError):
                continue
            if failure.filename == str(top):
                raise failure
            yield Stray(_name(root, Path(failure.filename)), f"a folder: {failure.strerror}")


def _has_folder(root: Path, name: str) -> bool:
    """Return whether a folder of exactly this name exists.

    Some disks ignore case, and would also open a name that is spelled in another case.
    """
    parent = root
    for part in name.split("/"):
        try:
            if part not in os.listdir(parent):
                return False
        except (FileNotFoundError, NotADirectoryError):
            return False
        parent /= part
    return True


def _name(root: Path, path: Path) -> str:
    """Return the name of a path below the root, as printable text."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")


def _item(name: str, path: Path, top: Path) -> ObjectInfo | Stray | None:
    """Return the object or stray at a path; None if it was deleted after the listing."""
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            return Stray(name, f"a link: {error.strerror}")
        if isinstance(error, FileNotFoundError):
            return None
        if isinstance(error, PermissionError) and path.parent != top:
            return Stray(name, f"a file: {error.strerror}")
        raise
    if stat.S_ISREG(status.st_mode):
        return ObjectInfo(name, status.st_size, status.st_mtime_ns // 1000)
    return Stray(name, _KINDS.get(stat.S_IFMT(status.st_mode), "a device"))
