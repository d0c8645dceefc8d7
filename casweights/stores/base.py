"""What every store can do."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, IntegrityError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Buffer = bytes | bytearray | memoryview

_PART = r"[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]{0,254}"  # what file systems take
_NAME = re.compile(rf"{_PART}(/{_PART})*")
_MAX_NAME = 512


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object, as a listing shows it.

    Attributes:
        name: Its name in the store.
        size: Its bytes.
    """

    name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store guarantees beyond the minimum.

    Attributes:
        exclusive_create: Of all writers that `put` one name, exactly one is told that it created
            the object.
    """

    exclusive_create: bool


class ObjectStore(ABC):
    """Immutable objects by name. All methods may be called from several threads at once."""

    capabilities: Capabilities

    @property
    @abstractmethod
    def url(self) -> str:
        """How to name this store to `casweights.open`."""

    @abstractmethod
    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create an object from the concatenation of `parts`.

        Atomic and durable: once this returns, the whole object survives a crash; before, nobody
        sees any of it. An object of that name that is already there stays as it is.

        Returns:
            Whether the object was created now.

        Raises:
            StoreError: It could not be written; nothing is left under its name.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of an object.

        Raises:
            NotFoundError: There is no such object.
        """

    @abstractmethod
    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the object's bytes from offset `start` on.

        Raises:
            NotFoundError: There is no such object.
            IntegrityError: The object ends before `out` is full.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose names begin with `prefix` (a string, not a folder), ordered by name."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is removed already."""

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """An object's bytes, or `size` of them from `start` on.

        Raises:
            NotFoundError: There is no such object.
            IntegrityError: The object ends before `start + size`.
        """
        if size is None:
            size = self.size(name) - start
        out = bytearray(size)
        self.readinto(name, start, memoryview(out))
        return bytes(out)

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size(name)
        except NotFoundError:
            return False
        return True


def check_name(name: str) -> str:
    """`name`, if every store can hold an object of that name.

    Raises:
        InvalidInputError: It or a part of it is too long, has empty parts, parts that begin with a
            dot, or characters beyond ASCII letters, digits and ``._@+=-``.
    """
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidInputError(ErrorCode.BAD_NAME, f"{name!r} is no possible object name")
    return name


def missing(name: str) -> NotFoundError:
    """The error for an object that is not there."""
    return NotFoundError(ErrorCode.OBJECT_NOT_FOUND, f"the store has no object {name}")


def truncated(name: str) -> IntegrityError:
    """The error for an object that ends too early."""
    return IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name} is damaged: it is truncated")
