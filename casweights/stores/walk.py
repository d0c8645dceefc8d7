"""What lies in the directory of a store: objects, and what can be none."""

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
    """Something that can be no object.

    Attributes:
        name: Its path below the root, as text that can be printed.
        kind: What it is.
    """

    name: str
    kind: str


def walk(root: Path, prefix: str = "") -> Iterator[ObjectInfo | Stray]:
    """The regular files of which the names begin with `prefix`, and anything else there is.

    Names that begin with a dot are left out: such files are the store's own.

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
    """Whether there is a folder of exactly this name; a disk may find one in another case."""
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
    """The name of a path below the root, as text that can be printed."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")


def _item(name: str, path: Path, top: Path) -> ObjectInfo | Stray | None:
    """An object, or something else; None if it was deleted after the folder was read."""
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
