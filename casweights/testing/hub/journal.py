"""An append-only file of JSON lines, from which a killed server restores its state."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Event = dict[str, Any]


class Journal:
    """Events in the order in which they happened.

    After `append` returns, its events survive a kill of the process, but not a power cut.

    Args:
        path: The file, which is created if missing. An incomplete last line is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._cut_torn_line()

    def replay(self) -> Iterator[Event]:
        """Yield all events, the oldest first."""
        with self._path.open("rb") as lines:
            yield from map(json.loads, lines)

    def append(self, events: Iterable[Event]) -> None:
        """Add events; if the process is killed during the call, all or none of them are kept."""
        lines = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events)
        data = memoryview(lines.encode())  # one buffer, hence usually one `write`
        with self._lock:
            while data:
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _cut_torn_line(self) -> None:
        data = self._path.read_bytes()
        if not data.endswith(b"\n"):
            os.ftruncate(self._file, data.rfind(b"\n") + 1)
