"""Moves objects aside and back: copies first, then a look at every copy, and then deletions.

A copy and the deletion of its source are never in one request: of a batch in which a copy is
refused, the rest is carried out.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, NotFoundError, StoreError
from casweights.format import names
from casweights.format.collection import Part, aside_name, encode_plan, mark, part_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from casweights.format.collection import Plan
    from casweights.stores.base import ObjectStore

_TOGETHER = 256  # objects in one call of the store
_ATTEMPTS = 4  # to copy objects while other clients delete some
# Readers see no version without its bytes: versions go before packs, and come back after them.
_ORDER = (names.SNAPSHOTS, names.ARCHIVES, names.PACKS)


def set_aside(
    objects: ObjectStore, digits: str, plan: Plan, ready: Callable[[], object]
) -> Iterator[None]:
    """Move objects aside, as a new collection, in slices.

    A collection without an end is one whose run was killed: later runs take care of it.

    Args:
        objects: The store.
        digits: The digits of the collection.
        plan: What it sets aside.
        ready: Called after the plan was written, and before each deletion; raises an error if
            nothing may move any more.
    """
    objects.put(part_name(digits, Part.PLAN), [encode_plan(plan)])
    yield
    ready()
    copied = copy_all(objects, {aside_name(digits, row.name): row.name for row in plan.objects})
    yield
    delete_all(objects, copied.values(), ready)
    yield
    objects.put(part_name(digits, Part.END), [mark()])
    yield


def finish(
    objects: ObjectStore, digits: str, doomed: Iterable[str], check: Callable[[], object]
) -> None:
    """Delete what a collection has set aside, and the objects that describe it.

    Args:
        objects: The store.
        digits: The digits of the collection.
        doomed: Names of what it has set aside, as they are now.
        check: Called before each request; raises an error if it is too late.
    """
    delete_all(objects, doomed, check, aside_name(digits, ""))
    check()
    # Without its plan, nobody could tell which objects replace others.
    objects.delete_all([part_name(digits, part) for part in (Part.END, Part.PLAN)])


def copy_all(objects: ObjectStore, sources: Mapping[str, str]) -> dict[str, str]:
    """Copy objects within a store, and look every copy up.

    Args:
        objects: The store.
        sources: For each new name, the name of the object to copy; those whose copies must exist
            before others come first.

    Returns:
        Those that were copied, or whose copies existed; objects that are gone are left out.

    Raises:
        StoreError: A copy is missing, or has another size than its source.
    """
    copied: dict[str, str] = {}
    for group in _groups(sources):
        copied |= _copy_group(objects, {name: sources[name] for name in group})
    return copied


def _copy_group(objects: ObjectStore, sources: dict[str, str]) -> dict[str, str]:
    left, done = dict(sources), dict[str, str]()
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            objects.copy_from(objects, list(left), left)
            break
        except NotFoundError as error:
            if error.code is not ErrorCode.OBJECT_NOT_FOUND or not attempts_left:
                raise
            there = objects.present([*left, *left.values()])
            done |= {new: old for new, old in left.items() if new in there}
            left = {n: old for n, old in left.items() if old in there and n not in there}
    done |= left
    _confirm(objects, done)
    return done


def _confirm(objects: ObjectStore, sources: Mapping[str, str]) -> None:
    """Check that each copy exists and has the size of its source, if that still exists."""
    there = objects.present(sources)
    sizes = objects.sizes([*sources, *sources.values()])
    for new, old in sources.items():
        size = sizes.get(new)
        if new not in there or size is None or size != sizes.get(old, size):
            raise StoreError(
                ErrorCode.IO_FAILED,
                f"{old} was not copied to {new}: nothing was deleted. Repeat the command",
            )


def delete_all(
    objects: ObjectStore, doomed: Iterable[str], check: Callable[[], object], folder: str = ""
) -> None:
    """Delete objects, versions before packs.

    Args:
        objects: The store.
        doomed: Names of the objects.
        check: Called before each request; raises an error if it is too late.
        folder: The beginning of all these names.
    """
    left = list(doomed)
    for kind in _ORDER:
        for group in _groups([name for name in left if name.startswith(folder + kind)]):
            check()
            objects.delete_all(group)


def bring_back(objects: ObjectStore, where: Mapping[str, str], former: Iterable[str]) -> list[str]:
    """Copy objects back to their places: all packs, then archives, and then snapshots.

    Args:
        objects: The store.
        where: The present names of what was set aside, by the names that it had.
        former: The names that the objects to bring back had.

    Returns:
        The names that were copied.

    Raises:
        StoreError: One is in neither place. What comes after its kind was not copied, so that no
            version comes back without its bytes.
    """
    wanted, done = list(former), list[str]()
    for kind in reversed(_ORDER):
        names_of_kind = [name for name in wanted if name.startswith(kind)]
        copied = copy_all(objects, {name: where[name] for name in names_of_kind if name in where})
        done += copied
        others = [name for name in names_of_kind if name not in copied]
        there = objects.present(others) if others else set()
        if lost := [name for name in others if name not in there]:
            raise StoreError(
                ErrorCode.IO_FAILED,
                f"{lost[0]} is needed, and another client has moved or deleted it in between. "
                "Repeat the command",
            )
    return done


def _groups(found: Iterable[str]) -> Iterator[list[str]]:
    left = iter(found)
    while group := list(islice(left, _TOGETHER)):
        yield group
