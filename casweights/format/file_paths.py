"""Check the paths of files inside a version: relative, and never two for the same file.

Readers accept all safe paths; writers create only those that every system can hold.
"""

from __future__ import annotations

import re
import unicodedata
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format.portable import part_problem

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PATH_BYTES = 4096  # the limit of Linux for one system call
MAX_PATH_PARTS = 100  # a checkout opens the folders of a path one by one
_NOWHERE = frozenset(("", ".", ".."))
_SHOWN = 200  # characters of a name in a message
_LONG = 256  # characters of a path: `normalize` is fast enough on shorter ones
_MARKS = re.compile(rb"[^\0]{32,}")  # in the combining classes of a text: a long run of marks
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_DRIVE = re.compile(r"(^|/)([A-Za-z]:)")


def _bad(path: str, why: str) -> InvalidInputError:
    shown = path if len(path) <= _SHOWN else path[:_SHOWN] + "..."
    return InvalidInputError(ErrorCode.BAD_PATH, f"the file name {shown!r} {why}")


def check_path(path: str) -> None:
    """Refuse a path that could lead outside the version's folder on any system.

    Raises:
        InvalidInputError: `path` is empty, too long or absolute; contains ``..``, ``.`` or empty
            parts, too many parts, backslashes, control characters or undecodable bytes; or has a
            part that begins with a drive.
    """
    if _FORBIDDEN.search(path):
        raise _bad(path, "contains a backslash, a control character or an undecodable byte")
    if len(path) > MAX_PATH_BYTES or len(path.encode()) > MAX_PATH_BYTES:
        raise _bad(path, f"is longer than {MAX_PATH_BYTES} bytes")
    if path.count("/") >= MAX_PATH_PARTS:
        raise _bad(path, f"lies in more than {MAX_PATH_PARTS - 1} folders")
    if path.startswith("/"):
        raise _bad(path, "is not relative")
    if drive := _DRIVE.search(path):
        raise _bad(path, f"contains {drive[2]!r}, which is a drive on Windows")
    if not _NOWHERE.isdisjoint(path.split("/")):
        raise _bad(path, "has an empty part, '.' or '..'")


def check_new_path(path: str) -> None:
    """Refuse a path that some system cannot check out.

    Raises:
        InvalidInputError: `check_path` refuses `path`, or a part of it contains one of
            ``<>:"|?*``, ends in a dot or space, is a Windows device name such as ``CON`` or
            ``nul.txt``, or is longer than 255 bytes.
    """
    check_path(path)
    for part in path.split("/"):
        problem = part_problem(part)
        if problem:
            what = problem if part == path else f"has the part {part!r}, which {problem}"
            raise _bad(path, f"{what}: Windows or another system cannot hold it")


def check_paths(paths: Iterable[str]) -> None:
    """Refuse a list of paths if one is bad or if two collide on some file system.

    Raises:
        InvalidInputError: `check_path` refuses a path; two paths differ only in case or Unicode
            form; or one path is a folder in another path.
    """
    places: dict[str, str] = {}
    for path in paths:
        check_path(path)
        place = _fold(path)
        if place in places:
            raise _bad(path, f"means the same file on some systems as {places[place]!r}")
        places[place] = path
    # Sorted with the separator below all other characters, the content of a folder directly follows
    # the folder's own path, so comparing neighbours is enough.
    ordered = sorted(places, key=lambda place: place.replace("/", "\0"))
    for above, below in pairwise(ordered):
        if below.startswith(above + "/"):
            raise _bad(places[below], f"lies inside {places[above]!r}, which is a file")


def _fold(path: str) -> str:
    """Return a text that is equal for paths that some file system equates: case-folded, in NFC."""
    folded = path.casefold()
    if len(folded) > _LONG and not folded.isascii():
        folded = _in_order(folded)
    return unicodedata.normalize("NFC", folded)


def _in_order(text: str) -> str:
    """Decompose a text and put runs of combining marks in canonical order.

    `normalize` orders marks by insertion, so a forged run would cost the square of its length.
    """
    decomposed = "".join(map(partial(unicodedata.normalize, "NFD"), text))
    classes = bytes(map(unicodedata.combining, decomposed))
    parts, done = [], 0
    for run in _MARKS.finditer(classes):
        start, stop = run.span()
        parts += [
            decomposed[done:start],
            *sorted(decomposed[start:stop], key=unicodedata.combining),
        ]
        done = stop
    return "".join([*parts, decomposed[done:]])
