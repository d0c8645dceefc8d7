"""A store around another one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from casweights.stores.base import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.stores.base import Capabilities, Content, ObjectInfo, Parts
    from casweights.system.buffers import Buffer


class WrapperStore(ObjectStore):
    """Passes everything on; subclasses add to it.

    One that is about single objects makes batches go through its own methods one by one: by
    ``put_all = ObjectStore.put_all``, and so on.

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

    def share(self) -> None:
        """See `ObjectStore.share`."""
        self.inner.share()

    def probe(self) -> Capabilities:
        """See `ObjectStore.probe`. What a wrapper has changed of the capabilities stays."""
        said, found = self.inner.capabilities, self.inner.probe()
        learnt = {
            field.name: getattr(found, field.name)
            for field in fields(found)
            if getattr(found, field.name) != getattr(said, field.name)
        }
        self.capabilities = replace(self.capabilities, **learnt)
        return self.capabilities

    def require(self, name: str) -> None:
        """See `ObjectStore.require`."""
        self.inner.require(name)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        return self.inner.put(name, parts)

    def put_all(
        self,
        objects: Sequence[tuple[str, Content]],
        soon: Sequence[Parts] = (),
        *,
        new: bool = False,
    ) -> list[bool]:
        """See `ObjectStore.put_all`."""
        return self.inner.put_all(objects, soon, new=new)

    def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
        """See `ObjectStore.copy_from`."""
        self.inner.copy_from(source, names)

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        return self.inner.size(name)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """See `ObjectStore.sizes`."""
        return self.inner.sizes(names)

    def exists(self, name: str) -> bool:
        """See `ObjectStore.exists`."""
        return self.inner.exists(name)

    def read(self, name: str, limit: int) -> bytes:
        """See `ObjectStore.read`."""
        return self.inner.read(name, limit)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        self.inner.readinto(name, start, out)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        return self.inner.list(prefix)

    def strays(self) -> dict[str, str]:
        """See `ObjectStore.strays`."""
        return self.inner.strays()

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self.inner.delete(name)

    def delete_all(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete_all`."""
        self.inner.delete_all(names)

    def place(self, name: str) -> bytes | None:
        """See `ObjectStore.place`."""
        return self.inner.place(name)

    def hint(self, name: str, place: bytes) -> None:
        """See `ObjectStore.hint`."""
        self.inner.hint(name, place)

    def forget(self, name: str) -> bool:
        """See `ObjectStore.forget`."""
        return self.inner.forget(name)

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """See `ObjectStore.ref_store`."""
        return self.inner.ref_store(where, store_id)
