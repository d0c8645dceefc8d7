"""The collections of a store: which ones there are, and what time it is by the store's clock."""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import REPLACED_GRACE
from casweights.database.aside import parse_listing
from casweights.database.listing import LISTING_SECONDS, find_listed
from casweights.errors import ErrorCode, IntegrityError, StoreError, UnsupportedError
from casweights.format import names
from casweights.format.collection import (
    REPLACED,
    Part,
    Settled,
    mark,
    parse_part_name,
    parse_settled_name,
    part_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.stores.base import ObjectInfo, ObjectStore

SECOND = 1_000_000  # microseconds
_MAX_SKEW = 3600.0  # seconds between this machine's clock and the store's


class Collection(NamedTuple):
    """A collection, as the listings of its objects describe it.

    Attributes:
        id: Its random digits, after `REPLACED` if others replace what it set aside.
        parts: Store times of the objects that describe it, in microseconds.
        aside: The objects that it set aside, by the names that they had, under their present names.
    """

    id: str
    parts: dict[Part, int]
    aside: dict[str, ObjectInfo]

    @property
    def nbytes(self) -> int:
        """Number of bytes of what it set aside."""
        return sum(info.size for info in self.aside.values())

    @property
    def is_of_replaced(self) -> bool:
        """Whether others replace what it set aside."""
        return self.id.startswith(REPLACED)

    def due(self, grace: int) -> int:
        """Return the store's time from which on it may be deleted; 0 while its run has not ended.

        Args:
            grace: The grace time in seconds. That of what others replace is a day at most.
        """
        end = self.parts.get(Part.END, 0)
        if self.is_of_replaced:
            grace = min(grace, int(REPLACED_GRACE.total_seconds()))
        return end + grace * SECOND if end > 0 else 0


def list_collections(objects: ObjectStore) -> dict[str, Collection]:
    """Return all collections, by their digits."""
    found = {digits: Collection(digits, parts, {}) for digits, parts in list_parts(objects).items()}
    for aside, info in parse_listing(objects.list(names.ASIDE)):
        one = found.setdefault(aside.collection, Collection(aside.collection, {}, {}))
        one.aside[aside.name] = info
    return found


def list_parts(objects: ObjectStore, beginning: str = "") -> dict[str, dict[Part, int]]:
    """Return the store times of the objects that describe collections, by their digits.

    Args:
        objects: The store.
        beginning: How the digits begin of the collections to list.
    """
    found: dict[str, dict[Part, int]] = {}
    for info in objects.list(names.COLLECTIONS + beginning):
        with suppress(IntegrityError):
            part = parse_part_name(info.name)
            found.setdefault(part.collection, {})[part.part] = info.created
    return found


def notes(objects: ObjectStore) -> list[Settled]:
    """Return the notes that nothing is to be collected."""
    found = (parse_settled_name(info.name) for info in objects.list(names.COLLECTIONS))
    return [note for note in found if note is not None]


def new_collection() -> str:
    """Return random digits for a new collection."""
    return secrets.token_hex(8)


@contextmanager
def looking(objects: ObjectStore) -> Iterator[int]:
    """Provide the present time by the store's clock, in microseconds.

    It is the time of an object that this writes, and removes at the end.

    Raises:
        UnsupportedError: The store has no times, or its clock and this machine's differ.
        StoreError: The object cannot be written, or no listing shows it.
    """
    name = part_name(new_collection(), Part.LOOK)
    objects.put(name, [mark()])
    try:
        yield _checked(objects, _time_of(objects, name))
    finally:
        with suppress(StoreError):
            objects.delete(name)


def glance(objects: ObjectStore) -> int:
    """Return the present time for a run that changes nothing, in microseconds; write nothing.

    It is that of this machine's clock.

    Raises:
        UnsupportedError: The store has no times, or its newest are in the future.
        StoreError: The store could not be read.
    """
    infos = [info for prefix in (names.CONFIG, names.REFS) for info in objects.list(prefix)]
    newest = max((info.created for info in infos), default=0)
    _checked(objects, newest, behind=False)
    return int(machine_time() * SECOND)


def _time_of(objects: ObjectStore, name: str) -> int:
    info = find_listed(objects, name)
    if info is None:
        raise StoreError(
            ErrorCode.UNREACHABLE,
            f"{objects.url} does not list {name} {LISTING_SECONDS:g} s after it was written, so "
            "its listings cannot be relied on: nothing was collected. Try again later",
        )
    return info.created


def _checked(objects: ObjectStore, now: int, *, behind: bool = True) -> int:
    """Check a time of the store against this machine's.

    Args:
        objects: The store.
        now: The time, in microseconds.
        behind: Whether it must not lie in the past, either.
    """
    if now <= 0:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{objects.url} does not record when objects were written, so nothing shows which are "
            "old enough: nothing was collected",
        )
    skew = machine_time() - now / SECOND
    if -skew > _MAX_SKEW or (behind and skew > _MAX_SKEW):
        raise UnsupportedError(
            ErrorCode.CLOCKS_DIFFER,
            f"the clock of this machine is {abs(skew) / 3600:.1f} hours "
            f"{'ahead of' if skew > 0 else 'behind'} that of {objects.url}: nothing was collected. "
            "Set the wrong one, and repeat the command",
        )
    return now


def machine_time() -> float:
    """Return the time by this machine's clock, in seconds since 1970."""
    return time.time()
