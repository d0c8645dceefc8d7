"""The memory of this process, as Linux counts it; 0 where no such count exists."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def resident() -> int:
    """Return the bytes that the process has in memory now."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes that the process had in memory so far.

    `getrusage` also counts those of the parent at the time of the fork, this does not.
    """
    return _status("VmHWM")


def forget_peak() -> None:
    """Count the peak anew; where that is not allowed, it is that of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
