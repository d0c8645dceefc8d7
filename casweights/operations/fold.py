"""Fold: write again what versions need of objects that are mostly not needed any more.

Chunks whose chains lead through expired versions are encoded again, frames of half-empty packs are
copied, and archives are written without the versions that nothing needs. Nothing is deleted: a
later collection finds that the old objects are not needed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.frames import read_payload
from casweights.database.writer import PackWriter
from casweights.errors import NotFoundError
from casweights.events import Stage
from casweights.format.archive import parse_archive
from casweights.format.snapshot import encode_snapshot
from casweights.operations.archiving import write_archive
from casweights.operations.marking import Marking, look, snapshot_in
from casweights.operations.shortening import Shortening
from casweights.results import FoldStats
from casweights.stores.optional import ahead

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from casweights.database import Database
    from casweights.database.packs import PackContents
    from casweights.format.pack import EncodedFrame, Location
    from casweights.ids import SnapshotId

_MAX_UNUSED = 0.05  # of the bytes of old objects that may be needed by nothing


class _HalfEmpty(NamedTuple):
    """An object that is needed, and with it frames that are not.

    Attributes:
        pack: The object with all its frames.
        waste: Stored bytes of the frames that nothing needs.
    """

    pack: PackContents
    waste: int


def fold(db: Database, old: Collection[str], named: Iterable[SnapshotId]) -> FoldStats:
    """Write again what versions need, where old objects hold too much that nothing needs.

    Args:
        db: A handle that remembers nothing.
        old: Names of the objects that a collection may set aside.
        named: The versions that stay with their ancestors.

    Raises:
        IntegrityError: Something that is needed is damaged or missing.
        StoreError: The store could not be read or written.
    """
    marking = Marking(db, look(db), old, alone=True)
    marking.keep_with_staying(named)
    if marking.has_losses:  # what is left may be of use to a repair
        return FoldStats(chunks=0, objects=0, nbytes=0)
    return _Fold(db, marking, old).run()


class _Fold:
    """One run over a store.

    Args:
        db: The store.
        marking: What its versions need.
        old: Names of the objects that may go.
    """

    def __init__(self, db: Database, marking: Marking, old: Collection[str]) -> None:
        self._db = db
        self._marking = marking
        self._old = old
        self._written = 0

    def run(self) -> FoldStats:
        """Do what saves enough."""
        shortening = Shortening(self._db, self._marking)
        families = shortening.families()
        half_empty = self._half_empty()
        archives = self._archives()
        most = _MAX_UNUSED * self._old_bytes()
        chunks, copied = 0, list[str]()
        if archives or sum(f.gain for f in families) + sum(h.waste for h in half_empty) > most:
            if families:
                writer = shortening.encode(families, self._generation())
                chunks = writer.chunks
                self._note(writer)
            copied = self._copy(most)
            again = {v for n in archives for v in self._marking.places.archives.get(n, ())}
            again.update(version for n in copied if (version := snapshot_in(n)) is not None)
            self._archive(again, self._next_archive(archives))
        return FoldStats(chunks=chunks, objects=len(copied) + len(archives), nbytes=self._written)

    def _old_bytes(self) -> int:
        """Return the size of the old objects that stay."""
        objects = self._marking.places.objects
        return sum(objects[n].size for n in self._old if n in objects and self._marking.needs(n))

    def _generation(self) -> int:
        return 1 + max(pack.generation for pack in self._marking.places.packs.values())

    def _note(self, writer: PackWriter) -> None:
        """Choose all chains again after packs were written."""
        self._written += writer.stored_bytes
        self._marking.choose_again()

    def _half_empty(self) -> list[_HalfEmpty]:
        """Return the old objects with frames that nothing needs, those with most of them first."""
        found = []
        for name, pack in self._marking.places.packs.items():
            live = self._marking.frames.nbytes[name]
            if name in self._old and (live or self._marking.needs(name)):
                found.append(_HalfEmpty(pack, pack.frame_bytes - live))
        found = [one for one in found if one.waste]
        return sorted(found, key=lambda one: (-one.waste / one.pack.info.size, one.pack.info.name))

    def _copy(self, most: float) -> list[str]:
        """Copy the live frames of half-empty objects, until few bytes are unused.

        Returns:
            The names of the objects of which no frame is needed any more.
        """
        found = self._half_empty()
        left = sum(one.waste for one in found)
        chosen: list[PackContents] = []
        for one in found:
            if left <= most:
                break
            left -= one.waste
            chosen.append(one.pack)
        self._copy_frames(chosen)
        return [pack.info.name for pack in chosen]

    def _copy_frames(self, packs: Sequence[PackContents]) -> None:
        ages = {name: info.created for name, info in self._marking.places.objects.items()}
        ordered = sorted(packs, key=lambda pack: (ages[pack.info.name], pack.info.name))
        writer, reporter = PackWriter(self._db, self._generation()), self._db.reporter
        reporter.started(Stage.FOLD, sum(self._marking.frames.nbytes[p.info.name] for p in packs))
        try:
            with ahead(self._db.store) as announce:
                for pack in ordered:
                    live = [at for at in pack.locations if at in self._marking.frames]
                    announce([[at.range for at in live]])
                    for at in live:
                        writer.add(at.frame.chunk, at.frame.raw_size, [_copy(self._db, at)])
                        reporter.advanced(Stage.FOLD, at.frame.size)
            writer.finish()
        finally:
            reporter.finished(Stage.FOLD)
            writer.close()
        self._note(writer)

    def _archives(self) -> list[str]:
        """Return the old archives with versions that stay, and with others."""
        places, versions = self._marking.places, self._marking.versions
        return [
            name
            for name, members in places.archives.items()
            if name in self._old and self._marking.needs(name) and not versions.issuperset(members)
        ]

    def _archive(self, versions: Iterable[SnapshotId], generation: int) -> None:
        """Write bare copies of those of these versions that stay."""
        content: dict[SnapshotId, bytes] = {}
        for version in self._marking.versions.intersection(versions):
            stored = self._db.snapshots.load_stored(version)
            table = self._marking.frames.table(stored.snapshot)._replace(shallow=stored.shallow)
            bare = stored.bare(self._db.snapshots.placed(table))
            content[version] = b"".join(encode_snapshot(bare))
        if content:
            write_archive(self._db, content, generation)
            self._written += sum(map(len, content.values()))

    def _next_archive(self, archives: Iterable[str]) -> int:
        """Return the generation of an archive that replaces others."""
        generation = 1
        for name in archives:
            with suppress(NotFoundError):  # other maintenance has merged it
                found = parse_archive(self._db.store.get(name), name)
                generation = max(generation, 1 + found.generation)
        return generation


def _copy(db: Database, location: Location) -> EncodedFrame:
    return location.frame.encoded(read_payload(db.store, location))
