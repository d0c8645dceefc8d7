"""A store in memory with abilities of `casweights.stores.optional` that few drivers have."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casweights.stores.memory import MemoryStore
from casweights.stores.optional import Changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.stores.base import Parts
    from casweights.system.buffers import Buffer


class VersatileStore(MemoryStore):
    """Copies within the store, replaces by tag, and tells what has changed.

    It shows what these abilities mean, and lets wrappers and drivers be tested against them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._past: list[str] = []  # names, the earliest change first; its length is the cursor
        self._tags: dict[str, str] = {}
        self._changed = threading.Condition()

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        with self._changed:
            created = super().put(name, parts)
            if created:
                self._note(name)
            return created

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        with self._changed:
            super().delete(name)
            if self._tags.pop(name, None) is not None:
                self._note(name, gone=True)

    def copy(self, name: str, new_name: str) -> bool:
        """See `SupportsCopy.copy`."""
        return self.put(new_name, [self.get(name)])

    def tag(self, name: str) -> str | None:
        """See `SupportsReplace.tag`."""
        return self._tags.get(name)

    def replace(self, name: str, parts: Parts, tag: str | None) -> str | None:
        """See `SupportsReplace.replace`."""
        with self._changed:
            if self.tag(name) != tag:
                return None
            super().delete(name)
            self.put(name, parts)
            return self.tag(name)

    def changes(self, cursor: str | None = None, *, timeout: float = 0.0) -> Changes:
        """See `SupportsChanges.changes`."""
        with self._changed:
            start = len(self._past) if cursor is None else int(cursor)
            self._changed.wait_for(lambda: len(self._past) > start, timeout)
            return Changes(self._past[start:], str(len(self._past)))

    def _note(self, name: str, *, gone: bool = False) -> None:
        self._past.append(name)
        if not gone:
            self._tags[name] = str(len(self._past))
        self._changed.notify_all()
