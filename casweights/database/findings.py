"""What was found damaged in a store, told to everybody who would rely on it.

A finding is a hint. Writers store again what it is about; readers read it all the same where there
is no other way. So a wrong one, or a forged one, costs some bytes and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.finding import (
    MAX_FINDING,
    Finding,
    decode_finding,
    encode_finding,
    finding_name,
    parse_finding_name,
)
from casweights.ids import Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from casweights.stores.base import ObjectStore

_MAX_FRAME_FINDINGS = 64  # about one pack; more become one finding about the whole pack


class Findings:
    """The findings about one store.

    Args:
        store: The store, which has them for everybody.
        notes: A store on this machine for those that the store does not take; None for none.
        store_id: Tells the store from others that use the same notes.
    """

    def __init__(self, store: ObjectStore, notes: ObjectStore | None, store_id: str) -> None:
        self._store = store
        self._notes = notes
        self._folder = f"{store_id}/"
        self._stored: set[Suspect] = set()
        self._refused = False

    def load(self) -> set[Suspect]:
        """All that was found. What cannot be understood is left out.

        Raises:
            StoreError: The store could not be read.
        """
        self._stored = set(_listed(self._store, ""))
        found = set(self._stored)
        if self._notes is not None:
            with suppress(CasweightsError):
                found.update(_listed(self._notes, self._folder))
        return found

    def note(self, found: Mapping[Suspect, str]) -> str | None:
        """Keep findings, with what is wrong with each.

        Returns:
            Where they are: the store's URL, or that of the notes if the store cannot be written
            to; None if there are no notes either.
        """
        objects = _objects(found, besides=self._stored)
        if objects and not self._refused:
            try:
                self._store.put_all(objects)
                self._stored.update(found)
            except CasweightsError:
                self._refused = True
        if self._stored.issuperset(found):
            return self._store.url
        if self._notes is not None:
            with suppress(CasweightsError):
                self._notes.create()
                self._notes.put_all([(self._folder + name, parts) for name, parts in objects])
                return self._notes.url
        return None

    def answer(self, suspects: Collection[Suspect]) -> None:
        """Remove findings that are no longer true, where they can be removed."""
        if not suspects:
            return
        doomed = [finding_name(suspect) for suspect in suspects]
        self._stored.difference_update(suspects)
        with suppress(CasweightsError):
            self._store.delete_all(doomed)
        if self._notes is not None:
            with suppress(CasweightsError):
                self._notes.delete_all([self._folder + name for name in doomed])

    def answer_gone(self) -> None:
        """Remove findings about packs that are no longer there."""
        suspects = self.load()
        there = self._store.sizes({names.pack_name(s.pack) for s in suspects}) if suspects else {}
        self.answer([s for s in suspects if names.pack_name(s.pack) not in there])

    def problems(self) -> Iterator[CasweightsError]:
        """What is wrong with the findings in the store themselves."""
        for info in self._store.list(names.DAMAGED):
            try:
                decode_finding(self._store.read(info.name, MAX_FINDING), info.name)
            except NotFoundError:  # it was answered meanwhile
                continue
            except CasweightsError as error:
                yield error


def _listed(store: ObjectStore, folder: str) -> Iterator[Suspect]:
    for info in store.list(folder + names.DAMAGED):
        with suppress(IntegrityError):
            yield parse_finding_name(info.name.removeprefix(folder))


def _objects(
    found: Mapping[Suspect, str], besides: Collection[Suspect]
) -> list[tuple[str, list[bytes]]]:
    now = time.time_ns() // 1000
    return [
        (finding_name(suspect), [encode_finding(Finding(suspect=suspect, why=why, time=now))])
        for suspect, why in found.items()
        if suspect not in besides
    ]


def summarize(found: Mapping[Suspect, str]) -> dict[Suspect, str]:
    """The same, with one finding for a pack that has many."""
    counts = Counter(suspect.pack for suspect in found)
    whole = {pack for pack, count in counts.items() if count > _MAX_FRAME_FINDINGS}
    whole |= {suspect.pack for suspect in found if suspect.offset is None}
    kept: dict[Suspect, str] = {}
    for suspect, why in found.items():
        kept.setdefault(Suspect(suspect.pack, None) if suspect.pack in whole else suspect, why)
    return kept
