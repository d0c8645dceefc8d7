"""Check that every system can hold a name, as one part of a path."""

from __future__ import annotations

import re

MAX_PART_BYTES = 255  # the limit of most file systems
_RESERVED = re.compile(r'[<>:"|?*]')
_DEVICE = re.compile(
    r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\..*)?",
    re.IGNORECASE | re.DOTALL,
)


def part_problem(part: str) -> str | None:
    """Return why some system cannot hold a file or folder of this name; None if all can.

    The function does not check for names that no system can hold, such as one with a slash.
    """
    if found := _RESERVED.search(part):
        return f"contains {found[0]!r}"
    if part.endswith((".", " ")):
        return "ends in a dot or space"
    if _DEVICE.fullmatch(part):
        return "is a Windows device name"
    if len(part.encode("utf-8", "surrogatepass")) > MAX_PART_BYTES:
        return f"is longer than {MAX_PART_BYTES} bytes"
    return None
