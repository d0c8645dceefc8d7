"""Stores that die, lose an answer, or have listings that lag."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, StoreError
from casweights.format import names
from casweights.stores.base import NO_NAMES, Batch
from casweights.stores.wrapper import WrapperStore
from tests.operations.turns import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casweights.stores.base import ObjectInfo, ObjectStore, Parts


class Crashing(Watched):
    """A store that fails from a call on, as for a process that was killed at it."""

    def __init__(self, inner: ObjectStore, call: int, *, done: bool) -> None:
        super().__init__(inner, self._before, self._after_write)
        self._first, self._done, self._dead = call, done, False

    def _before(self, call: int) -> None:
        if self._dead or (call >= self._first and not self._done):
            self._die()

    def _after_write(self, write: int) -> None:
        if self._done and write >= self._first:
            self._die()

    def _die(self) -> None:
        self._dead = True
        raise StoreError(ErrorCode.IO_FAILED, "killed")


class Losing(Watched):
    """A store of which the answer to one write is lost."""

    def __init__(self, inner: ObjectStore, lost: int) -> None:
        super().__init__(inner, after=self._after_write)
        self._lost = lost

    def _after_write(self, write: int) -> None:
        if write == self._lost:
            raise StoreError(ErrorCode.UNREACHABLE, "the answer was lost")


class Partial(WrapperStore):
    """A store that carries out a part of one batch, and of which the answer to it is lost.

    Any of the copies and deletions of a batch may have been refused, but for what `ObjectStore`
    promises: the last deletion comes after all others. Of puts, the first ones are made.

    Args:
        inner: The store that does the work.
        number: The batch of several objects, and what is done of it: of the first three batches,
            and of each in another way for larger numbers.

    Attributes:
        has_failed: Whether there was such a batch.
    """

    def __init__(self, inner: ObjectStore, number: int) -> None:
        super().__init__(inner)
        self._left, self._chance = 1 + (number - 1) % 3, Random(number)
        self.has_failed = False

    def _part(self, names: Sequence[str]) -> list[str] | None:
        """Return what is done of a batch; None for all of it."""
        self._left -= len(names) > 1
        if self._left or self.has_failed or len(names) < 2:
            return None
        self.has_failed = True
        return [name for name in names if self._chance.random() < 0.5]

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        part = self._part(names)
        inner = self.inner if source is self else source
        self.inner.copy_from(inner, names if part is None else part, called)
        _lose_answer_of(part)

    def delete_all(self, names: Sequence[str]) -> None:
        part = self._part(names)
        done = names if part is None else [name for name in part if name != names[-1]]
        self.inner.delete_all(done)
        _lose_answer_of(part)

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        made = self.inner.batch(names, assume_absent=assume_absent)
        part = self._part(names)
        return made if part is None else _PartialBatch(self.inner, len(part))


class _PartialBatch(Batch):
    """The first puts of a batch, of which the answer is lost."""

    def __init__(self, inner: ObjectStore, count: int) -> None:
        self._inner, self._count = inner, count
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        if self._count:
            self._count -= 1
            self._inner.put(name, parts)

    def finish(self) -> None:
        _lose_answer_of([])

    def abandon(self) -> None:
        pass


def _lose_answer_of(part: list[str] | None) -> None:
    if part is not None:
        raise StoreError(ErrorCode.UNREACHABLE, "a part was done, and the answer was lost")


class Lagging(WrapperStore):
    """A store whose listings do not show its newest packs and versions."""

    def __init__(self, inner: ObjectStore, lacking: int) -> None:
        super().__init__(inner)
        folders = (names.PACKS, names.SNAPSHOTS)
        infos = [info for folder in folders for info in inner.list(folder)]
        newest = sorted(infos, key=lambda info: info.created)[-lacking:]
        self._hidden = {info.name for info in newest}

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (info for info in self.inner.list(prefix) if info.name not in self._hidden)
