"""Names of files inside a version: relative, portable, and never two for one place."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PATH_BYTES = 4096
MAX_PATH_PARTS = 100
_SHOWN = 200  # characters of a name in a message
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_DRIVE = re.compile(r"(^|/)[A-Za-z]:")


def _bad(path: str, why: str) -> InvalidInputError:
    shown = path if len(path) <= _SHOWN else path[:_SHOWN] + "..."
    return InvalidInputError(ErrorCode.BAD_PATH, f"the file name {shown!r} {why}")


def check_path(path: str) -> None:
    """Accept only names that mean one place below a folder on every system.

    Raises:
        InvalidInputError: `path` is empty, too long, absolute, contains ``..``, ``.`` or empty
            parts, too many parts, backslashes, control characters or undecodable bytes, or a part
            that begins with a drive.
    """
    if _FORBIDDEN.search(path):
        raise _bad(path, "contains a backslash, a control character or an undecodable byte")
    if len(path) > MAX_PATH_BYTES or len(path.encode()) > MAX_PATH_BYTES:
        raise _bad(path, f"is longer than {MAX_PATH_BYTES} bytes")
    if path.count("/") >= MAX_PATH_PARTS:
        raise _bad(path, f"lies in more than {MAX_PATH_PARTS - 1} folders")
    if path.startswith("/") or _DRIVE.search(path):
        raise _bad(path, "is not relative")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise _bad(path, "has an empty part, '.' or '..'")


def check_paths(paths: Iterable[str]) -> None:
    """`check_path` for all, and no two that some file system takes for the same.

    Raises:
        InvalidInputError: A bad path; two paths that differ only in case or Unicode form; a path
            that is a file here and a folder there.
    """
    places: dict[str, str] = {}
    for path in paths:
        check_path(path)
        place = _fold(path)
        if place in places:
            raise _bad(path, f"and {places[place]!r} are the same file on some systems: rename one")
        places[place] = path
    for path in places.values():
        for parent in _parents(path):
            if _fold(parent) in places:
                raise _bad(path, f"lies inside {places[_fold(parent)]!r}, which is a file")


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", path.casefold())


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:n]) for n in range(1, len(parts)))
