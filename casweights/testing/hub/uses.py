"""Bookkeeping of the CAS: which stored bytes are needed, and which may be freed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Uses:
    """Counts the paths that name each file, and the files that need each xorb.

    A client uploads xorbs first, then registers the file that they make up, and then names it by a
    path. Each uploaded item therefore has a grace period, from its last upload, in which it is kept
    for the next step. The owner of this object holds a lock during every call. Times are
    microseconds by the clock of the Hub.
    """

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()  # paths by file
        self._needs: Counter[str] = Counter()  # files by xorb
        self._unnamed: dict[str, int] = {}  # when a file lost its last path
        self._sent_files: dict[str, int] = {}  # when a file without a path was registered
        self._sent_xorbs: dict[str, int] = {}  # when a xorb without a file was uploaded

    def send_xorb(self, xorb: str, moment: int) -> None:
        """Start the grace period of a xorb: a client uploaded it, or was told that it is stored."""
        self._sent_xorbs[xorb] = moment

    def send_file(self, file: str, xorbs: Iterable[str], moment: int) -> None:
        """Start the grace period of a file, new or known, and end that of its xorbs."""
        self._sent_files[file] = moment
        for xorb in xorbs:
            self._sent_xorbs.pop(xorb, None)

    def add_file(self, xorbs: set[str]) -> None:
        """Record a new file, which needs these xorbs."""
        self._needs.update(xorbs)

    def name(self, file: str) -> None:
        """Record that one more path names a file, which ends its grace period."""
        self._names[file] += 1
        self._unnamed.pop(file, None)
        self._sent_files.pop(file, None)

    def unname(self, file: str, moment: int) -> None:
        """Record that a path stopped naming a file at a time."""
        self._names[file] -= 1
        if not self._names[file]:
            self._unnamed[file] = moment

    def needed(self, xorb: str) -> bool:
        """Return whether some file needs a xorb."""
        return self._needs[xorb] > 0

    def idle_files(self, unnamed_before: int, sent_before: int) -> list[str]:
        """Return the files that may be freed, and end grace periods that are over.

        Args:
            unnamed_before: A file is idle if it lost its last path at or before this time.
            sent_before: A file that has no path yet is idle if it was registered at or before this
                time.
        """
        if not self._unnamed and not self._sent_files:
            return []
        for file in _until(self._sent_files, sent_before):
            # The grace period is over: from now on the file counts as one without a path.
            since = self._sent_files.pop(file)
            if not self._names[file]:
                self._unnamed.setdefault(file, since)
        found = _until(self._unnamed, unnamed_before)
        return [file for file in found if file not in self._sent_files]

    def drop_file(self, file: str, xorbs: set[str]) -> None:
        """Record that a file was freed, which needed these xorbs."""
        self._unnamed.pop(file, None)
        self._sent_files.pop(file, None)
        self._needs.subtract(xorbs)

    def idle_xorbs(self, xorbs: Iterable[str], sent_before: int) -> Iterator[str]:
        """Yield the xorbs that may be freed, and end grace periods that are over.

        Args:
            xorbs: Xorbs of files that were freed.
            sent_before: Xorbs uploaded at or before this time are checked as well.
        """
        late = _until(self._sent_xorbs, sent_before)
        for xorb in late:
            del self._sent_xorbs[xorb]
        for xorb in {*xorbs, *late}:
            if not self.needed(xorb) and xorb not in self._sent_xorbs:
                yield xorb


def _until(moments: dict[str, int], end: int) -> list[str]:
    """Return the names whose time is not after `end`."""
    return [name for name, moment in moments.items() if moment <= end]
