"""A store around another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.stores.base import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.stores.base import Buffer, ObjectInfo


class WrapperStore(ObjectStore):
    """Passes every call for one object on; subclasses add to it.

    Batches go object by object through the wrapper's own methods, unless it overrides them too.

    Attributes:
        inner: The store that does the work.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities

    @property
    def url(self) -> str:
        """The inner store's."""
        return self.inner.url

    def create(self) -> None:
        """See `ObjectStore.create`."""
        self.inner.create()

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        return self.inner.put(name, parts)

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        return self.inner.size(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        self.inner.readinto(name, start, out)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self.inner.delete(name)

    def place(self, name: str) -> bytes | None:
        """See `ObjectStore.place`."""
        return self.inner.place(name)

    def hint(self, name: str, place: bytes) -> None:
        """See `ObjectStore.hint`."""
        self.inner.hint(name, place)

    def forget(self, name: str) -> bool:
        """See `ObjectStore.forget`."""
        return self.inner.forget(name)

    def ref_store(self, where: str) -> ObjectStore:
        """See `ObjectStore.ref_store`."""
        return self.inner.ref_store(where)
