"""From a store's URL to its driver."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, InvalidInputError, UnsupportedError
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore


def open_object_store(url: str | os.PathLike[str]) -> ObjectStore:
    """The store that `url` names: a directory's path, or ``memory://`` for a new one in memory.

    Raises:
        UnsupportedError: A scheme that is not supported.
    """
    text = os.fspath(url)
    if not text:
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, "the store's path is empty")
    if text == "memory://":
        return MemoryStore()
    scheme, separator, _ = text.partition("://")
    if separator and scheme != "file":
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{scheme}:// stores are not supported yet: give the path of a directory",
        )
    return LocalStore(Path(text.removeprefix("file://")).absolute())
