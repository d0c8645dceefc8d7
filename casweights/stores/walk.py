"""Lists the directory of a store: its objects, and other things in it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
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
            folder = _folder(root, parent)
            for file in files:
                name = folder + _printable(file)
                if file.startswith(".") or not name.startswith(prefix):
                    continue
                item = _item(name, os.path.join(parent, file), top)
                if item is not None:
                    yield item
        for failure in unreadable:
            if isinstance(failure, FileNotFoundError | NotADirectoryError):
                continue
            if failure.filename == str(top):
                raise failure
            name = _folder(root, failure.filename).removesuffix("/")
            yield Stray(name, f"a folder: {failure.strerror}")


def walk_names(root: Path, prefix: str) -> Iterator[str]:
    """Yield the names of the objects that `walk` yields, without a look at each of them.

    Raises:
        StoreError: The folder that the prefix names cannot be read.
    """
    above = prefix.rpartition("/")[0]
    with storage_errors(f"cannot list {prefix or 'the store'}"):
        if not above or _has_folder(root, check_name(above)):
            with suppress(FileNotFoundError, NotADirectoryError):
                yield from _names(os.path.join(root, above), above and f"{above}/", prefix)


def _names(path: str, folder: str, prefix: str) -> Iterator[str]:
    """Yield the names of the objects below a folder, whose own name ends in a slash."""
    with os.scandir(path) as entries:
        for entry in entries:  # of a branch there are up to 200, and a commit lists them twice
            own = entry.name
            if own[0] == ".":
                continue
            name = folder + (own if own.isascii() else _printable(own))
            if entry.is_dir(follow_symlinks=False):
                with suppress(OSError):  # for `walk`, such a folder is a stray
                    yield from _names(entry.path, f"{name}/", prefix)
            elif name.startswith(prefix) and _is_file(entry):
                yield name


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads nowhere, for `walk` a stray, too
        return False


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


def _folder(root: Path, path: str) -> str:
    """Return what the names in a folder below the root begin with."""
    below = Path(path).relative_to(root)
    return _printable(f"{below.as_posix()}/") if below.parts else ""


def _printable(name: str) -> str:
    """Return a part of a path as printable text."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def _item(name: str, path: str, top: Path) -> ObjectInfo | Stray | None:
    """Return the object or stray at a path; None if it was deleted after the listing."""
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            return Stray(name, f"a link: {error.strerror}")
        if isinstance(error, FileNotFoundError):
            return None
        if isinstance(error, PermissionError) and Path(path).parent != top:
            return Stray(name, f"a file: {error.strerror}")
        raise
    if stat.S_ISREG(status.st_mode):
        return ObjectInfo(name, status.st_size, status.st_mtime_ns // 1000)
    return Stray(name, _KINDS.get(stat.S_IFMT(status.st_mode), "a device"))
