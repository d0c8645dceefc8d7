"""What only some stores can do, each as a protocol of its own.

Ask with `ObjectStore.ability`, which looks inside wrappers, too:

    >>> copying = store.ability(SupportsCopy)
    >>> if copying is not None:
    ...     copying.copy("packs/a", "fossils/a")

A driver has an ability if it has the methods; it need not name the protocol. To create an object
exclusively is no protocol but a capability (`Capabilities.exclusive_create`): it is a guarantee of
`ObjectStore.put` that some stores only find out about once they are open.
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
    """What has happened in a store.

    Attributes:
        names: Objects that were created, replaced or deleted, the earliest first.
        cursor: Where the next look goes on.
    """

    names: Sequence[str]
    cursor: str


@runtime_checkable
class SupportsLocators(Protocol):
    """Knows where the bytes of its objects lie, so that another reader need not look them up."""

    def locator(self, name: str) -> bytes | None:
        """Where an object's bytes lie, if the store knows; only this kind of store can read it.

        It may go out of date.
        """

    def use_locator(self, name: str, locator: bytes) -> None:
        """Read an object from where `locator` said earlier; one that is of no use is ignored."""


@runtime_checkable
class SupportsReadahead(Protocol):
    """Fetches announced ranges before they are read."""

    def ahead(self) -> AbstractContextManager[Announce]:
        """A function that announces what will be read.

        It takes groups of ranges, in the order in which they will be read; those of a group are
        read at about the same time, and each range as a whole. At the end of the block, what was
        not read is dropped.
        """


def ahead(store: ObjectStore) -> AbstractContextManager[Announce]:
    """`SupportsReadahead.ahead` of a store; where it has no such ability, nothing is fetched."""
    able = store.ability(SupportsReadahead)
    return nullcontext(lambda _: None) if able is None else able.ahead()


@runtime_checkable
class SupportsCopy(Protocol):
    """Copies an object within the store, without moving its bytes to the client and back."""

    def copy(self, name: str, new_name: str) -> bool:
        """Create an object with the bytes of another one, as `ObjectStore.put` would.

        Returns:
            Whether the object was created now.

        Raises:
            NotFoundError: There is no object `name`.
        """


@runtime_checkable
class SupportsReplace(Protocol):
    """Replaces an object if nobody else has done so: compare-and-swap by tag."""

    def tag(self, name: str) -> str | None:
        """Text that changes whenever the object does; None if there is no such object."""

    def replace(self, name: str, parts: Parts, tag: str | None) -> str | None:
        """Give an object other bytes, if its tag is still this one (None: it is not there).

        Returns:
            Its tag now; None if another writer was first, and nothing was written.
        """


@runtime_checkable
class SupportsChanges(Protocol):
    """Tells what has changed, so that followers need not list again and again."""

    def changes(self, cursor: str | None = None, *, timeout: float = 0.0) -> Changes:
        """What has happened after a cursor.

        Args:
            cursor: That of the last look; None for one that starts now and shows no changes.
            timeout: Seconds to wait if there is nothing yet.
        """


@runtime_checkable
class SupportsSharing(Protocol):
    """Lies where the users of this machine can share it."""

    def share(self) -> None:
        """`create` the place as one that all users of the folder's group may write to."""


@runtime_checkable
class SupportsRefStore(Protocol):
    """Can keep branches and tags in another store, which creates objects exclusively."""

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """The store for refs, as ``casweights.json`` names it.

        Every writer of this store can make ``casweights.json`` name any place. So nothing is
        read from there and nothing written, unless that place says by itself that it keeps the
        refs of the store of this ID that lies here; its `create` makes it say so.
        """


@runtime_checkable
class SupportsStrays(Protocol):
    """May contain things that are no objects."""

    def strays(self) -> dict[str, str]:
        """Names of what lies in the store and can be no object, and what each is.

        They do not disturb those who list or read objects.
        """
