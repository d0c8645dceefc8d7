"""Stores that die, lose an answer, or have listings that lag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, StoreError
from casweights.format import names
from casweights.stores.wrapper import WrapperStore
from tests.operations.turns import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.stores.base import ObjectInfo, ObjectStore


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
