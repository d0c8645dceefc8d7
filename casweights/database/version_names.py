"""Gives every version the name ``snapshots/<its ID>``, wherever its object lies.

A version is an object of that name, or a *whole* move of a branch: one object that makes the branch
name the version, and is the version. Readers know versions by their IDs alone, so the store that
they use, `VersionNames`, finds the object.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from casweights.database.aside import AsidePlaces
from casweights.database.moves import version_in
from casweights.errors import ErrorCode, NotFoundError
from casweights.format import names
from casweights.stores.base import NO_NAMES, Batch, ObjectInfo, ObjectStore
from casweights.stores.optional import SupportsCopy, SupportsLocators, ahead
from casweights.stores.wrapper import WrapperBatch, WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from casweights.stores.base import Parts
    from casweights.stores.optional import Announce
    from casweights.system.buffers import Buffer

_R = TypeVar("_R")
_Ability = TypeVar("_Ability")
_SURE_SECONDS = 60.0  # age from which a move that a listing lacks is gone: twice the longest lag
_ATTEMPTS = 4  # to copy objects while other clients remove moves


class _KnownMoves:
    """The whole moves that were seen, by the name of their version. Locked for each access."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}  # by name of the move: when, by the monotonic clock
        self._of: dict[str, list[str]] = {}  # by name of the version

    def of(self, version: str) -> list[str]:
        """Return the names of the moves that are this version."""
        return list(self._of.get(version, ()))

    def learn(self, name: str) -> None:
        """Remember an object if it is a whole move."""
        if name in self._seen or (snapshot := version_in(name)) is None:
            return
        with self._lock:
            self._seen[name] = time.monotonic()
            moves = self._of.setdefault(names.snapshot_name(snapshot), [])
            if name not in moves:
                moves.append(name)

    def forget(self, name: str) -> None:
        """Forget a move, because it is gone."""
        snapshot = version_in(name)
        if snapshot is None:
            return
        version = names.snapshot_name(snapshot)
        with self._lock:
            self._seen.pop(name, None)
            left = [move for move in self._of.get(version, ()) if move != name]
            if left:
                self._of[version] = left
            else:
                self._of.pop(version, None)

    def learn_listing(self, prefix: str, listed: Iterable[str]) -> None:
        """Remember the whole moves in a listing, and forget those that it should show and lacks."""
        shown = dict.fromkeys(listed)
        for name in shown:
            if name.endswith(names.STEP_SUFFIX):  # directories have no whole moves
                self.learn(name)
        oldest = time.monotonic() - _SURE_SECONDS
        with self._lock:
            seen = list(self._seen.items())
        for name, since in seen:
            if since < oldest and name.startswith(prefix) and name not in shown:
                self.forget(name)


