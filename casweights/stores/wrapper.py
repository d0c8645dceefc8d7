"""Base classes for stores that wrap another store, and for their batches."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from casweights.stores.base import Batch, ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.stores.base import Capabilities, ObjectInfo, Parts
    from casweights.system.buffers import Buffer

_Ability = TypeVar("_Ability")

# For each core method, the methods whose defaults in `ObjectStore` call it. A subclass that
# overrides the core method gets these defaults back, so that no call bypasses its override.
_MADE_OF = {
    "put": ("batch", "copy_from"),
    "size": ("exists", "sizes", "present", "get", "read", "read_end"),
    "readinto": ("get", "read", "read_end"),
    "list": ("list_names",),
    "delete": ("delete_all",),
}


class WrapperStore(ObjectStore):
    """Forwards every call to another store; subclasses override what they change.

    A subclass that overrides `put`, `size`, `readinto`, `list` or `delete` also gets the defaults
    of `ObjectStore` that call them, unless it overrides those, too. `ability` returns the wrapper
    if it has the ability itself, and otherwise asks the inner store.

    Args:
        inner: The store to forward to.

    Attributes:
        inner: The store to forward to.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities

    def __init_subclass__(cls) -> None:
        """Restore the defaults that call an overridden core method."""
        super().__init_subclass__()
        for core, derived in _MADE_OF.items():
            if core in vars(cls):
                for name in derived:
                    if name not in vars(cls):
                        setattr(cls, name, vars(ObjectStore)[name])

    @property
    def url(self) -> str:
        """URL of the inner store."""
        return self.inner.url

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        return self.inner.put(name, parts)

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        self.inner.readinto(name, start, out)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def ability(self, kind: type[_Ability]) -> _Ability | None:
        return self if isinstance(self, kind) else self.inner.ability(kind)

    def probe(self) -> Capabilities:
        said, found = self.inner.capabilities, self.inner.probe()
        learnt = {
            field.name: getattr(found, field.name)
            for field in fields(found)
            if getattr(found, field.name) != getattr(said, field.name)
        }
        self.capabilities = replace(self.capabilities, **learnt)
        return self.capabilities


def _forwarding(name: str) -> Callable[..., Any]:
    """Return a method that calls the inner store's method of the same name."""

    @functools.wraps(vars(ObjectStore)[name])
    def forward(self: WrapperStore, *args: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*args, **options)

    return forward


# Forward all other public methods of `ObjectStore`, also future ones. `put_all` calls `batch`.
for _name in vars(ObjectStore).keys() - vars(WrapperStore).keys() - {"capabilities", "put_all"}:
    if not _name.startswith("_"):
        setattr(WrapperStore, _name, _forwarding(_name))


class WrapperBatch(Batch):
    """Forwards every call to another batch; subclasses override what they change.

    Args:
        inner: The batch to forward to.

    Attributes:
        inner: The batch to forward to.
    """

    def __init__(self, inner: Batch) -> None:
        self.inner = inner
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        self.inner.put(name, parts)

    def finish(self) -> None:
        self.inner.finish()
        self.created = self.inner.created

    def abandon(self) -> None:
        self.inner.abandon()


class ReplayedBatch(Batch):
    """A batch that can start over after an error, by repeating all calls made so far.

    Args:
        begin: Function that creates the batch of the next attempt.
        run: Function that calls its argument, and repeats the call after a transient error.
    """

    def __init__(
        self, begin: Callable[[], Batch], run: Callable[[Callable[[], None]], None]
    ) -> None:
        self._begin = begin
        self._run = run
        self._calls: list[Callable[[Batch], None]] = []
        self._done = 0  # number of calls that the current attempt has made
        self._attempt: Batch | None = None
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        self._add(lambda batch: batch.put(name, parts))

    def finish(self) -> None:
        self._add(lambda batch: batch.finish())

    def abandon(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.abandon()

    def _add(self, call: Callable[[Batch], None]) -> None:
        self._calls.append(call)
        self._run(self._catch_up)

    def _catch_up(self) -> None:
        """Make the remaining calls; after an error, the next attempt makes all of them."""
        try:
            if self._attempt is None:
                self._attempt, self._done = self._begin(), 0
            for call in self._calls[self._done :]:
                call(self._attempt)
                self._done += 1
            self.created = self._attempt.created
        except BaseException:
            self.abandon()
            raise
