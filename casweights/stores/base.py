"""The contract of a store.

A driver implements six methods: `ObjectStore.url`, `put`, `size`, `readinto`, `list` and `delete`.
Everything else that the class offers is made of these six, and may be overridden by a driver that
has something better. What only some stores can do is in `casweights.stores.optional`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar, final

from casweights.errors import ErrorCode, IntegrityError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from types import TracebackType

    from casweights.system.buffers import Buffer

    Parts = Sequence[Buffer]

_PART = r"[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]{0,254}"  # file systems allow 255 bytes
_NAME = re.compile(rf"{_PART}(/{_PART})*")
_MAX_NAME = 512  # characters; leaves room for a store's own folder in the paths of any system

_Ability = TypeVar("_Ability")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object, as a listing shows it.

    Attributes:
        name: Its name in the store.
        size: Its bytes.
        created: The store's own time for it, in microseconds since 1970; 0 where the store has
            none. Comparisons leave it out. It tells how old an object is; which of two came first
            it tells only where `Capabilities.clock_skew` is known.
    """

    name: str
    size: int
    created: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store guarantees, and what its calls cost. The defaults fit a local disk.

    Attributes:
        exclusive_create: Of all writers that `put` one name, exactly one is told that it created
            the object.
        listing_lags: A listing may leave out an object that was put shortly before.
        cheap_reads: A read or a listing takes well below a millisecond, as on a local disk.
            Otherwise each one is a round trip over a network: readers fetch ahead and in large
            pieces, and look only at what they need.
        parallel_puts: Large objects to put at the same time. Each one is in memory, so no more of
            them than keep the store busy.
        clock_skew: Seconds by which the clocks that `ObjectInfo.created` comes from may differ;
            None where these times do not order objects, as in a directory, whose files get other
            times when they are copied.
        durable: What `put` has made survives a power cut. Otherwise its name may be gone after one,
            as on a file system that cannot sync a folder.
    """

    exclusive_create: bool = False
    listing_lags: bool = False
    cheap_reads: bool = True
    parallel_puts: int = 4
    clock_skew: float | None = None
    durable: bool = True


class Batch(ABC):
    """Objects that are put together, in as few requests as the store allows.

    `ObjectStore.batch` makes it. In its ``with`` block, objects are put in the order of the batch's
    names; after a `put`, the store may know the object's locator already. An object becomes visible
    between its `put` and the end of the block, and never before those ahead of it. After the block
    all of them are visible and durable. An error in the block leaves out what is not visible yet.

    The bytes must not change before the block ends: a failed attempt is repeated from them.

    Attributes:
        created: Names of the objects that this batch created; complete after the block.
    """

    created: set[str]

    @abstractmethod
    def put(self, name: str, parts: Parts) -> None:
        """Create an object, as `ObjectStore.put` does.

        Raises:
            InvalidInputError: It is not one of the batch's names.
            StoreError: It could not be written.
        """

    def send(self, parts: Parts) -> None:  # noqa: B027  most stores have nothing to gain by it
        """Send bytes along that will be put right after this batch, under a name not known yet."""

    @abstractmethod
    def finish(self) -> None:
        """Make all objects visible. The end of the ``with`` block calls it."""

    @abstractmethod
    def abandon(self) -> None:
        """Leave out what is not visible yet. A ``with`` block that ends in an error calls it."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """`finish`, or `abandon` after an error."""
        if kind is None:
            self.finish()
        else:
            self.abandon()


class ObjectStore(ABC):
    """Immutable objects by name. All methods may be called from several threads at once."""

    capabilities: Capabilities = Capabilities()

    @property
    @abstractmethod
    def url(self) -> str:
        """How to name this store to `casweights.open`."""

    @abstractmethod
    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create an object from the concatenation of `parts`.

        Atomic and durable: once this returns, the whole object survives a crash; before, nobody
        sees any of it. An object of that name that is already there stays as it is. The store must
        not keep a reference to the parts.

        Returns:
            Whether the object was created now.

        Raises:
            NotFoundError: What the store requires is gone, see `require`.
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
        """Remove an object, durably; one that is not there is removed already."""

    def ability(self, kind: type[_Ability]) -> _Ability | None:
        """This store, or one inside it, as one that has an optional ability; None if it has not.

        Args:
            kind: A protocol of `casweights.stores.optional`, or the class of a driver.
        """
        return self if isinstance(self, kind) else None

    def create(self) -> None:  # noqa: B027  most stores need no preparation
        """Prepare the store's place, such as its folder, unless that was done.

        No other method makes that place.
        """

    def probe(self) -> Capabilities:
        """`capabilities` once they are known for certain; to find out, a store may write.

        Readers do without it. Writers that rely on a capability call it.
        """
        return self.capabilities

    def require(self, name: str) -> None:  # noqa: B027  most stores do not go away
        """From now on, write only while this object is there and is the one that it is now.

        The place of a store may disappear while the store is open. A write must not make that
        place again, or go to another store that has taken it.

        Raises:
            NotFoundError: There is no such object.
        """

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        """Begin to put several objects, in as few requests as the store allows.

        Example:
            >>> with store.batch(["packs/a", "snapshots/b"]) as batch:
            ...     batch.put("packs/a", [pack])
            ...     batch.put("snapshots/b", [snapshot])

        Args:
            names: The objects to be put, in order: an object after those that it refers to.
            assume_absent: The caller guarantees that no different object has one of these names,
                so that the store may omit to ask.
        """
        for name in names:
            check_name(name)
        return _PutBatch(self, names)

    @final
    def put_all(
        self, objects: Sequence[tuple[str, Parts]], *, assume_absent: bool = False
    ) -> Sequence[bool]:
        """`put` several objects in one `batch`.

        Returns:
            For each whether it was created now.

        Raises:
            StoreError: One could not be written, and so none behind it was.
        """
        with self.batch([name for name, _ in objects], assume_absent=assume_absent) as batch:
            for name, parts in objects:
                batch.put(name, parts)
        return [name in batch.created for name, _ in objects]

    def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
        """Create objects as they are in another store, in this order; those here stay.

        Raises:
            NotFoundError: The source does not have one of them.
            StoreError: One could not be read or written.
        """
        for name in names:
            self.put(name, [source.get(name)])

    def delete_all(self, names: Sequence[str]) -> None:
        """`delete` several objects, in this order, in as few calls as the store allows.

        The last one goes once all others are gone for good: even after a crash it is not missing
        where another one is left.
        """
        for name in names:
            self.delete(name)

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size(name)
        except NotFoundError:
            return False
        return True

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of those of these objects that are there, asked for in as few calls as possible."""
        found = {}
        for name in names:
            with suppress(NotFoundError):
                found[name] = self.size(name)
        return found

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

    def read(self, name: str, limit: int) -> bytes:
        """A whole object of at most `limit` bytes.

        Raises:
            NotFoundError: There is no such object.
            IntegrityError: It is larger.
        """
        return self.get(name, 0, check_size(name, self.size(name), limit))

    def forget(self, name: str) -> bool:
        """Drop what is remembered of an object: its locator, copies of its bytes.

        For readers that found it damaged: the memory may be damaged, and not the object.

        Returns:
            Whether there was something, so that it is worth reading once more.
        """
        return False


class _PutBatch(Batch):
    """A batch of a store that puts objects one by one."""

    def __init__(self, store: ObjectStore, names: Sequence[str]) -> None:
        self._store = store
        self._names = frozenset(names)
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        """See `Batch.put`: the object is visible at once."""
        if self._store.put(check_member(name, self._names), parts):
            self.created.add(name)

    def finish(self) -> None:
        """See `Batch.finish`."""

    def abandon(self) -> None:
        """See `Batch.abandon`."""


def check_name(name: str) -> str:
    """`name`, if every store can hold an object of that name.

    Raises:
        InvalidInputError: It or a part of it is too long, has empty parts, parts that begin with a
            dot, or characters beyond ASCII letters, digits and ``._@+=-``.
    """
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidInputError(ErrorCode.BAD_NAME, f"{name!r} is no possible object name")
    return name


def check_member(name: str, names: Container[str]) -> str:
    """`name`, if it is one of a batch's names.

    Raises:
        InvalidInputError: It is not.
    """
    if name not in names:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"{name!r} must be one of the names that the batch began with"
        )
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
