"""Repair: rebuild what a store has lost, from its own frames, this machine and other places.

New packs and versions are durable before what they replace is deleted. What no place has is
recorded version by version; docs/design/034 has the reasoning.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import PACK_TARGET
from casweights.database.deleting import may_delete
from casweights.errors import ErrorCode, IntegrityError, NotFoundError, StoreError
from casweights.format.lost import Loss
from casweights.format.snapshot import encode_snapshot
from casweights.operations.archiving import replace_damaged_archives, write_archive
from casweights.operations.donors import Place, donors
from casweights.operations.rebuild import Rebuild, places_of
from casweights.operations.replacing import beyond_reading, replace_packs, replaceable, set_aside
from casweights.operations.survey import Choice, note_damage, survey
from casweights.operations.transfer import check_configs
from casweights.results import LostVersion, RepairReport

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from casweights.content.donated import PlainFiles
    from casweights.database import Database
    from casweights.format.manifest import Snapshot
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId, SnapshotId, Suspect
    from casweights.operations.donors import Donor
    from casweights.operations.survey import Survey


def repair(
    db: Database,
    stores: Collection[tuple[str, Database]],
    files: Sequence[PlainFiles],
    *,
    apply: bool,
) -> RepairReport:
    """Rebuild damaged and missing chunks and versions.

    Args:
        db: The store to repair.
        stores: Other stores with their names.
        files: Directories and model repositories.
        apply: Whether to write; otherwise the report says what would be rebuilt.

    Raises:
        InvalidInputError: Another store has another digest or chunk size, or a file of a directory
            cannot be read.
        StoreError: A store could not be read or written. Repeat the call to continue.
    """
    for _, other in stores:
        check_configs(other, db)
    with db.onlooker(direct=True) as look, donors(db, stores, files) as places:
        found = survey(look, Choice())
        look.index.load()
        look.index.heed(set(found.damaged()))
        work = _Repair(db, look, found, places, apply=apply)
        try:
            return work.run()
        finally:
            work.close()


class _Missing(NamedTuple):
    """What a version still lacks."""

    version: LostVersion
    loss: Loss


class _Repair:
    """One repair; `run` is called once."""

    def __init__(
        self,
        db: Database,
        look: Database,
        found: Survey,
        donors: Sequence[Donor],
        *,
        apply: bool,
    ) -> None:
        self._db = db
        self._look = look
        self._found = found
        self._donors = donors
        self._apply = apply
        self._may_delete = not apply or may_delete(db.store)
        self._damaged: dict[Suspect, str] = found.damaged()
        contents = look.index.contents()
        self._generation = 1 + max((pack.generation for pack in contents), default=0)
        self._rebuild = Rebuild(db, look, donors, generation=self._generation, apply=apply)
        self._restored: dict[SnapshotId, StoredSnapshot] = {}
        self._gone: set[SnapshotId] = set()  # versions that no donor has

    def close(self) -> None:
        self._rebuild.close()

    def run(self) -> RepairReport:
        """Repair everything that can be repaired."""
        if self._apply:
            note_damage(self._db, self._damaged)
        self._find_versions()
        missing = self._rebuild_chunks()
        replaced = self._replace_objects()
        lost = sorted(self._lost(), key=lambda missing: missing.version.snapshot)
        if self._apply:
            self._record(lost)
            self._db.findings.answer_gone()
            self._db.index.heed(self._db.findings.load())
        writer = self._rebuild.writer
        return RepairReport(
            applied=self._apply,
            damaged=len(self._damaged),
            missing=missing,
            rebuilt=self._rebuild.sources,
            restored=tuple(sorted(self._restored)),
            mended=self._mended(lost),
            lost=tuple(missing.version for missing in lost),
            packs=writer.packs,
            nbytes=sum(self._db.store.sizes(writer.names).values()) if writer.names else 0,
            replaced=replaced,
            may_delete=self._may_delete,
        )

    def _have(self) -> _Have:
        """Return the chunks that can be rebuilt by now."""
        return _Have(self._found.frames.sound, self._rebuild)

    def _find_versions(self) -> None:
        """Look for the versions that the store cannot read, and for those before them."""
        todo = [*self._found.unreadable, *sorted(self._found.absent)]
        while todo:
            version = todo.pop()
            if version in self._restored or version in self._gone:
                continue
            for donor in self._donors:
                stored = donor.version(version)
                if stored is not None and stored.snapshot.config == self._db.config:
                    self._restored[version] = stored
                    if not stored.shallow:
                        todo += self._absent(stored.snapshot.parents)
                    break
            else:
                self._gone.add(version)

    def _absent(self, versions: Iterable[SnapshotId]) -> list[SnapshotId]:
        return [version for version in versions if version not in self._found.found]

    def _lacking(self) -> Iterator[Snapshot]:
        """Yield the versions that lacked chunks before, with what has been found since."""
        for version in self._found.lacking:
            with suppress(NotFoundError):
                yield self._rebuild.version(self._look.snapshots.load_stored(version))
        for stored in self._restored.values():
            yield self._rebuild.version(stored)

    def _rebuild_chunks(self) -> int:
        """Rebuild chunks; return the number of those that the store could not rebuild before."""
        work, have = self._rebuild, self._have()
        wanted: dict[ChunkId, Place] = {}
        for version in self._lacking():
            wanted |= places_of(version, have, structure=True)
        wanted |= self._bases(wanted)
        missing = set(wanted)
        work.gather(dict(wanted), structure=True)
        work.finish(wanted)
        wanted = {}
        for version in self._lacking():
            with suppress(IntegrityError):  # its lists of chunks are lost
                wanted |= places_of(version, have, structure=False)
        for location in self._found.frames.locations():
            if location.suspect in self._damaged and location.frame.chunk not in have:
                wanted.setdefault(location.frame.chunk, Place())
        wanted |= self._bases(wanted)
        missing |= wanted.keys()
        work.gather(dict(wanted))
        work.finish(wanted)
        return len(missing)

    def _bases(self, wanted: Collection[ChunkId]) -> dict[ChunkId, Place]:
        """Return the chunks from which wanted ones could be rebuilt, and that are lost, too."""
        frames: dict[ChunkId, list[ChunkId]] = {}
        for location in self._found.frames.stranded:
            if location.suspect not in self._damaged:
                frames.setdefault(location.frame.chunk, []).extend(location.frame.bases)
        bases: dict[ChunkId, Place] = {}
        todo = list(wanted)
        while todo:
            for base in frames.get(todo.pop(), []):
                if base not in bases and base not in wanted and base not in self._have():
                    bases[base] = Place()
                    todo.append(base)
        return bases

    def _replace_objects(self) -> int:
        """Write versions, and replace or set aside damaged objects; return their number.

        What was rebuilt is stored by then, so a client that may not delete leaves it at that.
        """
        doomed = replaceable(self._db, self._found, self._damaged, self._have())
        aside = beyond_reading(self._db, self._look, self._found)
        if not self._apply:
            return len(doomed) + len(aside)
        self._write_versions()
        if not self._may_delete:
            return 0
        moved = set_aside(self._db, self._look, aside)
        replaced: list[str] = []
        if doomed:
            writer, generation = self._rebuild.writer, self._generation
            replaced = replace_packs(self._db, self._look, doomed, writer, generation)
        replace_damaged_archives(self._db)
        return len(replaced) + moved

    def _write_versions(self) -> None:
        """Write the versions that were found elsewhere into archives.

        Under their own names, another repair might take them for the damaged ones.
        """
        content: dict[SnapshotId, bytes] = {}
        for version, stored in self._restored.items():
            content[version] = b"".join(encode_snapshot(stored.archived({})))
            if sum(map(len, content.values())) > PACK_TARGET:
                self._write_archive(content)
                content = {}
        if content:
            self._write_archive(content)

    def _write_archive(self, content: dict[SnapshotId, bytes]) -> None:
        """Write an archive under a name that no damaged object has: the generation changes it."""
        for generation in range(1, 3 + len(self._found.archives)):
            if write_archive(self._db, content, generation):
                return
        msg = (
            f"an archive of {len(content)} versions was written, and listings do not show it; "
            "repeat the repair"
        )
        raise StoreError(ErrorCode.IO_FAILED, msg)

    def _lost(self) -> Iterator[_Missing]:
        """Yield what is still lost of each version."""
        have, now = self._have(), time.time_ns() // 1000
        for version in self._lacking():
            chunks = places_of(version, have, structure=True)
            if not chunks:
                with suppress(IntegrityError):
                    chunks = places_of(version, have, structure=False)
            if chunks:
                ids = tuple(sorted(chunks))
                known = LostVersion(
                    snapshot=version.id,
                    number=version.number,
                    message=version.message,
                    chunks=len(ids),
                )
                yield _Missing(
                    known, Loss(snapshot=version.id, manifest=False, chunks=ids, time=now)
                )
        for gone in self._gone:
            known = LostVersion(snapshot=gone, number=None, message="", chunks=0)
            yield _Missing(known, Loss(snapshot=gone, manifest=True, chunks=(), time=now))

    def _mended(self, lost: Sequence[_Missing]) -> tuple[SnapshotId, ...]:
        """Return the versions that are complete again."""
        still = {missing.version.snapshot for missing in lost}
        broken = [*self._found.lacking, *self._restored]
        return tuple(sorted({version for version in broken if version not in still}))

    def _record(self, lost: Sequence[_Missing]) -> None:
        """Record what is lost, and withdraw the records of versions that are complete."""
        for missing in lost:
            self._db.losses.record(missing.loss)
        still = {missing.version.snapshot for missing in lost}
        self._db.losses.withdraw([v for v in self._found.recorded if v not in still])


class _Have:
    """The chunks that can be rebuilt: the sound ones, and those that were found."""

    def __init__(self, sound: set[ChunkId], rebuild: Rebuild) -> None:
        self._sound = sound
        self._rebuild = rebuild

    def __contains__(self, chunk: object) -> bool:
        return (
            chunk in self._sound or chunk in self._rebuild.found or chunk in self._rebuild.regained
        )
