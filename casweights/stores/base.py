"""The interface of a store.

A driver implements six methods: `ObjectStore.url`, `put`, `size`, `readinto`, `list` and `delete`.
All other methods of the class have defaults that call these six. A driver may override a default
with a faster method. Abilities that only some stores have are in `casweights.stores.optional`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Self, TypeVar, final

from casweights.errors import ErrorCode, IntegrityError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from casweights.system.buffers import Buffer

    Parts = Sequence[Buffer]

_PART = r"[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]{0,254}"  # file systems allow 255 bytes
_NAME = re.compile(rf"{_PART}(/{_PART})*")
_MAX_NAME = 512  # characters; leaves room for the store's own folder in any system's path limit

NO_NAMES: Mapping[str, str] = MappingProxyType({})

_Ability = TypeVar("_Ability")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object in a listing.

    Attributes:
        name: Name of the object in the store.
        size: Number of bytes.
        created: Creation time by the store's own clock, in microseconds since 1970; 0 if the store
            records no times. Comparisons ignore it. It shows how old an object is. It shows which
            of two objects was created first only if `Capabilities.clock_skew` is known.
    """

    name: str
    size: int
    created: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The guarantees of a store and the cost of its calls. The defaults fit a local disk.

    Attributes:
        exclusive_create: When several writers `put` the same name, the store reports to exactly
            one of them that it created the object.
        listing_lags: A listing may omit an object that was put shortly before.
        cheap_reads: A read or a listing takes well below a millisecond, as on a local disk. If
            False, each one is a round trip over a network: readers fetch ahead in large pieces,
            and read only what they need.
        parallel_puts: Number of large objects to put at the same time. Writers hold them all in
            memory, so this is the smallest number that keeps the store busy.
        clock_skew: Seconds by which the clocks behind `ObjectInfo.created` may differ. None if
            these times do not order objects, as in a directory, where a copied file gets a new
            time.
        durable: An object that `put` created survives a power cut. If False, its name may be lost,
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

    `ObjectStore.batch` creates a batch. Use it in a ``with`` block, and put the objects in the
    order of the batch's names. After a `put`, the store may already know the object's locator. An
    object becomes visible at some time between its `put` and the end of the block, and never
    before the objects put earlier. After the block, all objects are visible and durable. If the
    block raises, objects that are not visible yet are discarded.

    The caller must not change the bytes before the block ends, because a retry sends them again.

    Attributes:
        created: Names of the objects that this batch created; complete after the block.
    """

    created: set[str]

    @abstractmethod
    def put(self, name: str, parts: Parts) -> None:
        """Create an object, as `ObjectStore.put` does.

        Raises:
            InvalidInputError: `name` is not one of the batch's names.
            StoreError: The object could not be written.
        """

    @abstractmethod
    def finish(self) -> None:
        """Make all objects visible. A ``with`` block calls this at its end."""

    @abstractmethod
    def abandon(self) -> None:
        """Discard objects that are not visible yet. A ``with`` block calls this after an error."""

    def __enter__(self) -> Self:
        """Return the batch."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Call `finish`, or `abandon` after an error."""
        if kind is None:
            self.finish()
        else:
            self.abandon()


