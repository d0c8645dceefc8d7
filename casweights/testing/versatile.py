"""A store in memory with the optional abilities that few drivers have."""

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
    """A store in memory that copies objects, replaces them by tag, and reports changes.

    It is the reference for the abilities `SupportsCopy`, `SupportsReplace` and `SupportsChanges`
    of `casweights.stores.optional`, and serves to test wrappers.

    Example:
        >>> store = VersatileStore()
        >>> tag = store.replace("head", [b"1"], None)  # no object yet, hence no tag
        >>> store.replace("head", [b"other"], None) is None  # refused: there is one now
        True
        >>> store.replace("head", [b"2"], tag) is None
        False
    """

    def __init__(self) -> None:
        super().__init__()
        self._past: list[str] = []  # names, the earliest change first; its length is the cursor
        self._tags: dict[str, str] = {}
        self._changed = threading.Condition()

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        with self._changed:
            created = super().put(name, parts)
            if created:
                self._note(name)
            return created

    def delete(self, name: str) -> None:
        with self._changed:
            super().delete(name)
            if self._tags.pop(name, None) is not None:
                self._note(name, gone=True)

    def copy(self, name: str, new_name: str) -> bool:
        """Copy an object to a new name; return whether the copy was created.

        Raises:
            NotFoundError: There is no object `name`.
        """
        return self.put(new_name, [self.get(name)])

    def tag(self, name: str) -> str | None:
        """Return the tag of an object, which changes with every replacement; None if missing."""
        return self._tags.get(name)

    def replace(self, name: str, parts: Parts, tag: str | None) -> str | None:
        """Replace the object that has this tag, or create it if `tag` is None.

        Returns:
            The new tag, or None if the object has another tag and was left as it is.
        """
        with self._changed:
            if self.tag(name) != tag:
                return None
            super().delete(name)  # not `self.delete`: a replacement is one change, not two
            self.put(name, parts)
            return self.tag(name)

    def changes(self, cursor: str | None = None, *, timeout: float = 0.0) -> Changes:
        """Return the names that changed since `cursor`, and the cursor to continue from.

        Without a cursor no names are returned, only the current cursor. Wait up to `timeout`
        seconds for the first change.
        """
        with self._changed:
            start = len(self._past) if cursor is None else int(cursor)
            self._changed.wait_for(lambda: len(self._past) > start, timeout)
            return Changes(self._past[start:], str(len(self._past)))

    def _note(self, name: str, *, gone: bool = False) -> None:
        """Record a change, while the caller holds the lock, and wake the clients that wait."""
        self._past.append(name)
        if not gone:
            self._tags[name] = str(len(self._past))
        self._changed.notify_all()
