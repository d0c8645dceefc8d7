"""Findings: notes in a store that a frame or a pack was read and found damaged.

A finding is a hint. Writers store the chunks of such a frame again. Readers avoid the frame, and
use it where no other chain exists. So a wrong or forged finding costs some bytes and nothing else.
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
from casweights.ids import CarriedPackId, PackId, SegmentId, Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from casweights.stores.base import ObjectStore

_MAX_FRAME_FINDINGS = 64  # per pack; more become one finding about the pack, to bound the objects


class Findings:
    """The findings about one store.

    They are kept in the store, where all its users see them. A store that refuses the first write
    is taken to be read-only from then on, and its findings go to the notes of this machine.
    Failures to keep or remove a finding raise nothing: the finding is a hint, and its caller has
    an error of its own to report.

    Args:
        store: The store.
        notes: A store on this machine for findings that `store` refuses; None for none.
        store_id: The ID of `store`, which keeps it apart from other stores with the same notes.
    """

    def __init__(self, store: ObjectStore, notes: ObjectStore | None, store_id: str) -> None:
        self._store = store
        self._notes = notes
        self._folder = f"{store_id}/"
        self._stored: set[Suspect] = set()
        self._refused = False

    def load(self) -> set[Suspect]:
        """Return what all findings are about. Objects with other names are left out.

        Raises:
            StoreError: The store could not be read. Notes that cannot be read are left out.
        """
        self._stored = set(_listed(self._store, ""))
        found = set(self._stored)
        if self._notes is not None:
            with suppress(CasweightsError):
                found.update(_listed(self._notes, self._folder))
        return found

    def note(self, found: Mapping[Suspect, str]) -> str | None:
        """Keep findings.

        Args:
            found: The damaged frames and packs, with the reason for each.

        Returns:
            The URL of the place that has them: the store, or the notes if the store cannot be
            written to. None if the notes cannot be written to either.
        """
        objects = _objects(found, known=self._stored)
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
        """Remove findings that are no longer true from the store and the notes, if possible."""
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
        """Remove findings about packs and segments that no longer exist."""
        objects = {suspect: _possible_names(suspect) for suspect in self.load()}
        found = self._store.sizes(set().union(*objects.values())) if objects else {}
        self.answer([s for s, possible in objects.items() if possible.isdisjoint(found)])

    def problems(self) -> Iterator[CasweightsError]:
        """Yield an error for each finding in the store that is itself damaged or misnamed."""
        for info in self._store.list(names.DAMAGED):
            try:
                decode_finding(self._store.read(info.name, MAX_FINDING), info.name)
            except NotFoundError:  # another client removed it after the listing
                continue
            except CasweightsError as error:
                yield error


def _possible_names(suspect: Suspect) -> set[str]:
    """Return the names that the object of a finding may have: the finding has only its ID."""
    found = suspect.pack
    carried = names.pack_name(CarriedPackId(found))
    return {names.pack_name(PackId(found)), carried, names.segment_name(SegmentId(found))}


def _listed(store: ObjectStore, folder: str) -> Iterator[Suspect]:
    """Yield what the findings below a folder are about, as their names say."""
    for info in store.list(folder + names.DAMAGED):
        with suppress(IntegrityError):
            yield parse_finding_name(info.name.removeprefix(folder))


def _objects(
    found: Mapping[Suspect, str], known: Collection[Suspect]
) -> list[tuple[str, list[bytes]]]:
    """Return the names and contents of the objects for findings that are not known yet."""
    now = time.time_ns() // 1000  # microseconds
    return [
        (finding_name(suspect), [encode_finding(Finding(suspect=suspect, why=why, time=now))])
        for suspect, why in found.items()
        if suspect not in known
    ]


def summarize(found: Mapping[Suspect, str]) -> dict[Suspect, str]:
    """Replace the findings of a pack with more than 64 of them by one about the whole pack."""
    counts = Counter(suspect.pack for suspect in found)
    whole = {pack for pack, count in counts.items() if count > _MAX_FRAME_FINDINGS}
    whole |= {suspect.pack for suspect in found if suspect.offset is None}
    kept: dict[Suspect, str] = {}
    for suspect, why in found.items():
        kept.setdefault(Suspect(suspect.pack, None) if suspect.pack in whole else suspect, why)
    return kept
