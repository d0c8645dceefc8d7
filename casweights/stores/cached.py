"""A cache on disk in front of a remote store.

No call fails because of the cache: if the cache cannot be used, the inner store answers.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casweights.stores.base import NO_NAMES, ObjectStore
from casweights.stores.disk_cache import DiskCache
from casweights.stores.wrapper import WrapperBatch, WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from casweights.stores.base import Batch, Parts

# Their names are derived from their content.
CACHED_PREFIXES = ("packs/", "snapshots/", "segments/", "versions/")
CACHED_SUFFIX = ".step"  # of moves that are versions: a writer never draws one name twice
MAX_WRITTEN = 80 << 20  # bytes; larger written objects are not cached, but packs stay below this


class CachedStore(WrapperStore):
    """Another store, with a disk cache of the bytes read from it recently.

    Only reads of packs, snapshots, segments and archives, which never change, are answered from the
    cache.
    Such a read does not check that the object still exists. All other calls go to the inner store.

    Args:
        inner: The store to cache.
        folder: Root of the cache, created at the first write. Any number of processes and stores
            may share it.
        capacity: Maximum total bytes below `folder`. Beyond it, the least recently used files are
            deleted. Each process that writes at the same time may exceed it by another 5 %.
        key: Text that identifies `inner` among all stores that share the cache.
    """

    def __init__(self, inner: ObjectStore, folder: Path, capacity: int, key: str) -> None:
        super().__init__(inner)
        self._cache = DiskCache(folder, capacity, key)
        self._fetches: dict[tuple[int, str, int, int], threading.Event] = {}

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        if not out or not _is_cached(name):
            self.inner.readinto(name, start, out)
            return
        if self._cache.readinto(name, start, out):
            return
        with self._turn(name, start, len(out)):
            if not self._cache.readinto(name, start, out):
                self.inner.readinto(name, start, out)
                self._cache.keep(name, start, [out])

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        if not _is_cached(name):
            return self.inner.get(name, start, size)
        if size is None:
            known = self._cache.size(name)
            size = (self.inner.size(name) if known is None else known) - start
        return ObjectStore.get(self, name, start, size)

    def read(self, name: str, limit: int) -> bytes:
        if not _is_cached(name):
            return self.inner.read(name, limit)
        with self._turn(name, 0, -1):
            size = self._cache.size(name)
            if size is not None and size <= limit:
                return self.get(name, 0, size)
            data = self.inner.read(name, limit)
            self._cache.keep(name, 0, [data], to_end=True)
        return data

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:
        if not _is_cached(name):
            return self.inner.read_end(name, most)
        with self._turn(name, -most, most):
            size = self._cache.size(name)
            if size is not None:
                start = max(0, size - most)
                return self.get(name, start, size - start), size
            data, size = self.inner.read_end(name, most)
            self._cache.keep(name, size - len(data), [data], to_end=True)
        return data, size

    def put(self, name: str, parts: Parts) -> bool:
        created = self.inner.put(name, parts)
        if created:
            self._keep_written(name, parts)
        return created

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        return _CachedBatch(
            self.inner.batch(names, assume_absent=assume_absent), self._keep_written
        )

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        self.inner.copy_from(source, names, called)

    def delete(self, name: str) -> None:
        self._cache.drop(name)
        self.inner.delete(name)

    def delete_all(self, names: Sequence[str]) -> None:
        for name in names:
            self._cache.drop(name)
        self.inner.delete_all(names)

    def direct(self) -> ObjectStore:
        """Return the inner store."""
        return self.inner

    def forget(self, name: str) -> bool:
        """Drop all cached data of an object, as `ObjectStore.forget` does.

        Also returns True if the cache answered an earlier read, because another thread or process
        may have dropped the copy since then.
        """
        dropped = self._cache.drop(name)
        return self.inner.forget(name) or dropped or name in self._cache.served

    def _keep_written(self, name: str, parts: Parts) -> None:
        """Cache a written object: its writer probably needs it as the base of the next version."""
        if _is_cached(name) and sum(map(len, parts)) <= MAX_WRITTEN:
            self._cache.keep(name, 0, parts, to_end=True)

    @contextmanager
    def _turn(self, name: str, start: int, size: int) -> Iterator[None]:
        """Let one of the threads that want the same range run; the others wait until it is done."""
        key = (os.getpid(), name, start, size)  # a forked child has none of its parent's threads
        mine = threading.Event()
        first = self._fetches.setdefault(key, mine)
        if first is not mine:
            first.wait()
            yield
            return
        try:
            yield
        finally:
            del self._fetches[key]
            mine.set()


class _CachedBatch(WrapperBatch):
    """A batch that adds the objects it creates to the cache."""

    def __init__(self, inner: Batch, keep: Callable[[str, Parts], None]) -> None:
        super().__init__(inner)
        self._keep = keep
        self._parts: dict[str, Parts] = {}

    def put(self, name: str, parts: Parts) -> None:
        super().put(name, parts)
        self._parts.setdefault(name, parts)

    def finish(self) -> None:
        super().finish()
        for name, parts in self._parts.items():
            if name in self.created:
                self._keep(name, parts)


def _is_cached(name: str) -> bool:
    return name.startswith(CACHED_PREFIXES) or name.endswith(CACHED_SUFFIX)
