"""A cache on disk in front of a remote store.

Nothing here may fail because of the cache: where it cannot be used, the store behind it is.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casweights.stores.base import ObjectStore
from casweights.stores.disk_cache import DiskCache
from casweights.stores.wrapper import WrapperBatch, WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights.stores.base import Batch, Parts

CACHED_PREFIXES = ("packs/", "snapshots/")  # names that come from the content
MAX_WRITTEN = 80 << 20  # what was written and is larger is not kept; packs are not


class CachedStore(WrapperStore):
    """Another store, and on disk what was read from it lately.

    Only reads of packs and snapshots, which never change, are answered from the cache, and then
    without a look whether the object is still there. All else is passed on.

    Args:
        inner: The store behind.
        folder: The cache's root, which any number of processes and stores may share. Made when
            there is something to keep.
        capacity: Bytes of everything below `folder`. Beyond it, what was not used for longest goes.
            Processes that write at the same time may exceed it together by 5 % for each of them.
        key: What tells `inner` from all other stores.
    """

    def __init__(self, inner: ObjectStore, folder: Path, capacity: int, key: str) -> None:
        super().__init__(inner)
        self._cache = DiskCache(folder, capacity, key)
        self._fetches: dict[tuple[int, str, int, int], threading.Event] = {}

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
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
        """See `ObjectStore.get`."""
        if not _is_cached(name):
            return self.inner.get(name, start, size)
        if size is None:
            whole = self._cache.whole_size(name)
            size = (self.inner.size(name) if whole is None else whole) - start
        return ObjectStore.get(self, name, start, size)

    def read(self, name: str, limit: int) -> bytes:
        """See `ObjectStore.read`."""
        if not _is_cached(name):
            return self.inner.read(name, limit)
        with self._turn(name, 0, -1):
            size = self._cache.whole_size(name)
            if size is not None and size <= limit:
                return self.get(name, 0, size)
            data = self.inner.read(name, limit)
            self._cache.keep(name, 0, [data], whole=True)
        return data

    def put(self, name: str, parts: Parts) -> bool:
        """See `ObjectStore.put`."""
        created = self.inner.put(name, parts)
        if created:
            self._keep_written(name, parts)
        return created

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        """See `ObjectStore.batch`."""
        return _CachedBatch(
            self.inner.batch(names, assume_absent=assume_absent), self._keep_written
        )

    def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
        """See `ObjectStore.copy_from`: what is copied is not kept."""
        self.inner.copy_from(source, names)

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self._cache.drop(name)
        self.inner.delete(name)

    def delete_all(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete_all`."""
        for name in names:
            self._cache.drop(name)
        self.inner.delete_all(names)

    def forget(self, name: str) -> bool:
        """See `ObjectStore.forget`.

        True too if a read was answered from what another thread or process has dropped since.
        """
        dropped = self._cache.drop(name)
        return self.inner.forget(name) or dropped or name in self._cache.served

    def _keep_written(self, name: str, parts: Parts) -> None:
        """Keep what was written: its writer most likely needs it as a base of what comes next."""
        if _is_cached(name) and sum(map(len, parts)) <= MAX_WRITTEN:
            self._cache.keep(name, 0, parts, whole=True)

    @contextmanager
    def _turn(self, name: str, start: int, size: int) -> Iterator[None]:
        """Of several threads that want the same, let one go ahead, and the rest once it is done."""
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
    """A batch that keeps the objects that it creates."""

    def __init__(self, inner: Batch, keep: Callable[[str, Parts], None]) -> None:
        super().__init__(inner)
        self._keep = keep
        self._parts: dict[str, Parts] = {}

    def put(self, name: str, parts: Parts) -> None:
        """See `Batch.put`."""
        super().put(name, parts)
        self._parts.setdefault(name, parts)

    def finish(self) -> None:
        """See `Batch.finish`."""
        super().finish()
        for name, parts in self._parts.items():
            if name in self.created:
                self._keep(name, parts)


def _is_cached(name: str) -> bool:
    return name.startswith(CACHED_PREFIXES)
