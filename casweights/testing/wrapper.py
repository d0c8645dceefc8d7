"""A store around another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.stores.base import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.stores.base import Buffer, ObjectInfo


class WrapperStore(ObjectStore):
    """Passes everything on; subclasses add to it.

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
