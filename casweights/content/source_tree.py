"""Which files of a directory are committed, and which are left out."""

from __future__ import annotations

import os
import stat
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from casweights.errors import CasweightsError, ErrorCode, InvalidInputError
from casweights.format.file_paths import MAX_PATH_PARTS
from casweights.format.names import CONFIG
from casweights.system import staging

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether any of the shell-style patterns matches the whole of `path`."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


class SourceTree:
    """A directory, or one file, from which all files are taken but those that patterns leave out.

    Args:
        root: The directory or file.
        exclude: Patterns of names of files and folders to leave out.

    Attributes:
        found: Where each file lies, by its path in the directory.
    """

    def __init__(self, root: Path, exclude: Sequence[str]) -> None:
        self._root = root
        self._exclude = exclude
        self.found = self._look()

    def _look(self) -> dict[str, Path]:
        try:
            is_file = stat.S_ISREG(self._root.stat().st_mode)
        except (OSError, ValueError) as error:
            raise _refuse(self._root, error) from error
        if is_file:
            return {self._root.name: self._root}
        return dict(_walk(self._root, "", self._exclude))

    def check_complete(self) -> None:
        """Check that no file has appeared since the first look.

        Raises:
            InvalidInputError: One has, or the directory cannot be read any more.
        """
        for path, location in self._look().items():
            if path not in self.found:
                raise source_changed(f"{location} appeared while its folder")


def source_changed(what: str) -> CasweightsError:
    """The error for a source that was written to while it was read."""
    return InvalidInputError(
        ErrorCode.SOURCE_CHANGED,
        f"{what} was read: nothing was committed. Repeat the command when the writer is done",
    )


def _walk(
    folder: Path, prefix: str, exclude: Sequence[str], above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, Path]]:
    """The files below a folder and their paths, each of which begins with `prefix`.

    Args:
        folder: The folder.
        prefix: Its own path; empty for the topmost one.
        exclude: Patterns of paths to leave out.
        above: Device and inode of each folder above it.
    """
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        is_store = any(entry.name == CONFIG and entry.is_file() for entry in entries)
    except OSError as error:
        raise _refuse(folder, error) from error
    if is_store and prefix:
        return
    identity = (status.st_dev, status.st_ino)
    if problem := _folder_problem(identity, above, is_store=is_store):
        raise _refuse(folder, problem)
    for entry in entries:
        path, location = prefix + entry.name, folder / entry.name
        if matches(path, exclude) or entry.name.startswith(staging.PREFIX):
            continue
        try:
            mode = location.stat().st_mode
        except OSError as error:
            raise _refuse(location, error) from error
        if stat.S_ISDIR(mode):
            yield from _walk(location, f"{path}/", exclude, (*above, identity))
        elif stat.S_ISREG(mode):
            yield path, location
        else:
            raise _refuse(location, "it is neither a file nor a folder")


def _folder_problem(
    identity: tuple[int, int], above: tuple[tuple[int, int], ...], *, is_store: bool
) -> str | None:
    """Why files below a folder cannot be committed; None if they can."""
    if is_store:
        return "it is a casweights store: name the model's own folder"
    if identity in above:
        return "symbolic links lead in a circle"
    if len(above) >= MAX_PATH_PARTS:
        return f"it lies in more than {MAX_PATH_PARTS - 1} folders"
    return None


def _refuse(location: Path, why: Exception | str) -> InvalidInputError:
    if isinstance(why, OSError):
        why = why.strerror or str(why)
    return InvalidInputError(ErrorCode.SOURCE_UNREADABLE, f"cannot read {location}: {why}")
