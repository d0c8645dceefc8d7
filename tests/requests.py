"""A store that counts requests, and stores that name moves as a directory or as a bucket does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.stores.base import ObjectInfo, ObjectStore

KINDS = {
    "directory": Capabilities(exclusive_create=True),
    "bucket": Capabilities(listing_lags=True, cheap_reads=False, clock_skew=0.0),
}


def memory_store(kind: str) -> MemoryStore:
    """Return a store in memory with the abilities of a directory or a bucket."""
    store = MemoryStore()
    store.capabilities = KINDS[kind]
    return store


Request = tuple[str, str]  # what was called, and the name


class Requests(WrapperStore):
    """Records each read, each look-up of any number of names, and each listing.

    Attributes:
        made: What was called, and the name, in order.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.made: list[Request] = []

    def size(self, name: str) -> int:
        self.made.append(("look up", name))
        return super().size(name)

    def exists(self, name: str) -> bool:
        self.made.append(("look up", name))
        return self.inner.exists(name)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        self.made.append(("look up", " ".join(wanted)))
        return self.inner.sizes(wanted)

    def present(self, names: Iterable[str]) -> set[str]:
        wanted = list(names)
        self.made.append(("look up", " ".join(wanted)))
        return self.inner.present(wanted)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        self.made.append(("read", name))
        super().readinto(name, start, out)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        self.made.append(("read", name))
        return self.inner.get(name, start, size)

    def read(self, name: str, limit: int) -> bytes:
        self.made.append(("read", name))
        return self.inner.read(name, limit)

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:
        self.made.append(("read", name))
        return self.inner.read_end(name, most)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.made.append(("list", prefix))
        return super().list(prefix)

    def list_names(self, prefix: str = "") -> Iterator[str]:
        self.made.append(("list", prefix))
        return self.inner.list_names(prefix)
