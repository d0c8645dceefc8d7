"""A store in the memory of this process, for tests and experiments."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casweights.stores.base import (
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    missing,
    truncated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.system.buffers import Buffer


class MemoryStore(ObjectStore):
    """Objects in a dictionary, which are lost when the process ends."""

    capabilities = Capabilities(exclusive_create=True)

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._created: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Always ``memory://``."""
        return "memory://"

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        data = b"".join(parts)
        with self._lock:
            created = check_name(name) not in self._objects
            if created:
                self._objects[name] = data
                self._created[name] = time.time_ns() // 1000
        return created

    def size(self, name: str) -> int:
        return len(self._get(name))

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        data = memoryview(self._get(name))[start : start + len(out)]
        if len(data) != len(out):
            raise truncated(name)
        out[:] = data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            names = sorted(name for name in self._objects if name.startswith(prefix))
            infos = [
                ObjectInfo(name, len(self._objects[name]), self._created.get(name, 0))
                for name in names
            ]
        return iter(infos)

    def delete(self, name: str) -> None:
        with self._lock:
            self._objects.pop(check_name(name), None)

    def _get(self, name: str) -> bytes:
        try:
            return self._objects[check_name(name)]
        except KeyError:
            raise missing(name) from None
