"""Values as text for people."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

SHORT_ID = 12  # hexadecimal digits: few versions of a store share them
_UNITS = ("kB", "MB", "GB", "TB", "PB")


def size(nbytes: int) -> str:
    """Bytes in decimal units, as ``90.9 MB``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value, units = nbytes / 1000, iter(_UNITS)
    unit = next(units)
    while value >= 999.95 and (larger := next(units, None)):
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def binary_size(nbytes: int) -> str:
    """Bytes in the largest binary unit that leaves no rest, as ``4 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes % 1024 or unit == "MiB":
            break
        nbytes //= 1024
    return f"{nbytes} {unit}"


def count(number: int, noun: str) -> str:
    """A number with its noun, as ``12 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(time: datetime, *, seconds: bool = False) -> str:
    """A point in time where the reader lives."""
    try:
        local = time.astimezone()
    except (OverflowError, ValueError):  # within hours of year 1 or 9999
        local = time
    return local.strftime("%Y-%m-%d %H:%M:%S %z" if seconds else "%Y-%m-%d %H:%M")


def short(digest: bytes) -> str:
    """The first digits of an ID."""
    return digest.hex()[:SHORT_ID]


def subject(message: str) -> str:
    """The first line of a message."""
    return message.strip().partition("\n")[0].rstrip()


def printable(text: str) -> str:
    """`text` with everything escaped that could act on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Columns that `text` takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, room: int) -> str:
    """`text`, shortened to `room` columns."""
    if width(text) <= room:
        return text
    kept, used = [], 1  # the ellipsis
    for char in text:
        used += _columns(char)
        if used > room:
            break
        kept.append(char)
    return "".join(kept) + "…" if room > 0 else ""
