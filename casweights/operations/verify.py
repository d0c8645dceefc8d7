"""Verify: check every object of a store, and record what is damaged."""

from __future__ import annotations

from contextlib import suppress
from secrets import SystemRandom
from typing import TYPE_CHECKING

from casweights.database.findings import summarize
from casweights.errors import CasweightsError, ErrorCode, IntegrityError
from casweights.format import names
from casweights.format.collection import is_of_collection
from casweights.ids import PackId, SegmentId, Suspect
from casweights.operations.survey import Choice, note_damage, survey
from casweights.results import Verification
from casweights.stores.optional import SupportsStrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from casweights.database import Database
    from casweights.ids import ChunkId
    from casweights.operations.survey import Survey


def verify(
    db: Database, *, quick: bool, since: datetime | None = None, sample: float = 1.0
) -> Verification:
    """Check the objects of the store.

    Args:
        db: The store.
        quick: Check the stored bytes against their checksums, without decoding and hashing the
            chunks. Detects damage, but not every forgery.
        since: Check only versions that were made after this time, and the chunks that they need.
        sample: The share of the chunks whose frames are checked, each with what it builds on. Each
            call draws other ones, one at least.

    Returns:
        The problems found, and how much was checked.
    """
    known = db.findings.load()
    choice = Choice(
        quick=quick,
        versions=None if since is None else lambda snapshot: snapshot.time > since,
        chunks=None if sample == 1.0 else _draw(sample),
    )
    # A cache on this machine may have sound copies of what is damaged in the store.
    with db.onlooker(direct=True) as look:
        found = survey(look, choice)
    damaged = found.damaged()
    bad = {s: str(why) for s, why in found.segments.items() if isinstance(why, IntegrityError)}
    noted = note_damage(db, damaged | bad)
    if not (quick or choice.is_part):
        _answer(db, known, found, damaged | bad)
    db.findings.answer_gone()
    return _result(db, found, choice, len(damaged), noted)


def _draw(share: float) -> Callable[[ChunkId], bool]:
    """Return a function that is true for this share of chunks, and for one at least."""
    numbers, first = SystemRandom(), iter([True])
    return lambda _: next(first, False) or numbers.random() < share


def _result(
    db: Database, found: Survey, choice: Choice, damaged: int, noted: str | None
) -> Verification:
    frames = found.frames
    wrong = [why for why in found.segments.values() if why is not None]
    problems = [*frames.problems, *frames.blame(found.lost), *found.problems, *wrong]
    nbytes = sum(info.size for info in found.packs)
    own = (*_problems_of_notes(db), *_odd_names(db))
    return Verification(
        problems=(*problems, *own),
        snapshots=found.checked,
        packs=frames.packs,
        frames=frames.frames,
        nbytes=frames.checked_bytes if choice.is_part else nbytes,
        archives=len(found.archives),
        damaged=damaged,
        noted=noted,
        checked=frames.checked,
        lost=len(found.recorded),
    )


def _answer(
    db: Database, known: set[Suspect], found: Survey, damaged: Mapping[Suspect, str]
) -> None:
    """Withdraw the known findings about packs that this check found sound."""
    untested = {location.suspect for location in found.frames.stranded}
    checked = {info.name for info in found.packs} - found.frames.gone
    checked |= {names.pack_name(suspect.pack) for suspect in found.segments}
    bad_packs = {suspect.pack for suspect in damaged}
    wholly_bad = {suspect.pack for suspect in summarize(damaged) if suspect.offset is None}

    def is_true(suspect: Suspect) -> bool:
        if suspect.offset is None:
            return suspect.pack in bad_packs
        return suspect in damaged or suspect.pack in wholly_bad

    packs = _packs(checked)  # a finding does not say whether a snapshot carries the pack
    refuted = [s for s in known - untested if s.pack in packs and not is_true(s)]
    db.findings.answer(refuted)


def _packs(objects: Iterable[str]) -> set[PackId]:
    """Return the packs in these objects; those with other names are left out."""
    packs: set[PackId] = set()
    for name in objects:
        with suppress(IntegrityError):
            packs.add(names.pack_of(name))
    return packs


def _is_segment(name: str) -> bool:
    """Whether this is the name of a segment, which may be new or gone by now."""
    with suppress(IntegrityError):
        return bool(names.parse_id(SegmentId, names.SEGMENTS, name))
    return False


def _problems_of_notes(db: Database) -> Iterator[CasweightsError]:
    """Yield an error for each damaged finding, loss, record, policy, and object of signatures."""
    yield from db.findings.problems()
    yield from db.losses.problems()
    yield from db.expired.problems()
    yield from db.policies.problems()
    yield from db.signatures.problems()


def _odd_names(db: Database) -> Iterator[CasweightsError]:
    """Yield an error for each object that casweights does not write."""
    folders = (
        *(names.PACKS, names.SNAPSHOTS, names.ARCHIVES),
        *(names.HEADS, names.TAGS, names.DAMAGED, names.LOST, names.EXPIRED, names.POLICIES),
        names.SIGNATURES,
    )
    for info in db.store.list():
        is_known = info.name == names.CONFIG or info.name.startswith(folders)
        if not (is_known or _is_segment(info.name) or is_of_collection(info.name)):
            message = f"{info.name} is not an object of a casweights store"
            yield IntegrityError(ErrorCode.CORRUPT_OBJECT, message)
    able = db.store.ability(SupportsStrays)
    for name, kind in sorted(able.strays().items() if able is not None else ()):
        message = f"{name} is not an object of a store: it is {kind}"
        yield IntegrityError(ErrorCode.CORRUPT_OBJECT, message)
