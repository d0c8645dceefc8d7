"""Make histories of a small model in memory, and write them to a directory or a bucket.

The library itself makes the objects. What it writes does not depend on the kind of store, except
for the names of moves. In memory, a version takes about 10 ms, at the first step and at the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import casweights
from casweights import Publisher
from casweights.config import KiB, StoreConfig
from casweights.stores.base import Capabilities, ObjectInfo
from casweights.stores.memory import MemoryStore
from tools.bench.hub.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from casweights.system.buffers import Buffer

CONFIG = StoreConfig(chunk_size=64 * KiB)
SHARE = 0.01  # of the elements, which a step changes
_SIZE, _HIDDEN = 400 * KiB, 128  # eight tensors of one or a few chunks
_REFS = "refs/"


def small_model(seed: int) -> Model:
    """Return a model for long histories; `make` draws its weights."""
    return Model(_SIZE, seed, _HIDDEN)


class HistoryStore(MemoryStore):
    """Objects in memory, with the names that they have in a directory or in a bucket.

    Refs have a separate list, because every commit lists them and there are few. The store does not
    claim cheap reads, because commits would list all packs then.

    Args:
        exclusive: Whether the names are those of a directory, which creates objects exclusively.
    """

    def __init__(self, *, exclusive: bool) -> None:
        super().__init__()
        self.capabilities = Capabilities(
            exclusive_create=exclusive, listing_lags=not exclusive, cheap_reads=False
        )
        self._refs: dict[str, int] = {}

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith(_REFS):
            self._refs[name] = sum(map(len, parts))
        return super().put(name, parts)

    def delete(self, name: str) -> None:
        self._refs.pop(name, None)
        super().delete(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if not prefix.startswith(_REFS):
            return super().list(prefix)
        found = (ObjectInfo(name, size) for name, size in sorted(self._refs.items()))
        return (info for info in found if info.name.startswith(prefix))

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of every object."""
        return ((info.name, self.get(info.name)) for info in self.list())

    def write(self, directory: Path) -> None:
        """Write all objects to a directory, which becomes a store."""
        for name, data in self.objects():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


class Run(NamedTuple):
    """A training run in memory.

    Attributes:
        store: The store with its versions.
        model: The model after the last step.
    """

    store: HistoryStore
    model: Model


def publish_run(count: int) -> Run:
    """Publish the steps of a training run to one branch."""
    store, model = HistoryStore(exclusive=True), small_model(0)
    model.make()
    state = model.tensors()
    with (
        casweights.open(store, create=True, config=CONFIG) as repository,
        Publisher(repository) as publisher,
    ):
        for n in range(count):
            model.step(SHARE)
            publisher.publish(state, step=n)
    return Run(store, model)
