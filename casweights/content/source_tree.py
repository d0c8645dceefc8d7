"""Find the files of a directory that a commit contains."""

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
    """A directory or a single file to commit.

    The directory is listed when the object is created. Call `check_complete` when all files have
    been read.

    Args:
        root: The directory or file.
        exclude: Patterns of paths of files and folders to leave out.

    Attributes:
        found: Location of each file on disk, by its path in the directory.

    Raises:
        InvalidInputError: The directory or something in it cannot be committed.
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
        """Check that no file has appeared since the directory was listed.

        Raises:
            InvalidInputError: A file has appeared, or the directory can no longer be read.
        """
        for path, location in self._look().items():
            if path not in self.found:
                raise source_changed(f"{location} appeared while its folder")


def source_changed(what: str) -> CasweightsError:
    """Return the error for a source that was written to while it was read.

    Args:
        what: The beginning of the sentence that "was read" ends, such as "x changed while it".
    """
    return InvalidInputError(
        ErrorCode.SOURCE_CHANGED,
        f"{what} was read: nothing was committed. Repeat the command when its writer has finished",
    )


def _walk(
    folder: Path, prefix: str, exclude: Sequence[str], above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, Path]]:
    """Yield the path and location of each file in a folder and its subfolders.

    Args:
        folder: The folder.
        prefix: The folder's own path, with which all paths begin; empty for the topmost one.
        exclude: Patterns of paths to leave out.
        above: Device and inode of each folder above it, to detect circles of symbolic links.
    """
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        is_store = any(entry.name == CONFIG and entry.is_file() for entry in entries)
    except OSError as error:
        raise _refuse(folder, error) from error
    if is_store and prefix:  # a store inside the model's folder is not a part of the model
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
    """Return the reason why the files of a folder cannot be committed; None if they can."""
    if is_store:
        return "it is a casweights store: pass the folder of the model"
    if identity in above:
        return "its symbolic links form a circle"
    if len(above) >= MAX_PATH_PARTS:
        return f"it is nested in more than {MAX_PATH_PARTS - 1} folders"
    return None


def _refuse(location: Path, why: Exception | str) -> InvalidInputError:
    if isinstance(why, OSError):
        why = why.strerror or str(why)
    return InvalidInputError(ErrorCode.SOURCE_UNREADABLE, f"cannot read {location}: {why}")