class VersionNames(WrapperStore):
    """A store in which every version has the name ``snapshots/<ID>``, also if it is a whole move.

    Reads, look-ups, listings and deletions of that name reach the move. A version whose object is
    nowhere among the known ones makes this store list the moves once and look again. Names of moves
    work as well. A version that is read while it is copied out of a move is found in either place.

    Reads of packs, versions and archives that a collection has set aside find them, too, but for
    `read_end`; look-ups, listings and deletions do not.

    Deleting a whole move never loses the version: first it is copied to ``snapshots/<ID>``. To
    delete a version, delete that name.

    Args:
        inner: The objects.
        has_refs: Whether the store contains branches; if not, this store adds nothing.
    """

    def __init__(self, inner: ObjectStore, *, has_refs: bool = True) -> None:
        super().__init__(inner)
        self._has_refs = has_refs
        self._known = _KnownMoves()
        self._aside = AsidePlaces(inner)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self._known.learn(name)
        return self.inner.put(name, parts)

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        inner = self.inner.batch(names, assume_absent=assume_absent)
        return _LearningBatch(inner, self._known.learn)

    def size(self, name: str) -> int:
        return self._find(name, self.inner.size)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        self._find_anywhere(name, lambda at: self.inner.readinto(at, start, out))

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        return self._find_anywhere(name, lambda at: self.inner.get(at, start, size))

    def read(self, name: str, limit: int) -> bytes:
        return self._find_anywhere(name, lambda at: self.inner.read(at, limit))

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:
        # What was set aside is left out: a version is looked for in archives first.
        return self._find(name, lambda at: self.inner.read_end(at, most))

    def exists(self, name: str) -> bool:
        if not self._is_version(name):
            return self.inner.exists(name)
        return bool(self._find_all([name], self._presence))

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        return self._find_all(list(names), self.inner.sizes)

    def present(self, names: Iterable[str]) -> set[str]:
        return set(self._find_all(list(names), self._presence))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects whose names begin with `prefix`, ordered by name.

        Whole moves are listed as moves, and in listings of ``snapshots/`` as versions.
        """
        if not self._is_version(prefix):
            infos = self._listed(prefix)
            if prefix == names.ASIDE:
                self._aside.learn(infos)
            return iter(infos)
        # A version is copied before its move is deleted, so moves are listed first.
        found: dict[str, ObjectInfo] = {}
        for info in self._listed(names.HEADS):
            if (snapshot := version_in(info.name)) is not None:
                name = names.snapshot_name(snapshot)
                if name.startswith(prefix):
                    found.setdefault(name, ObjectInfo(name, info.size, info.created))
        for info in self.inner.list(prefix):
            found.setdefault(info.name, info)
        return iter(sorted(found.values(), key=lambda info: info.name))

    def list_names(self, prefix: str = "") -> Iterator[str]:
        if self._is_version(prefix):
            return (info.name for info in self.list(prefix))
        found = list(self.inner.list_names(prefix))
        if self._lists_moves(prefix):
            self._known.learn_listing(prefix, found)
        return iter(found)

    def delete(self, name: str) -> None:
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        moves = [name for name in names if self._has_refs and version_in(name) is not None]
        if moves:
            self._keep(moves)
        if any(map(self._is_version, names)):
            self._listed_moves()
        doomed = [at for name in names for at in (*self._moves_of(name), name)]
        if doomed:
            self.inner.delete_all(doomed)
        for name in doomed:
            self._known.forget(name)

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        if not isinstance(source, VersionNames):
            self.inner.copy_from(source, names, called)
            return

        def places() -> dict[str, str]:
            return {name: source.place(called.get(name, name)) for name in names}

        _repeat(
            lambda: self.inner.copy_from(source.inner, names, places()),
            lambda: source.look_again(places().values()),
        )

    def forget(self, name: str) -> bool:
        moves = self._moves_of(name)
        dropped = [self.inner.forget(at) for at in (*moves, name)]
        for move in moves:  # another copy of the version may be sound
            self._known.forget(move)
        return any(dropped)

    def ability(self, kind: type[_Ability]) -> _Ability | None:
        return super().ability(kind) if self.inner.ability(kind) is not None else None

    def locator(self, name: str) -> bytes | None:
        """Return an object's locator, as `SupportsLocators.locator` does."""
        able = self._able(SupportsLocators)
        found = (able.locator(at) for at in (*self._moves_of(name), name))
        return next((locator for locator in found if locator is not None), None)

    def use_locator(self, name: str, locator: bytes) -> None:
        """Read an object from a locator, as `SupportsLocators.use_locator` does."""
        self._able(SupportsLocators).use_locator(self.place(name), locator)

    def copy(self, name: str, new_name: str) -> bool:
        """Copy an object within the store, as `SupportsCopy.copy` does."""
        able = self._able(SupportsCopy)
        return self._find(name, lambda at: able.copy(at, new_name))

    @contextmanager
    def ahead(self) -> Iterator[Announce]:
        """Yield a function that announces ranges, as `SupportsReadahead.ahead` says."""
        with ahead(self.inner) as announce:
            yield lambda groups: announce(
                [
                    [(self.place(name), start, stop) for name, start, stop in group]
                    for group in groups
                ]
            )

    def place(self, name: str) -> str:
        """Return the name under which an object probably lies."""
        return next(iter(self._moves_of(name)), name)

    def look_again(self, gone: Iterable[str]) -> None:
        """List the moves, because one of these objects is gone."""
        wanted = list(gone)
        there = self.inner.present(wanted) if wanted else set()
        for name in wanted:
            if name not in there:
                self._known.forget(name)
        self._listed_moves()

    def _is_version(self, name: str) -> bool:
        return self._has_refs and name.startswith(names.SNAPSHOTS)

    def _moves_of(self, name: str) -> Sequence[str]:
        return self._known.of(name) if self._is_version(name) else []

    def _listed(self, prefix: str) -> Sequence[ObjectInfo]:
        """List objects, and learn the moves among them."""
        infos = list(self.inner.list(prefix))
        if self._lists_moves(prefix):
            self._known.learn_listing(prefix, (info.name for info in infos))
        return infos

    def _lists_moves(self, prefix: str) -> bool:
        heads = names.HEADS
        return self._has_refs and (prefix.startswith(heads) or heads.startswith(prefix))

    def _listed_moves(self) -> None:
        """Learn all moves that the store lists."""
        self._listed(names.HEADS)

    def _find(self, name: str, call: Callable[[str], _R]) -> _R:
        """Call a function with the names under which an object may lie, until one exists."""
        if not self._is_version(name):
            return call(name)
        for at in (*self._moves_of(name), name):
            try:
                return call(at)
            except NotFoundError as error:
                _raise_unless_object(error)
                self._known.forget(at)
        self._listed_moves()
        for at in self._moves_of(name):
            try:
                return call(at)
            except NotFoundError as error:
                _raise_unless_object(error)
                self._known.forget(at)
        return call(name)  # if a move was deleted since, the version was copied here before

    def _find_anywhere(self, name: str, call: Callable[[str], _R]) -> _R:
        """Do what `_find` does, also for objects that were set aside."""
        try:
            return self._find(name, call)
        except NotFoundError as error:
            _raise_unless_object(error)
        try:
            return self._aside.read(name, call)
        except NotFoundError as error:
            _raise_unless_object(error)
        return self._find(name, call)  # it may have been brought back in between

    def _find_all(
        self, wanted: Sequence[str], call: Callable[[Sequence[str]], Mapping[str, int]]
    ) -> dict[str, int]:
        """Call a function that returns what it finds of some objects, by their names."""
        places = {name: self.place(name) for name in wanted}
        there = call(list(dict.fromkeys(places.values())))
        found = {name: there[at] for name, at in places.items() if at in there}
        lacking = [name for name in wanted if self._is_version(name) and name not in found]
        if lacking:
            self.look_again(places[name] for name in lacking if places[name] != name)
            of = {at: name for name in lacking for at in (name, *self._moves_of(name))}
            found |= {of[at]: value for at, value in call(list(of)).items()}
        return {name: found[name] for name in wanted if name in found}

    def _presence(self, wanted: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(self.inner.present(wanted), 1)

    def _keep(self, moves: Collection[str]) -> None:
        """Copy versions out of their moves, so that the moves can be deleted."""
        left = list(moves)

        def look() -> None:
            left[:] = self.inner.present(left)

        _repeat(lambda: self._copy_out(left), look)

    def _copy_out(self, moves: Collection[str]) -> None:
        versions = {move: names.snapshot_name(v) for move in moves if (v := version_in(move))}
        by_version = {version: move for move, version in versions.items()}
        self.inner.copy_from(self.inner, list(by_version), by_version)
        # A version that was pushed here at the same time may lie there without its frames.
        sizes = self.inner.sizes([*versions, *by_version])
        larger = {v: move for move, v in versions.items() if sizes.get(move, 0) > sizes.get(v, 0)}
        if larger:
            self.inner.delete_all(list(larger))
            self.inner.copy_from(self.inner, list(larger), larger)

    def _able(self, kind: type[_Ability]) -> _Ability:
        able = self.inner.ability(kind)
        if able is None:
            raise TypeError(f"{self.url} has no {kind.__name__}: call `ability` first")
        return able


class _LearningBatch(WrapperBatch):
    """A batch whose whole moves are known from the moment that they may be visible."""

    def __init__(self, inner: Batch, learn: Callable[[str], None]) -> None:
        super().__init__(inner)
        self._learn = learn

    def put(self, name: str, parts: Parts) -> None:
        self._learn(name)
        super().put(name, parts)


def _repeat(call: Callable[[], None], look: Callable[[], None]) -> None:
    """Call a function, and again after another look if an object was moved in between."""
    for _ in range(_ATTEMPTS - 1):
        try:
            call()
        except NotFoundError as error:
            _raise_unless_object(error)
            look()
        else:
            return
    call()


def _raise_unless_object(error: NotFoundError) -> None:
    """Raise an error again, unless it says that an object does not exist."""
    if error.code is not ErrorCode.OBJECT_NOT_FOUND:
        raise error
