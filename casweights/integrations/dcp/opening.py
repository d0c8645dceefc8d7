"""Stores that every process opens for itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from casweights.opening import open_repository
from casweights.repository import Repository
from casweights.system.handles import belongs_here

if TYPE_CHECKING:
    from collections.abc import Mapping


class LazyRepository:
    """A store, or the way to one: what is pickled is its URL, and it is opened when needed.

    Args:
        store: The store, or its path or URL.
    """

    def __init__(self, store: Repository | str | os.PathLike[str]) -> None:
        self._opened = store if isinstance(store, Repository) else None
        self._url = store.url if isinstance(store, Repository) else os.fspath(store)

    def open(self) -> Repository:
        """The store, the same one every time in a process.

        Raises:
            NotFoundError: There is none.
            StoreError: The storage failed.
        """
        if self._opened is None or not belongs_here(self._opened):
            self._opened = open_repository(self._url)
        return self._opened

    def __getstate__(self) -> Mapping[str, Any]:
        """Everything but what is open."""
        return {"_opened": None, "_url": self._url}
