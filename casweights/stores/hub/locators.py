"""Where the bytes of objects lie in Xet storage, and what a store knows of that."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_LAYOUT = struct.Struct("<32sQ")  # hash and size
_MAX_SIZE = 1 << 40  # bytes; a locator that says more is nonsense, and memory is not spent on it


class XetLocator(NamedTuple):
    """Where bytes lie in Xet storage.

    Attributes:
        hash: Their Xet hash: 64 hexadecimal digits.
        size: Their number.
    """

    hash: str
    size: int

    def encode(self) -> bytes:
        """The same as bytes, for `SupportsLocators.locator`."""
        return _LAYOUT.pack(bytes.fromhex(self.hash), self.size)

    @classmethod
    def decode(cls, data: bytes) -> Self | None:
        """The locator that `encode` turned into these bytes; None if they are something else."""
        if len(data) != _LAYOUT.size:
            return None
        xet_hash, size = _LAYOUT.unpack(data)
        return None if size > _MAX_SIZE else cls(xet_hash.hex(), size)


EMPTY = XetLocator("0" * 64, 0)  # of an object without bytes, which is never uploaded


class KnownLocators:
    """The locators of a store's objects, by name.

    One is *confirmed* if the Hub told it or we uploaded the bytes, and *claimed* if it only comes
    from `use_locator`: somebody wrote it down, and it may be wrong. Each may go out of date.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locators: dict[str, XetLocator] = {}
        self._claimed: set[str] = set()

    def get(self, name: str) -> XetLocator | None:
        """An object's locator, if it is known."""
        return self._locators.get(name)

    def is_claimed(self, name: str) -> bool:
        """Whether nobody but the caller of `use_locator` has told it."""
        return name in self._claimed

    def confirm(self, found: Mapping[str, XetLocator]) -> None:
        """Take locators that are right at this moment."""
        with self._lock:
            self._locators.update(found)
            self._claimed.difference_update(found)

    def claim(self, name: str, locator: XetLocator) -> None:
        """Take a locator that may be wrong, unless one is known."""
        with self._lock:
            if name not in self._locators:
                self._locators[name] = locator
                self._claimed.add(name)

    def forget(self, name: str) -> bool:
        """Drop a locator; whether there was one."""
        with self._lock:
            self._claimed.discard(name)
            return self._locators.pop(name, None) is not None
