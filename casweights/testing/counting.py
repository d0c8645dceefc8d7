"""A store that records reads and writes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.stores.base import ObjectStore
    from casweights.system.buffers import Buffer


class CountingStore(WrapperStore):
    """A wrapper around a store that records every read and every created object.

    Attributes:
        reads: Object name and number of bytes of every read, in order.
        writes: Object name and number of bytes of every object that was created, in order.

    Example:
        >>> store = CountingStore(MemoryStore())
        >>> store.put("packs/a", [b"bytes"])
        True
        >>> store.writes
        [('packs/a', 5)]
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Clear `reads` and `writes`."""
        self.reads: list[tuple[str, int]] = []
        self.writes: list[tuple[str, int]] = []

    def read_bytes(self, *prefixes: str) -> int:
        """Number of bytes read from objects whose names begin with one of these prefixes."""
        return sum(nbytes for name, nbytes in self.reads if name.startswith(prefixes))

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        created = super().put(name, parts)
        if created:  # an existing object stays as it is: nothing was written
            with self._lock:
                self.writes.append((name, sum(map(len, parts))))
        return created

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        super().readinto(name, start, out)
        with self._lock:
            self.reads.append((name, len(out)))