class ObjectStore(ABC):
    """Immutable objects by name. Several threads may call all methods at the same time.

    Attributes:
        capabilities: Guarantees and costs of this store.
    """

    capabilities: Capabilities = Capabilities()

    @property
    @abstractmethod
    def url(self) -> str:
        """URL or path of this store, for messages; `casweights.open` accepts that of its own."""

    @abstractmethod
    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create an object from the concatenation of `parts`.

        The call is atomic and durable: once it returns, the whole object survives a crash; until
        then, no reader sees any part of it. An existing object of this name is left unchanged. The
        store must not keep a reference to the parts.

        Returns:
            Whether this call created the object.

        Raises:
            NotFoundError: An object that `require` named is gone or was replaced.
            StoreError: The object could not be written; nothing is left under its name.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the number of bytes of an object.

        Raises:
            NotFoundError: The object does not exist.
        """

    @abstractmethod
    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the object's bytes from offset `start` on.

        Raises:
            NotFoundError: The object does not exist.
            IntegrityError: The object ends before `out` is full.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects whose names begin with `prefix` (any string), ordered by name."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete an object durably. Deleting an object that does not exist is no error."""

    def ability(self, kind: type[_Ability]) -> _Ability | None:
        """Return this store, or a store that it wraps, if it has an optional ability; else None.

        Args:
            kind: A protocol of `casweights.stores.optional`, or the class of a driver.
        """
        return self if isinstance(self, kind) else None

    def create(self) -> None:  # noqa: B027  most stores need no preparation
        """Create the directory or bucket of the store, unless it exists.

        No other method creates it.
        """

    def probe(self) -> Capabilities:
        """Determine the actual capabilities, and return them. The store may write to test them.

        A writer that relies on a capability calls this first; readers use `capabilities` directly.
        """
        return self.capabilities

    def require(self, name: str) -> None:  # noqa: B027  most stores do not go away
        """Make later writes fail unless this object still exists and is unchanged.

        The directory or bucket of an open store may disappear. A write must neither create it
        again nor write to another store that is now at the same path.

        Raises:
            NotFoundError: The object does not exist.
        """

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        """Begin to put several objects, in as few requests as the store allows.

        Example:
            >>> with store.batch(["packs/a", "snapshots/b"]) as batch:
            ...     batch.put("packs/a", [pack])
            ...     batch.put("snapshots/b", [snapshot])

        Args:
            names: The objects to be put, in order: an object after those that it refers to.
            assume_absent: The caller guarantees that no object with other content has one of these
                names, so the store may skip the look-up.
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
            For each object, whether this call created it.

        Raises:
            StoreError: An object could not be written; the objects after it were not written.
        """
        with self.batch([name for name, _ in objects], assume_absent=assume_absent) as batch:
            for name, parts in objects:
                batch.put(name, parts)
        return [name in batch.created for name, _ in objects]

    def list_names(self, prefix: str = "") -> Iterator[str]:
        """Return the names of the objects that `list` returns. Some stores find them faster."""
        return (info.name for info in self.list(prefix))

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        """Copy objects from another store, in this order. Objects that exist here are left as is.

        Args:
            source: The store to copy from; this one, to copy objects to other names.
            names: The objects to create.
            called: The names in `source` of those objects that have another name there.

        Raises:
            NotFoundError: An object does not exist in `source`.
            StoreError: An object could not be read or written.
        """
        for name in names:
            self.put(name, [source.get(called.get(name, name))])

    def delete_all(self, names: Sequence[str]) -> None:
        """Delete several objects, in this order, in as few calls as the store allows.

        The last object is deleted after the deletion of all others is durable. So even after a
        crash, it exists as long as one of the others does.
        """
        for name in names:
            self.delete(name)

    def exists(self, name: str) -> bool:
        """Return whether an object of this name exists."""
        try:
            self.size(name)
        except NotFoundError:
            return False
        return True

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Return the sizes in bytes of the existing ones among these objects, by name."""
        found = {}
        for name in names:
            with suppress(NotFoundError):
                found[name] = self.size(name)
        return found

    def present(self, names: Iterable[str]) -> set[str]:
        """Return those of these objects that exist now; nothing remembered counts as proof."""
        return set(self.sizes(names))

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Return an object's bytes from `start` on: `size` of them, or all up to the end.

        Raises:
            NotFoundError: The object does not exist.
            IntegrityError: The object ends before `start + size`.
        """
        if size is None:
            size = self.size(name) - start
        out = bytearray(size)
        self.readinto(name, start, memoryview(out))
        return bytes(out)

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole object of at most `limit` bytes.

        Raises:
            NotFoundError: The object does not exist.
            IntegrityError: The object is larger than `limit`.
        """
        return self.get(name, 0, check_size(name, self.size(name), limit))

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:
        """Return the end of an object, and the number of bytes of the whole object.

        Args:
            name: Name of the object.
            most: Bytes to return, at least 1; all of an object that has fewer.

        Raises:
            NotFoundError: The object does not exist.
        """
        size = self.size(name)
        start = max(0, size - most)
        return self.get(name, start, size - start), size

    def forget(self, name: str) -> bool:
        """Drop all cached data of an object: its locator and copies of its bytes.

        A reader calls this when it finds the object damaged: possibly only the cached copy is.

        Returns:
            Whether anything was dropped, so that another read may return other bytes.
        """
        return False


class _PutBatch(Batch):
    """A batch of a store that puts objects one by one."""

    def __init__(self, store: ObjectStore, names: Sequence[str]) -> None:
        self._store = store
        self._names = frozenset(names)
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        if self._store.put(check_member(name, self._names), parts):
            self.created.add(name)

    def finish(self) -> None:
        """Do nothing: every object is already visible."""

    def abandon(self) -> None:
        """Do nothing: every object is already visible."""


def check_name(name: str) -> str:
    """Return `name`, if every store can hold an object of that name.

    Raises:
        InvalidInputError: The name is longer than 512 characters, or one of its parts between
            slashes is empty, longer than 255 characters, begins with a dot, or has characters other
            than ASCII letters, digits and ``._@+=-``.
    """
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidInputError(
            ErrorCode.BAD_NAME,
            f"{name!r} is not a valid object name: use ASCII letters, digits and ._@+=- in parts "
            f"that do not begin with a dot, at most {_MAX_NAME} characters in total",
        )
    return name


def check_member(name: str, names: Container[str]) -> str:
    """Return `name`, if it is one of a batch's names.

    Raises:
        InvalidInputError: The batch did not begin with this name.
    """
    if name not in names:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"{name!r} must be one of the names that the batch began with"
        )
    return name


def check_size(name: str, size: int, limit: int) -> int:
    """Return `size`, the number of bytes of an object, if it is within `limit`.

    Raises:
        IntegrityError: `size` exceeds `limit`.
    """
    if size > limit:
        raise IntegrityError(
            ErrorCode.CORRUPT_OBJECT,
            f"{name} is damaged: it has {size} bytes, but at most {limit} are allowed",
        )
    return size


def missing(name: str) -> NotFoundError:
    """Return the error for an object that does not exist."""
    return NotFoundError(ErrorCode.OBJECT_NOT_FOUND, f"the store has no object {name}")


def truncated(name: str) -> IntegrityError:
    """Return the error for an object with fewer bytes than expected."""
    return IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name} is damaged: it is truncated")
