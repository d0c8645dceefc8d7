"""Abilities that only some stores have, one protocol each.

`ObjectStore.ability` returns a store with the ability, also from inside wrappers:

    >>> copying = store.ability(SupportsCopy)
    >>> if copying is not None:
    ...     copying.copy("packs/a", "fossils/a")

A driver has an ability if it has the methods; it need not derive from the protocol. Exclusive
creation is a capability (`Capabilities.exclusive_create`) and not a protocol, because it is a
guarantee of `ObjectStore.put`, and some stores can only determine it once they are open.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from casweights.stores.base import ObjectStore, Parts

    Range = tuple[str, int, int]  # name, start, stop
    Announce = Callable[[Iterable[Sequence[Range]]], None]


class Changes(NamedTuple):
    """The changes in a store since a cursor.

    Attributes:
        names: Objects that were created, replaced or deleted, the earliest change first.
        cursor: Cursor to pass to the next call.
    """

    names: Sequence[str]
    cursor: str


@runtime_checkable
class SupportsLocators(Protocol):
    """Exports and accepts locators of objects, which save readers the look-up of a name."""

    def locator(self, name: str) -> bytes | None:
        """Return an object's locator, or None if the store does not know it.

        Only stores of the same kind can read it. It may go out of date.
        """

    def use_locator(self, name: str, locator: bytes) -> None:
        """Read an object from a locator that `locator` returned. An invalid one is ignored."""


@runtime_checkable
class SupportsReadahead(Protocol):
    """Fetches announced ranges before they are read."""

    def ahead(self) -> AbstractContextManager[Announce]:
        """Return a context manager that yields a function to announce reads.

        The function accepts groups of ranges, in the order in which they will be read. The ranges
        of a group are read at about the same time, and each range as a whole. At the end of the
        ``with`` block, fetched ranges that were not read are dropped.
        """


def ahead(store: ObjectStore) -> AbstractContextManager[Announce]:
    """Call `SupportsReadahead.ahead` of a store; without that ability, announcing does nothing."""
    able = store.ability(SupportsReadahead)
    return nullcontext(lambda _: None) if able is None else able.ahead()


@runtime_checkable
class SupportsCopy(Protocol):
    """Copies an object within the store, without moving its bytes to the client and back."""

    def copy(self, name: str, new_name: str) -> bool:
        """Create the object `new_name` with the bytes of `name`, as `ObjectStore.put` would.

        Returns:
            Whether this call created the object.

        Raises:
            NotFoundError: The object `name` does not exist.
        """


@runtime_checkable
class SupportsReplace(Protocol):
    """Replaces an object unless another writer has changed it: compare-and-swap by tag."""

    def tag(self, name: str) -> str | None:
        """Return text that changes whenever the object changes; None if it does not exist."""

    def replace(self, name: str, parts: Parts, tag: str | None) -> str | None:
        """Replace an object's bytes, if its tag is still `tag` (None: it must not exist).

        Returns:
            The new tag; None if another writer was first, and nothing was written.
        """


@runtime_checkable
class SupportsChanges(Protocol):
    """Reports changes, so that followers need not list the store repeatedly."""

    def changes(self, cursor: str | None = None, *, timeout: float = 0.0) -> Changes:
        """Return the changes since a cursor.

        Args:
            cursor: Cursor of the previous call; None to get a cursor for now, with no changes.
            timeout: Seconds to wait for the first change.
        """


@runtime_checkable
class SupportsSharing(Protocol):
    """Can be shared by several users of this machine."""

    def share(self) -> None:
        """`create` the store so that all users of its folder's group may write to it."""


@runtime_checkable
class SupportsWriters(Protocol):
    """Knows who else writes to it."""

    def other_writers(self) -> int:
        """Return how many other open stores have written or probed, in any process.

        Those that may live count, and those that have only read do not.
        """


@runtime_checkable
class SupportsDirect(Protocol):
    """A store some of whose reads are answered by copies on this machine."""

    def direct(self) -> ObjectStore:
        """Return the same store without these copies."""


@runtime_checkable
class SupportsRefStore(Protocol):
    """Can keep branches and tags in another store, which creates objects exclusively."""

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """Return the store for refs that ``casweights.json`` names.

        Every writer of this store can make ``casweights.json`` name any repository. So the ref
        store refuses to read or write, unless the repository itself states that it keeps the refs
        of the store with this ID and URL. `create` of the ref store writes that statement.

        Args:
            where: Name of the ref store, in the form that this driver defines.
            store_id: ID of this store.
        """


@runtime_checkable
class SupportsStrays(Protocol):
    """May contain things that are not objects, which listings and reads skip."""

    def strays(self) -> dict[str, str]:
        """Return everything in the store that is not an object: a description by name."""
