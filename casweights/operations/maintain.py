"""Maintenance: merge small objects, so that a long history consists of few.

Old moves leave the logs of branches, and old versions move into archives, see `archiving`.

Packs are merged by size, as in a log-structured merge tree: eight packs of one level become one of
the next, so each byte is copied a number of times that grows with the logarithm of the history. No
frame is decoded, and no ID changes. Segments then cover the packs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import REPLACED_GRACE, KiB
from casweights.database.deleting import DeletionRefusedError
from casweights.database.merged import Merged
from casweights.database.packs import list_packs, try_read_pack
from casweights.database.segment_writer import KeptSegments, SegmentWriter
from casweights.errors import CasweightsError, NotFoundError
from casweights.format import names
from casweights.operations.archiving import Archiving, merge_archives, old_versions
from casweights.operations.collections import SECOND, machine_time
from casweights.operations.expire import expire_by_policy
from casweights.operations.merging import (
    MAX_FRAMES,
    Budget,
    FrameCopies,
    are_sound,
    by_age,
    merge_levels,
)
from casweights.operations.replacements import finish_replaced, set_replaced_aside
from casweights.operations.signing import sign
from casweights.results import MaintainStats

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from datetime import timedelta

    from casweights.database import Database
    from casweights.format.pack import Frame
    from casweights.ids import PackId
    from casweights.operations.merging import Counted
    from casweights.stores.base import ObjectInfo

_FULL_FRAMES = MAX_FRAMES // 2  # packs with more are not merged again: they would fit nowhere
_RECENT_PACKS = 16  # the newest ones stay: subscribers may be about to read them
_MOST_FINISHED = 32  # collections that a limited run deletes: it makes fewer, so none pile up
_INDEX_BYTES = 64 * KiB  # about: what is read of a pack to cover it by a segment


def maintain(
    db: Database, *, grace: timedelta = REPLACED_GRACE, signatures: bool | None = None
) -> MaintainStats:
    """Apply the policy of the store, archive old versions, merge small objects, write segments.

    By segments, chunks are found in the packs that are left without reading all their indexes.

    A pack is set aside only after all its frames are durable in a pack of a higher generation, so
    commits, transfers, repacks and other maintenance may run at the same time; docs/design/011 has
    the reasoning. Packs with damage stay as they are. Damaged segments are replaced. What was set
    aside a grace time ago is deleted if what replaces it is sound.

    Signatures are made of tagged versions, and of the first ones of branches, that have none.

    A client that may not delete objects writes segments, and the marks of deleted branches and
    tags. It stops with everything else once the store refuses a deletion.

    Args:
        db: The store.
        grace: The grace time.
        signatures: Whether the store is to have signatures from now on; None for as before.

    Raises:
        StoreError: The store could not be read or written. Repeat the call to continue.
    """
    if signatures is not None:
        db.signatures.keep(signatures)
    expired = expire_by_policy(db)
    work = Maintenance(db, merged=db.learn_merged, grace=grace)
    for _ in work.slices():
        pass
    sign(db)
    return replace(work.stats, expired=expired)


class Maintenance:
    """Maintenance in slices, between which the caller may pause, or stop for good.

    Between two slices the store is sound, and nothing is kept open but threads. So a caller that
    stops closes the iterator and loses nothing but copies that were not durable yet.

    The order of calls: iterate over `slices` once; `stats` is complete after it.

    Args:
        db: The store. With several workers, objects are read by them, and up to two for each also
            between slices.
        merged: Called before packs that were merged are set aside.
        budget: Number of bytes of objects to read at most; None for no limit.
        full: Names of packs that are known to have too many frames for merging, to which others
            are added; None if none are known.
        grace: How long what was replaced lies aside before it is deleted.
    """

    def __init__(
        self,
        db: Database,
        *,
        merged: Callable[[Merged], object],
        budget: int | None = None,
        full: set[str] | None = None,
        grace: timedelta = REPLACED_GRACE,
    ) -> None:
        self._db = db
        self._grace = grace
        self._merged = merged
        # Each has a half: merging never leaves nothing for the check of what replaces others.
        half = None if budget is None else budget // 2
        self._budget, self._checks = Budget(half), Budget(half)
        self._full = set() if full is None else full
        self._packs: dict[str, ObjectInfo] = {}
        self._old_packs = self._copied = self._archived = self._archives = self._freed = 0
        self._segments = KeptSegments(0, 0)
        self._may_delete = True  # until the store refuses a deletion

    @property
    def stats(self) -> MaintainStats:
        """What was done."""
        return MaintainStats(
            packs=len(self._packs),
            old_packs=self._old_packs,
            copied_bytes=self._copied,
            archived=self._archived,
            archives=self._archives,
            segments=self._segments.segments,
            segment_bytes=self._segments.written_bytes,
            freed_bytes=self._freed,
            may_delete=self._may_delete,
        )

    def slices(self) -> Generator[None, None, None]:
        """Do all work that is due, and yield after each slice of it.

        Raises:
            StoreError: The store could not be read or written.
        """
        self._old_packs = len(_packs(self._db))
        yield
        since = int((machine_time() - self._grace.total_seconds()) * SECOND)
        for is_allowed in self._db.refs.trim(since):
            self._may_delete &= is_allowed
            yield
        yield from self._while_allowed(self._archive())
        yield from self._merge_and_cover()
        yield from self._while_allowed(self._finish())

    def _while_allowed(self, work: Iterator[None]) -> Iterator[None]:
        """Do work that sets aside what it replaces, until the store refuses a deletion."""
        if self._may_delete:
            try:
                yield from work
            except DeletionRefusedError:
                self._may_delete = False

    def _finish(self) -> Iterator[None]:
        """Delete what was replaced long enough ago."""
        most = _MOST_FINISHED if self._checks.is_limited else None
        for nbytes in finish_replaced(self._db, self._grace, self._checks, most):
            self._freed += nbytes
            yield

    def _archive(self) -> Iterator[None]:
        """Move old versions into archives, and merge archives."""
        old = old_versions(self._db)
        yield
        chosen = [info for info in old if self._budget.takes(info.size)]
        work = Archiving(self._db, self._merged)
        yield from work.slices(chosen)
        self._archived = len(work.moved)
        self._copied += yield from merge_archives(self._db, self._budget)
        self._archives = len(list(self._db.snapshots.archives.infos()))
        yield

    def _merge_and_cover(self) -> Iterator[None]:
        """Merge packs, and write segments that cover those which are left."""
        old = _packs(self._db)
        self._packs = {info.name: info for info in old}
        yield
        segments = _open_segments(self._db)
        self._full.update(
            names.pack_name(pack)
            for pack, rows in segments.covered_packs.items()
            if rows > _FULL_FRAMES
        )
        yield
        yield from self._while_allowed(self._merge_packs(_newest(old)))
        yield from self._keep_segments(segments)

    def _merge_packs(self, recent: set[str]) -> Iterator[None]:
        mergeable = partial(self._mergeable, recent)
        self._copied += yield from merge_levels(self._db, mergeable, self._merge, self._budget)

    def _mergeable(self, recent: set[str]) -> list[ObjectInfo]:
        stay = recent | self._full
        return [info for name, info in self._packs.items() if name not in stay]

    def _merge(self, group: Sequence[ObjectInfo]) -> Counted:
        """Merge packs into one, or into several if they have too many frames for one."""
        copied, merger = 0, _Merger()
        for pack in self._db.workers.map_asked(partial(_read, self._db), group):
            if pack is not None and not self._is_full(pack.info, len(pack.frames)):
                if not merger.has_room(pack):
                    copied += yield from self._write(merger)
                    merger = _Merger()
                yield from merger.add(pack)
            yield
        copied += yield from self._write(merger)
        return copied

    def _is_full(self, info: ObjectInfo, frames: int) -> bool:
        """Return whether a pack has too many frames for merging, and remember that."""
        if frames > _FULL_FRAMES:
            self._full.add(info.name)
        return frames > _FULL_FRAMES

    def _write(self, merger: _Merger) -> Counted:
        """Write the collected frames as one pack, and set the packs aside that had them."""
        if len(merger.packs) < 2:
            return 0
        new = yield from merger.copies.write(self._db, merger.generation)
        if new is None:
            return 0
        gone = [name for name in merger.packs if name != new.info.name]
        infos = [self._packs[name] for name in gone]
        self._merged(Merged(gone, [new]))
        yield
        yield from set_replaced_aside(self._db, infos, [new.info.name])
        for name in gone:
            self._packs.pop(name, None)
        self._packs[new.info.name] = new.info
        self._is_full(new.info, len(new.locations))
        yield
        return sum(location.frame.size for location in new.locations)

    def _keep_segments(self, segments: SegmentWriter) -> Iterator[None]:
        """Cover all packs with segments, but for recent ones that versions carry; merge segments.

        Those into which others were merged are covered at once: snapshots name the others.
        """
        infos = by_age(list_packs(self._db.store))
        snapshots = [info for info in infos if info.name.startswith(names.SNAPSHOTS)]
        known = {names.pack_of(info.name): info for info in infos}
        stay = _newest(snapshots)
        old = [pack for pack, info in known.items() if info.name not in stay]
        yield
        chosen = self._affordable(known, old, segments)
        self._segments = yield from segments.slices(known, chosen)
        self._db.findings.answer_gone()
        yield

    def _affordable(
        self, known: dict[PackId, ObjectInfo], old: Sequence[PackId], segments: SegmentWriter
    ) -> list[PackId]:
        """Return those of these packs that are covered, or whose indexes may be read."""
        covered = segments.covered_packs
        sizes = {pack: min(known[pack].size, _INDEX_BYTES) for pack in old if pack not in covered}
        return [pack for pack in old if self._budget.takes(sizes.get(pack, 0))]


def _packs(db: Database) -> list[ObjectInfo]:
    """Return all packs, the oldest first, so that frames of one time are next to each other.

    Those that snapshots carry are left out: the snapshots need their objects.
    """
    return by_age(list_packs(db.store, carried=False))


def _newest(infos: Sequence[ObjectInfo]) -> set[str]:
    """Return the names of those that stay as they are, given objects by age."""
    return {info.name for info in infos[max(0, len(infos) - _RECENT_PACKS) :]}


def _open_segments(db: Database) -> SegmentWriter:
    """Open the segments, and delete the damaged ones with the findings about them."""
    suspects = db.findings.load()
    writer = SegmentWriter(db.store, db.workers, {suspect.pack for suspect in suspects})
    db.findings.answer([suspect for suspect in suspects if suspect.pack in writer.damaged])
    return writer


class _Pack(NamedTuple):
    """A pack in memory."""

    info: ObjectInfo
    generation: int
    frames: Sequence[Frame]
    data: memoryview


def _read(db: Database, info: ObjectInfo) -> _Pack | None:
    """Read a pack; None if it is damaged or gone, which is for `verify` to report."""
    contents = try_read_pack(db.store, info)
    if isinstance(contents, CasweightsError) or not contents.locations:
        return None
    try:
        data = memoryview(db.store.get(info.name))
    except NotFoundError:  # other maintenance was faster
        return None
    frames = [location.frame for location in contents.locations]
    return _Pack(info, contents.generation, frames, data) if are_sound(data, frames) else None


class _Merger:
    """Collects packs that become one: call `has_room` and `add` for each.

    Attributes:
        packs: Names of the packs that were added.
        copies: Their frames.
        generation: The generation of the new pack: one higher than those of the others.
    """

    def __init__(self) -> None:
        self.packs: list[str] = []
        self.copies = FrameCopies()
        self.generation = 1

    def has_room(self, pack: _Pack) -> bool:
        """Whether the frames of a pack are not too many."""
        return self.copies.has_room(pack.frames)

    def add(self, pack: _Pack) -> Iterator[None]:
        """Add a pack, in slices; a pack that only a forged store can have is left out."""
        if (yield from self.copies.add(pack.frames, pack.data)):
            self.packs.append(pack.info.name)
            self.generation = max(self.generation, 1 + pack.generation)
