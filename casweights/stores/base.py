"""What every store can do."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from casweights.system.buffers import Buffer

    Parts = Sequence[Buffer]
    Content = Parts | Callable[[], Parts]
    Range = tuple[str, int, int]  # name, start, stop
    Announce = Callable[[Iterable[Sequence[Range]]], None]

_PART = r"[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]{0,254}"  # what file systems take
_NAME = re.compile(rf"{_PART}(/{_PART})*")
_MAX_NAME = 512


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object, as a listing shows it.

    Attributes:
        name: Its name in the store.
        size: Its bytes.
        created: When the store says that it was created, in microseconds since 1970; 0 where the
            store has no clock of its own. Comparisons leave it out.
    """

    name: str
    size: int
    created: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store guarantees beyond the minimum.

    Attributes:
        exclusive_create: Of all writers that `put` one name, exactly one is told that it created
            the object.
        remote: Every call is a round trip over a network: readers fetch ahead, in large pieces,
            and look only where they must.
        clock_skew: Seconds by which the clocks that `ObjectInfo.created` comes from may differ.
        durable: What `put` has made survives a power cut. Otherwise its name may be gone after one,
            as on a file system that cannot sync a folder.
    """

    exclusive_create: bool
    remote: bool = False
    clock_skew: float = 0.0
    durable: bool = True


class ObjectStore(ABC):
    """Immutable objects by name. All methods may be called from several threads at once."""

    capabilities: Capabilities

    @property
    @abstractmethod
    def url(self) -> str:
        """How to name this store to `casweights.open`."""

    def create(self) -> None:  # noqa: B027  most stores have their place, or make it as needed
        """Make the place that objects go to, unless it is there; no other method makes it."""

    def share(self) -> None:
        """`create` the place as one that all users of the folder's group may write to.

        Raises:
            UnsupportedError: This kind of store leaves to others who may write to it.
        """
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{self.url} cannot be shared by a group of this machine's users: only stores in "
            "directories can",
        )

    def probe(self) -> Capabilities:
        """`capabilities` once they are known for certain; to find out, a store may write.

        Who lists or reads need not ask. Who relies on them to write, or shows them, does.
        """
        return self.capabilities

    def require(self, name: str) -> None:  # noqa: B027  most stores do not go away
        """From now on, write only while this object is there and is the one that it is now.

        The place of a store may disappear while the store is open. A write must not make that
        place again, or go to another store that has taken it.

        Raises:
            NotFoundError: There is no such object.
        """

    @abstractmethod
    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create an object from the concatenation of `parts`.

        Atomic and durable: once this returns, the whole object survives a crash; before, nobody
        sees any of it. An object of that name that is already there stays as it is.

        Returns:
            Whether the object was created now.

        Raises:
            NotFoundError: What the store requires is gone, see `require`.
            StoreError: It could not be written; nothing is left under its name.
        """

    def put_all(
        self,
        objects: Sequence[tuple[str, Content]],
        soon: Sequence[Parts] = (),
        *,
        new: bool = False,
    ) -> list[bool]:
        """`put` several objects, in as few calls as the store allows.

        None is visible before those ahead of it are.

        Args:
            objects: Names and parts. Instead of the parts there may be a function that returns
                them; it is called once the `place` of every object ahead is known.
            soon: Bytes of objects that will be put right afterwards, which may be sent along.
            new: Whether no such object can be there, or the very same at most, so that a store
                need not ask.

        Returns:
            For each whether it was created now.

        Raises:
            StoreError: One could not be written, and so none behind it was.
        """
        return [
            self.put(name, content() if callable(content) else content) for name, content in objects
        ]

    def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
        """Create objects as they are in another store, in this order; those here stay.

        Raises:
            NotFoundError: The source does not have one of them.
            StoreError: One could not be read or written.
        """
        for name in names:
            self.put(name, [source.get(name)])

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

    def strays(self) -> dict[str, str]:
        """Names of what lies in the store and can be no object, and what each is.

        Whoever lists or reads objects is not bothered by them.
        """
        return {}

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, durably; one that is not there is removed already."""

    def delete_all(self, names: Sequence[str]) -> None:
        """`delete` several objects, in this order, in as few calls as the store allows.

        The last one goes once all others are gone for good: even after a crash it is not missing
        where another one is left.
        """
        for name in names:
            self.delete(name)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of those of these objects that are there, asked for in as few calls as possible."""
        found = {}
        for name in names:
            with suppress(NotFoundError):
                found[name] = self.size(name)
        return found

    def read(self, name: str, limit: int) -> bytes:
        """A whole object of at most `limit` bytes.

        Raises:
            NotFoundError: There is no such object.
            IntegrityError: It is larger.
        """
        return self.get(name, 0, check_size(name, self.size(name), limit))

    def place(self, name: str) -> bytes | None:
        """What would save another reader looking this object up, if the store knows of anything.

        Only this kind of store can make something of it. It may go out of date.
        """
        return None

    def hint(self, name: str, place: bytes) -> None:  # noqa: B027  most stores need no help
        """Tell the store what `place` said of an object earlier; what is of no use is ignored."""

    def ahead(self) -> AbstractContextManager[Announce]:
        """For readers who know what they will read: a function to announce it with.

        It takes groups of ranges, in the order in which they will be read; those of a group are
        read at about the same time, and each range as a whole. Where that gains something, they
        are fetched before they are asked for. At the end, what was not asked for is dropped.
        """
        return nullcontext(lambda _: None)

    def forget(self, name: str) -> bool:
        """Drop what is remembered of an object: its place, copies of its bytes.

        For readers who found it damaged: what they remember may be, and not the object.

        Returns:
            Whether there was something, so that it is worth reading once more.
        """
        return False

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """A store with exclusive create for refs alone, as ``casweights.json`` names it.

        Whoever may write to this store can make ``casweights.json`` name any place. So nothing is
        read from there and nothing written, unless that place says by itself that it keeps the
        refs of the store of this ID that lies here; its `create` makes it say so.

        Raises:
            UnsupportedError: Refs of this kind of store lie in the store itself.
        """
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED, f"{self.url} cannot keep its refs elsewhere, in {where}"
        )

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


def check_size(name: str, size: int, limit: int) -> int:
    """`size`, if the object may be that large.

    Raises:
        IntegrityError: It is larger than `limit`.
    """
    if size > limit:
        raise IntegrityError(
            ErrorCode.CORRUPT_OBJECT, f"{name} is damaged: it has {size} bytes, too many"
        )
    return size


def missing(name: str) -> NotFoundError:
    """The error for an object that is not there."""
    return NotFoundError(ErrorCode.OBJECT_NOT_FOUND, f"the store has no object {name}")


def truncated(name: str) -> IntegrityError:
    """The error for an object that ends too early."""
    return IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name} is damaged: it is truncated")
