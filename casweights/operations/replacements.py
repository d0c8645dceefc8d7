"""Replacements: what others replace is set aside, and deleted once these have proved sound.

`maintain` and `repack` copy what objects hold into others. By the rule of docs/design/011 the old
objects could go at once. They are set aside as a collection all the same, for readers that have
located something in them, and in case that what replaces them turns out to be damaged. Such a
collection needs no marking before it is deleted; its name tells it from those of `gc`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.config import RELIANCE_SECONDS, REPLACED_GRACE
from casweights.database.aside import list_aside, parse_listing
from casweights.database.deleting import try_to_delete
from casweights.database.packs import try_read_pack
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.archive import is_intact
from casweights.format.collection import (
    MAX_PLAN,
    REPLACED,
    Part,
    Plan,
    PlannedObject,
    aside_name,
    decode_plan,
    part_name,
)
from casweights.format.names import parse_id
from casweights.ids import ArchiveId
from casweights.operations.collections import SECOND, list_parts, machine_time, new_collection
from casweights.operations.merging import are_sound
from casweights.operations.moving import finish, set_aside
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from casweights.database import Database
    from casweights.operations.merging import Budget
    from casweights.stores.base import ObjectStore


def set_replaced_aside(
    db: Database, replaced: Sequence[ObjectInfo], by: Sequence[str]
) -> Iterator[None]:
    """Move objects aside whose content is durable in others, in slices.

    Args:
        db: The store.
        replaced: The objects.
        by: Names of the objects that replace them.

    Raises:
        DeletionRefusedError: The client may not delete objects; nothing was moved.
        StoreError: The store could not be read or written. Objects may lie in both places.
    """
    if not replaced:
        return
    try_to_delete(db.objects)
    yield
    plan = Plan(
        now=int(machine_time() * SECOND),
        grace=int(REPLACED_GRACE.total_seconds()),
        objects=[PlannedObject(info.name, info.size, max(0, info.created)) for info in replaced],
        by=by,
    )
    yield from set_aside(db.objects, REPLACED + new_collection(), plan, _proceed)


def free_from(db: Database, grace: timedelta) -> int:
    """Return the store's time from which on all that lies aside may be deleted; 0 if nothing does.

    Args:
        db: The store.
        grace: The grace time.
    """
    ends = (parts.get(Part.END, 0) for parts in list_parts(db.objects, REPLACED).values())
    last = max(ends, default=0)
    return last + int(grace.total_seconds()) * SECOND if last else 0


def finish_replaced(
    db: Database, grace: timedelta, budget: Budget, most: int | None = None
) -> Iterator[int]:
    """Delete what others have replaced a grace time ago, if these are sound; in slices.

    What stays is for `gc`, which finds out what of it is needed.

    Args:
        db: The store.
        grace: The grace time, by this machine's clock: a wrong one loses nothing.
        budget: What may be read.
        most: Number of collections that are deleted at most, the oldest first; None for all.

    Yields:
        After each slice, the bytes that it has deleted.

    Raises:
        DeletionRefusedError: The client may not delete objects.
        StoreError: The store could not be read or written. Repeat the call to continue.
    """
    due = _due(db.objects, grace)
    yield 0
    if due:
        try_to_delete(db.objects)
    sound: list[str] = []
    for digits in check_replacing(db, due, budget):
        sound += [] if digits is None else [digits]
        yield 0
        if len(sound) == most:
            break
    # Only now: what replaces the objects of one may lie aside in another one.
    for digits in sound:
        aside = [info for _, info in parse_listing(db.objects.list(aside_name(digits, "")))]
        finish(db.objects, digits, [info.name for info in aside], _proceed)
        yield sum(info.size for info in aside)


def check_replacing(db: Database, due: Sequence[str], budget: Budget) -> Iterator[str | None]:
    """Read what replaces the objects of collections; note damage, so that they come back.

    Where reads are cheap, everything is read, otherwise the indexes of packs.

    Args:
        db: The store.
        due: The digits of the collections.
        budget: What may be read, but for the first collection, which may need more.

    Yields:
        The digits of each collection of which all replacing objects are sound; None after other
        slices of work.
    """
    with db.onlooker(direct=True, keep=True) as look:
        is_first = True
        for digits in due:
            replacing = _replacing(look, digits)
            yield None
            if replacing is None:
                continue
            if not (budget.takes(sum(info.size for info in replacing)) or is_first):
                return
            is_first = False
            is_sound = True
            for info in replacing:
                is_sound &= _is_sound(db, look, info)
                yield None
            if is_sound:
                yield digits


def _proceed() -> None:
    """Nothing is ever too late here: what was replaced stays replaced."""


def _due(objects: ObjectStore, grace: timedelta) -> list[str]:
    """Return the collections of replaced objects whose grace time is over, the oldest first.

    Those of killed runs count from the time at which the run has ended for sure. In a store
    without times, all are due. So are those that have ended if the grace time is 0, because the
    store's clock may be ahead of this machine's.
    """
    latest = (machine_time() - grace.total_seconds()) * SECOND
    killed = RELIANCE_SECONDS * SECOND
    due = []
    for digits, parts in list_parts(objects, REPLACED).items():
        end = parts.get(Part.END, parts.get(Part.PLAN, 0) + killed)
        if end <= latest or (not grace and Part.END in parts):
            due.append((end, digits))
    return [digits for _, digits in sorted(due)]


def _replacing(look: Database, digits: str) -> list[ObjectInfo] | None:
    """Return the objects that replace those of a collection; None if one is not to be found.

    They may lie aside by now, too.
    """
    name = part_name(digits, Part.PLAN)
    try:
        plan = decode_plan(look.objects.read(name, MAX_PLAN), name)
    except (NotFoundError, IntegrityError):
        return None
    sizes = look.objects.sizes(plan.by)
    if sizes.keys() < set(plan.by):
        sizes = {name: info.size for name, info in list_aside(look.store).items()} | sizes
    if not plan.by or not sizes.keys() >= set(plan.by):
        return None
    return [ObjectInfo(name, sizes[name]) for name in plan.by]


def _is_sound(db: Database, look: Database, info: ObjectInfo) -> bool:
    """Whether an object is sound that replaces others; damage of its frames is noted."""
    if info.name.startswith(names.ARCHIVES):
        with suppress(NotFoundError):
            archive = parse_id(ArchiveId, names.ARCHIVES, info.name)
            return is_intact(look.store.get(info.name), archive)
        return False
    pack = try_read_pack(look.store, info)
    if isinstance(pack, CasweightsError):
        return False
    if not look.store.capabilities.cheap_reads:
        return True
    with suppress(NotFoundError):
        data = memoryview(look.store.get(info.name))
        bad = {at.suspect for at in pack.locations if not are_sound(data, [at.frame])}
        db.findings.note(dict.fromkeys(bad, f"the checksum of a frame in {info.name} is wrong"))
        return not bad
    return False
