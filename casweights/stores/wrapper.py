"""A store around another one."""

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

# The methods of `ObjectStore` that are made of a core method. A subclass that overrides the core
# method and not these gets them as `ObjectStore` makes them, so that no call bypasses it.
_MADE_OF = {
    "put": ("batch", "copy_from"),
    "size": ("exists", "sizes", "get", "read"),
    "readinto": ("get", "read"),
    "delete": ("delete_all",),
}


class WrapperStore(ObjectStore):
    """Passes every call on to another store; subclasses add to it.

    Abilities of the inner store are found by `ability`, which skips this one where it does not
    have the ability itself.

    Attributes:
        inner: The store that does the work.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities

    def __init_subclass__(cls) -> None:
        """See `_MADE_OF`."""
        super().__init_subclass__()
        for core, derived in _MADE_OF.items():
            if core in vars(cls):
                for name in derived:
                    if name not in vars(cls):
                        setattr(cls, name, vars(ObjectStore)[name])

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

    def ability(self, kind: type[_Ability]) -> _Ability | None:
        """See `ObjectStore.ability`."""
        return self if isinstance(self, kind) else self.inner.ability(kind)

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


def _forwarding(name: str) -> Callable[..., Any]:
    """A method that calls the inner store's method of the same name."""

    @functools.wraps(vars(ObjectStore)[name])
    def forward(self: WrapperStore, *args: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*args, **options)

    return forward


# All public methods, as the class has them now or later, except `put_all`: that is made of `batch`.
for _name in vars(ObjectStore).keys() - vars(WrapperStore).keys() - {"capabilities", "put_all"}:
    if not _name.startswith("_"):
        setattr(WrapperStore, _name, _forwarding(_name))


class WrapperBatch(Batch):
    """Passes everything on to another batch; subclasses add to it.

    Attributes:
        inner: The batch that does the work.
    """

    def __init__(self, inner: Batch) -> None:
        self.inner = inner
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        """See `Batch.put`."""
        self.inner.put(name, parts)

    def send(self, parts: Parts) -> None:
        """See `Batch.send`."""
        self.inner.send(parts)

    def finish(self) -> None:
        """See `Batch.finish`."""
        self.inner.finish()
        self.created = self.inner.created

    def abandon(self) -> None:
        """See `Batch.abandon`."""
        self.inner.abandon()


class ReplayedBatch(Batch):
    """A batch that can start over after an error: what was put so far is put once more.

    Args:
        begin: Makes the batch of the next attempt.
        run: Calls a function, and calls it once more after an error that may pass.
    """

    def __init__(
        self, begin: Callable[[], Batch], run: Callable[[Callable[[], None]], None]
    ) -> None:
        self._begin = begin
        self._run = run
        self._calls: list[Callable[[Batch], None]] = []
        self._done = 0  # calls that the running attempt has made
        self._attempt: Batch | None = None
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        """See `Batch.put`."""
        self._add(lambda batch: batch.put(name, parts))

    def send(self, parts: Parts) -> None:
        """See `Batch.send`."""
        self._add(lambda batch: batch.send(parts))

    def finish(self) -> None:
        """See `Batch.finish`."""
        self._add(lambda batch: batch.finish())

    def abandon(self) -> None:
        """See `Batch.abandon`."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.abandon()

    def _add(self, call: Callable[[Batch], None]) -> None:
        self._calls.append(call)
        self._run(self._catch_up)

    def _catch_up(self) -> None:
        """Make the calls that are left; after an error, the next attempt makes all of them."""
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
