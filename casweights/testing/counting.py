"""A store that counts what is read and written."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.stores.base import ObjectStore
    from casweights.system.buffers import Buffer


class CountingStore(WrapperStore):
    """Another store, and a record of what was read and written.

    Attributes:
        reads: Name and bytes of every read.
        writes: Name and bytes of every object that was created.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start counting from zero."""
        self.reads: list[tuple[str, int]] = []
        self.writes: list[tuple[str, int]] = []

    def read_bytes(self, prefix: str) -> int:
        """Bytes read from objects whose names begin with `prefix`."""
        return sum(nbytes for name, nbytes in self.reads if name.startswith(prefix))

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        created = super().put(name, parts)
        if created:
            with self._lock:
                self.writes.append((name, sum(map(len, parts))))
        return created

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        super().readinto(name, start, out)
        with self._lock:
            self.reads.append((name, len(out)))
