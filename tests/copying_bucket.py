"""A store in memory in which moves of branches are versions, as in a bucket of the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.stores.base import NO_NAMES, Capabilities, ObjectInfo, ObjectStore
from casweights.testing.versatile import VersatileStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casweights.system.buffers import Buffer


class Bucket(VersatileStore):
    """A store without exclusive create, which copies objects.

    Attributes:
        calls: The calls that changed or listed it.
        hidden: Names of objects that listings leave out.
    """

    capabilities = Capabilities(exclusive_create=False, clock_skew=0.0)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.hidden: set[str] = set()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.calls.append(f"list {prefix}")
        return (info for info in super().list(prefix) if info.name not in self.hidden)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self.calls.append(f"put {name}")
        return super().put(name, parts)

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        self.calls.append(f"copy {len(names)}")
        super().copy_from(source, names, called)

    def delete_all(self, names: Sequence[str]) -> None:
        self.calls.append(f"delete {len(names)}")
        super().delete_all(names)

    def delete(self, name: str) -> None:
        self.calls.append(f"delete {name}")
        super().delete(name)
