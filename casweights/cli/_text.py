"""Text for people: sizes, counts, times, IDs, and lines cut to a width."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta

SHORT_ID = 12  # hexadecimal digits: versions of one store hardly ever share them
_UNITS = ("kB", "MB", "GB", "TB", "PB")


def size(nbytes: int) -> str:
    """Format a number of bytes in decimal units, as ``90.9 MB``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value, units = nbytes / 1000, iter(_UNITS)
    unit = next(units)
    # From 999.95 on, one decimal rounds to 1000.0, which belongs to the next unit.
    while value >= 999.95 and (larger := next(units, None)):
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def binary_size(nbytes: int) -> str:
    """Format a number of bytes in the largest binary unit without a remainder, as ``4 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes % 1024 or unit == "MiB":
            break
        nbytes //= 1024
    return f"{nbytes} {unit}"


def count(number: int, noun: str) -> str:
    """Format a number with its noun, as ``12 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def micros(microseconds: int) -> datetime:
    """Return the time that is some microseconds after the beginning of 1970, UTC."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)


def moment(time: datetime, *, seconds: bool = False) -> str:
    """Format a time in the local time zone."""
    try:
        local = time.astimezone()
    except (OverflowError, ValueError):  # within hours of the first or last year of datetime
        local = time
    return local.strftime("%Y-%m-%d %H:%M:%S %z" if seconds else "%Y-%m-%d %H:%M")


def short(digest: bytes) -> str:
    """Return the first digits of an ID."""
    return digest.hex()[:SHORT_ID]


def subject(message: str) -> str:
    """Return the first line of a message."""
    return message.strip().partition("\n")[0].rstrip()


def printable(text: str) -> str:
    """Escape all characters of `text` that could control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Return the number of terminal columns that `text` fills."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, room: int) -> str:
    """Shorten `text` to at most `room` columns, with an ellipsis at the end if it was cut."""
    if width(text) <= room:
        return text
    kept, used = [], 1  # the ellipsis
    for char in text:
        used += _columns(char)
        if used > room:
            break
        kept.append(char)
    return "".join(kept) + "…" if room > 0 else ""
