"""Byte ranges of immutable objects on disk, shared by all processes of a machine.

Below the cache's folder, each object has its own folder, with one file for each *extent* (range of
the object's bytes) that was read. The file's name states the range. Files are renamed into place
and never changed. They are not synced, so after a power cut a file may contain arbitrary bytes.
Readers therefore verify what they read, and `drop` bad extents.

An extent that cannot be read or written counts as absent; no method raises for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.system.files import read_exactly, write_fully
from casweights.system.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights.stores.base import Parts

PAUSE = 60.0  # seconds without writing after an error
_TOUCH = 60.0  # seconds; a file's time of use is updated at most once in this interval
_EXTENT = re.compile(r"(\d{1,20})-(\d{1,20})(\.end)?")


class _Extent(NamedTuple):
    """A range of an object's bytes; `to_end` if the object is known to end with it."""

    start: int
    stop: int
    to_end: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        match = _EXTENT.fullmatch(text)
        return None if match is None else cls(int(match[1]), int(match[2]), bool(match[3]))

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}{'.end' if self.to_end else ''}"

    def covers(self, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.stop


class DiskCache:
    """Extents of one store's objects, in a folder that many stores and processes share.

    Args:
        folder: Root of the cache.
        capacity: Maximum total bytes below `folder`. Extents above a quarter of it are not kept.
        key: Text that identifies the store among all stores that share `folder`.

    Attributes:
        served: Names of the objects that this cache has answered a read of.
    """

    def __init__(self, folder: Path, capacity: int, key: str) -> None:
        self._folder = folder
        self._largest = capacity // 4
        self._space = _Space(folder, capacity)
        self._objects = folder / _digest(key)[:32]
        self._spoilt: set[str] = set()  # names of damaged objects that could not be dropped
        self._lock = threading.Lock()
        self._staging: Staging | None = None
        self._close_staging: weakref.finalize[[], DiskCache] | None = None
        self._resume = 0.0
        self.served: set[str] = set()

    def readinto(self, name: str, start: int, out: memoryview) -> bool:
        """Fill `out` from one extent that covers the range, and return True.

        Returns False if no extent does; the content of `out` is then undefined.
        """
        if name in self._spoilt:
            return False
        folder = self._object_folder(name)
        for extent in _list_extents(folder):
            if extent.covers(start, start + len(out)):
                with suppress(OSError):
                    if _read_extent(folder, extent, start, out):
                        self.served.add(name)
                        return True
        return False

    def size(self, name: str) -> int | None:
        """Return the size in bytes of an object whose end is cached; None for others."""
        if name in self._spoilt:
            return None
        extents = _list_extents(self._object_folder(name))
        return next((extent.stop for extent in extents if extent.to_end), None)

    def keep(self, name: str, start: int, parts: Parts, *, to_end: bool = False) -> None:
        """Store an extent, if there is room for it. Errors of the disk are ignored.

        Args:
            name: Name of the object.
            start: Offset of the extent in the object.
            parts: The extent's bytes.
            to_end: The object ends with the extent.
        """
        size = sum(map(len, parts))
        if not 0 < size <= self._largest or time.monotonic() < self._resume:
            return
        try:
            with self._space.reserve(size) as fits:
                if fits:
                    self._write(name, _Extent(start, start + size, to_end), parts)
        except OSError:
            self._pause()

    def drop(self, name: str) -> bool:
        """Delete all extents of an object, and return whether it had any."""
        folder = self._object_folder(name)
        extents = _list_extents(folder)
        try:
            for extent in extents:
                _remove(folder / str(extent))
        except OSError:
            self._spoilt.add(name)
        return bool(extents)

    def _write(self, name: str, extent: _Extent, parts: Parts) -> None:
        """Write an extent, and delete smaller ones that it covers."""
        folder, draft = self._object_folder(name), self._draft_path()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_fully(descriptor, parts)
        finally:
            os.close(descriptor)
        _rename(draft, folder / str(extent))
        for other in _list_extents(folder):
            if extent.covers(other.start, other.stop) and not (other == extent or other.to_end):
                _remove(folder / str(other))

    def _draft_path(self) -> Path:
        with self._lock:
            if self._staging is None or not self._staging.is_ours:
                self._staging = Staging(self._folder)
                self._close_staging = weakref.finalize(self, self._staging.close)
            return self._staging.new_path()

    def _pause(self) -> None:
        """Delete all drafts, and write nothing for `PAUSE` seconds.

        Called after a failed write: the disk may be full, read-only or without locks, or the folder
        may be gone.
        """
        with self._lock:
            self._resume = time.monotonic() + PAUSE
            if self._close_staging is not None:
                self._close_staging()
            self._staging = self._close_staging = None
        self._space.distrust()

    def _object_folder(self, name: str) -> Path:
        digest = _digest(name)
        return self._objects / digest[:2] / digest[2:]


class _Space:
    """The disk space that all processes share. Its use is estimated between scans of the folder.

    Methods may be called from several threads. `reserve` encloses each write.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self._folder = folder
        self._capacity = capacity
        self._lock = threading.Lock()
        self._total: int | None = None
        self._written = 0  # bytes since the last scan
        self._pending = 0  # bytes being written now, which a scan may miss

    @contextmanager
    def reserve(self, size: int) -> Iterator[bool]:
        """Make room for `size` bytes, and yield whether there is room.

        Raises:
            OSError: The cache cannot be used.
        """
        self._add(size, size)
        try:
            total = self._total
            if total is None or total > self._capacity or self._written > self._capacity // 20:
                self._scan()
            yield self._total is not None and self._total <= self._capacity
        finally:
            self._add(0, -size)

    def distrust(self) -> None:
        """Discard the estimate, so that the next write scans the folder first."""
        self._total = None

    def _add(self, written: int, pending: int) -> None:
        with self._lock:
            self._written += written
            self._pending += pending
            if self._total is not None:
                self._total += written

    def _scan(self) -> None:
        """Recount the space in use and evict extents, unless another process is doing so."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("ab") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                self._evict()
            finally:
                # Closing does not unlock if a child was forked in between: it shares the lock.
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _evict(self) -> None:
        """Scan the folder, and delete the least recently used extents beyond the capacity."""
        self._written = 0
        files = sorted(_scan_extents(self._folder))
        stored = sum(size for _, size, _ in files)
        if stored + self._pending > self._capacity:
            for _, size, path in files:
                # Evict down to 90 %, so that not every write scans.
                if stored + self._pending <= self._capacity // 10 * 9:
                    break
                _remove(path)
                stored -= size
        with self._lock:
            self._total = stored + self._pending


def _scan_extents(root: Path) -> Iterator[tuple[int, int, str]]:
    """Yield time of last use (ns), size (bytes) and path of every extent of every store."""
    for folder, _, names in os.walk(root):
        for name in filter(_Extent.parse, names):
            path = os.path.join(folder, name)
            with suppress(FileNotFoundError):  # another process dropped it
                status = os.lstat(path)
                yield status.st_mtime_ns, status.st_size, path


def _list_extents(folder: Path) -> list[_Extent]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [extent for extent in map(_Extent.parse, names) if extent is not None]


def _read_extent(folder: Path, extent: _Extent, start: int, out: memoryview) -> bool:
    """Fill `out` from the object's offset `start` on; False if the file has a wrong size.

    Updates the file's time of use, which `_Space` evicts by.
    """
    path = folder / str(extent)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        if status.st_size != extent.stop - extent.start:
            _remove(path)
            return False
        if not read_exactly(descriptor, start - extent.start, out):
            return False
        if abs(time.time() - status.st_mtime) > _TOUCH:
            with suppress(OSError):
                os.utime(descriptor)
        return True
    finally:
        os.close(descriptor)


def _rename(draft: Path, path: Path) -> None:
    """Move a draft to its path, and create the folder if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft.rename(path)
    except FileNotFoundError:  # another process removed the folder while it was empty
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(path)


def _remove(path: str | Path) -> None:
    """Delete an extent, and its folder if that is empty now."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    with suppress(OSError):
        os.rmdir(os.path.dirname(path))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
