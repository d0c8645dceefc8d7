"""The objects that collections have set aside: readers still find them, writers do not.

A version may come to need an object at the very moment at which a collection sets it aside. Until a
later run brings it back, reads of its old name find it below ``aside/``. Look-ups and listings of
the old name do not: a writer counts it as absent, and stores it again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from casweights.errors import ErrorCode, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.collection import FOLDERS, AsideName, parse_aside_name
from casweights.stores.base import ObjectInfo, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from casweights.stores.base import ObjectStore

_R = TypeVar("_R")


def list_aside(store: ObjectStore) -> dict[str, ObjectInfo]:
    """Return the objects that were set aside, by the names that they had, under these names."""
    return by_former_name(parse_listing(store.list(names.ASIDE)))


def by_former_name(listed: Iterable[tuple[AsideName, ObjectInfo]]) -> dict[str, ObjectInfo]:
    """Return what a listing shows, as `list_aside` does."""
    found: dict[str, ObjectInfo] = {}
    for aside, info in listed:
        found.setdefault(aside.name, ObjectInfo(aside.name, info.size, info.created))
    return found


def parse_listing(infos: Iterable[ObjectInfo]) -> Iterator[tuple[AsideName, ObjectInfo]]:
    """Yield what the names of objects below ``aside/`` say; others are left out."""
    for info in infos:
        with suppress(IntegrityError):
            yield parse_aside_name(info.name), info


class AsidePlaces:
    """Where the objects lie that were set aside, as the last listing showed.

    Args:
        store: The store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._places: dict[str, list[str]] = {}

    def learn(self, infos: Iterable[ObjectInfo]) -> None:
        """Remember a listing of everything below ``aside/``."""
        places: dict[str, list[str]] = {}
        for aside, info in parse_listing(infos):
            places.setdefault(aside.name, []).append(info.name)
        self._places = places

    def read(self, name: str, call: Callable[[str], _R]) -> _R:
        """Call a function with the names of an object that was set aside, until one exists.

        The store is listed if no place is known.

        Args:
            name: The name that it had.
            call: The function.

        Raises:
            NotFoundError: No collection has it.
        """
        if name.startswith(FOLDERS):
            for is_listed in (False, True):
                if is_listed:
                    self.learn(self._store.list(names.ASIDE))
                for place in self._places.get(name, ()):
                    try:
                        return call(place)
                    except NotFoundError as error:
                        if error.code is not ErrorCode.OBJECT_NOT_FOUND:
                            raise
        raise missing(name)
