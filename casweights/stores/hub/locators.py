"""Locators of objects in Xet storage, and a store's memory of them."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_LAYOUT = struct.Struct("<32sQ")  # hash and size
_MAX_SIZE = 1 << 40  # bytes; a larger size is invalid, so that it cannot exhaust memory


class XetLocator(NamedTuple):
    """Address of an object's bytes in Xet storage.

    Attributes:
        hash: Xet hash of the bytes: 64 hexadecimal digits.
        size: Number of bytes.
    """

    hash: str
    size: int

    def encode(self) -> bytes:
        """Return the locator as 40 bytes, for `SupportsLocators.locator`."""
        return _LAYOUT.pack(bytes.fromhex(self.hash), self.size)

    @classmethod
    def decode(cls, data: bytes) -> Self | None:
        """Return the locator that `encode` turned into these bytes; None if they are invalid."""
        if len(data) != _LAYOUT.size:
            return None
        xet_hash, size = _LAYOUT.unpack(data)
        return None if size > _MAX_SIZE else cls(xet_hash.hex(), size)


EMPTY = XetLocator("0" * 64, 0)  # of an object without bytes, which is never uploaded


class KnownLocators:
    """Locators of a store's objects, by name.

    A locator is *confirmed* if the Hub reported it or this process uploaded the bytes. It is
    *claimed* if it comes from `use_locator`: another writer recorded it, and it may be wrong.
    Either may go out of date.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locators: dict[str, XetLocator] = {}
        self._claimed: set[str] = set()

    def get(self, name: str) -> XetLocator | None:
        """Return an object's locator; None if it is not known."""
        return self._locators.get(name)

    def is_claimed(self, name: str) -> bool:
        """Return whether an object's locator was claimed and never confirmed."""
        return name in self._claimed

    def confirm(self, found: Mapping[str, XetLocator]) -> None:
        """Store locators that are known to be right now, in place of earlier ones."""
        with self._lock:
            self._locators.update(found)
            self._claimed.difference_update(found)

    def claim(self, name: str, locator: XetLocator) -> None:
        """Store a locator that may be wrong, unless one is already known."""
        with self._lock:
            if name not in self._locators:
                self._locators[name] = locator
                self._claimed.add(name)

    def forget(self, name: str) -> bool:
        """Drop an object's locator, and return whether one was known."""
        with self._lock:
            self._claimed.discard(name)
            return self._locators.pop(name, None) is not None
