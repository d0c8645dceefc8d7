"""What the bytes of the storage are kept for, and which of them nothing needs any more."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Uses:
    """Counts the paths that name files and the files that need xorbs.

    An upload goes from below: first xorbs, then the file that they make up, then the path that
    names it. What was sent is kept for a while for what is to follow. The owner of the table holds
    a lock while it calls; times are microseconds by the clock of the Hub.
    """

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()
        self._needs: Counter[str] = Counter()
        self._unnamed: dict[str, int] = {}
        self._sent_files: dict[str, int] = {}
        self._sent_xorbs: dict[str, int] = {}

    def send_xorb(self, xorb: str, moment: int) -> None:
        """A client sent a xorb, or was told that it need not."""
        self._sent_xorbs[xorb] = moment

    def send_file(self, file: str, xorbs: Iterable[str], moment: int) -> None:
        """A client registered a file, which may be known, and so used what it sent for it."""
        self._sent_files[file] = moment
        for xorb in xorbs:
            self._sent_xorbs.pop(xorb, None)

    def add_file(self, xorbs: set[str]) -> None:
        """A file is there that was not, and needs these xorbs."""
        self._needs.update(xorbs)

    def name(self, file: str) -> None:
        """A path names a file."""
        self._names[file] += 1
        self._unnamed.pop(file, None)
        self._sent_files.pop(file, None)

    def unname(self, file: str, moment: int) -> None:
        """A path no longer names a file."""
        self._names[file] -= 1
        if not self._names[file]:
            self._unnamed[file] = moment

    def needed(self, xorb: str) -> bool:
        """Whether some file needs a xorb."""
        return self._needs[xorb] > 0

    def idle_files(self, unnamed_before: int, sent_before: int) -> list[str]:
        """Files that lost their last path, or were sent and never named, by these times."""
        if not self._unnamed and not self._sent_files:
            return []
        for file in _until(self._sent_files, sent_before):
            since = self._sent_files.pop(file)
            if not self._names[file]:
                self._unnamed.setdefault(file, since)
        found = _until(self._unnamed, unnamed_before)
        return [file for file in found if file not in self._sent_files]

    def drop_file(self, file: str, xorbs: set[str]) -> None:
        """A file is gone that needed these xorbs."""
        self._unnamed.pop(file, None)
        self._sent_files.pop(file, None)
        self._needs.subtract(xorbs)

    def idle_xorbs(self, xorbs: Iterable[str], sent_before: int) -> Iterator[str]:
        """Of these xorbs, and of those sent by this time, the ones that nothing needs."""
        late = _until(self._sent_xorbs, sent_before)
        for xorb in late:
            del self._sent_xorbs[xorb]
        for xorb in {*xorbs, *late}:
            if not self.needed(xorb) and xorb not in self._sent_xorbs:
                yield xorb


def _until(moments: dict[str, int], end: int) -> list[str]:
    return [name for name, moment in moments.items() if moment <= end]
