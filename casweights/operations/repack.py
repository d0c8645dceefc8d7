"""Repack: store all chunks again, as the smallest differences available; set old packs aside."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from casweights.config import REPLACED_GRACE
from casweights.database.deleting import check_may_delete
from casweights.database.frames import read_payload
from casweights.database.known_chunks import KnownChunks
from casweights.database.packs import list_packs
from casweights.database.writer import PackWriter
from casweights.errors import IntegrityError, NotFoundError
from casweights.events import Stage
from casweights.format import names
from casweights.format.layout import BYTES, Piece
from casweights.format.sampling import sampled_tensors
from casweights.operations.archiving import (
    archive_carrying,
    renew_lineage,
    replace_damaged_archives,
)
from casweights.operations.base_chunks import BaseChunks
from casweights.operations.bases import Bases
from casweights.operations.candidates import New
from casweights.operations.differences import (
    MAX_CHAIN_SHARE,
    MAX_TENSOR_SHARE,
    DifferenceEncoder,
    growth,
)
from casweights.operations.forest import forest
from casweights.operations.lineage import Lineage
from casweights.operations.merging import Budget
from casweights.operations.ordering import in_order, placed
from casweights.operations.rehearsal import Rehearsal
from casweights.operations.relatives import relatives
from casweights.operations.replacements import finish_replaced, free_from, set_replaced_aside
from casweights.operations.rewriting import Rewrite, rewrites
from casweights.operations.room import look_for_room
from casweights.operations.rows import affordable, find_rows
from casweights.operations.sampling import signature_of
from casweights.operations.signing import sign
from casweights.results import RepackStats
from casweights.system.buffers import uninitialized
from casweights.system.threads import Once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import timedelta

    from casweights.config import Compression
    from casweights.database import Database
    from casweights.database.packs import PackContents
    from casweights.errors import CasweightsError
    from casweights.format.lineage import Origin
    from casweights.format.manifest import Snapshot
    from casweights.format.pack import EncodedFrame, Location
    from casweights.ids import ChunkId, SnapshotId
    from casweights.operations.ordering import Placed
    from casweights.stores.base import ObjectInfo


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be stored again, and how.

    Attributes:
        db: The store.
        old: The packs to replace.
        versions: All versions.
        above: What versions of trees are to be differences from, see `Forest`.
        compression: How whole chunks are stored.
        roomy: The versions on trees that were looked at, and whether they have room.
    """

    db: Database
    old: Sequence[PackContents]
    versions: Mapping[SnapshotId, Placed]
    above: Mapping[SnapshotId, SnapshotId | None]
    compression: Compression
    roomy: dict[SnapshotId, bool] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The bytes of all versions."""
        return sum(version.size for version in self.versions.values())

    def progress(self, nbytes: int) -> Callable[[int], None]:
        """Return a function that reports progress: that of all versions after `nbytes`."""
        done = reported = 0

        def advanced(some: int) -> None:
            nonlocal done, reported
            done += some
            now = self.size * done // nbytes
            self.db.reporter.advanced(Stage.REPACK, now - reported)
            reported = now

        return advanced


@dataclass(frozen=True, slots=True)
class _Repack:
    """The parts of a running repack.

    Attributes:
        task: What is to be done.
        writer: Writes the new frames.
        db: The store.
        plan: The new frames alone, from which the encoder knows the new chains.
        done: Chunks that have new frames.
        lineages: The lineage of each version to which the new frames give another one.
        steps: Differences of the version that is at work, which were made to look for room.
    """

    task: _Task
    writer: PackWriter
    db: Database
    plan: KnownChunks = field(default_factory=KnownChunks)
    done: set[ChunkId] = field(default_factory=set)
    lineages: dict[SnapshotId, Sequence[Origin]] = field(default_factory=dict)
    steps: dict[ChunkId, EncodedFrame] = field(default_factory=dict)

    def encoder(self, version: Snapshot, bases: Bases) -> DifferenceEncoder:
        """Return an encoder for a version with these bases."""
        db, plan = self.db, self.plan
        above, roomy = self.task.above, self.task.roomy
        # Chains in trees are long, and what is built on them needs the same room.
        if version.id not in roomy and any(one.version in above for one in bases.versions()):
            room = look_for_room(db, rewrites(version, bases, ()), plan)
            roomy[version.id] = room.is_enough
            self.steps.update(room.steps)
        return DifferenceEncoder(
            db.reader,
            plan,
            db.cache,
            db.snapshots.structure,
            self.task.compression,
            growth=Once(partial(growth, bases.first, plan)),
            chain_share=MAX_TENSOR_SHARE if roomy.get(version.id) else MAX_CHAIN_SHARE,
            is_plain=db.config.standalone,
        )


def repack(
    db: Database, *, compression: Compression, grace: timedelta = REPLACED_GRACE
) -> RepackStats:
    """Store the chunks of all packs again, in new packs; set the packs aside that these replace.

    Versions whose objects carry frames move into archives first, and their frames into packs.
    Objects that are damaged, or that others add at the same time, keep their frames, and new frames
    may build on them.

    A pack is set aside only if it was read before the rewrite and each of its frames has a durable
    replacement in a pack of a higher generation: its chunk can be rebuilt from the new packs, or
    the frame itself was copied. So a chunk that was ever in the store stays in it, no matter what
    commits, transfers and other repacks do at the same time; docs/design/011 has the reasoning.
    Chunks that no version contains are copied, because a running commit may rely on them. A pack
    with a damaged frame that cannot be replaced is kept.

    Versions that are related may become differences from each other in another way than when they
    were committed, see `forest`. If the store would be larger afterwards, nothing is written.

    Args:
        db: The store.
        compression: How whole chunks are stored. With "fast", the store may be larger afterwards.
        grace: How long what was replaced lies aside before it is deleted, with 0 at once.

    Raises:
        IntegrityError: A version cannot be rebuilt; no pack was set aside.
        StoreError: The store could not be written, or this client may not delete objects.
    """
    check_may_delete(db.store, "A repack saves space by deleting the packs that it replaces")
    archive_carrying(db)
    replace_damaged_archives(db)
    db.index.load()
    old = [pack for pack in db.index.contents() if pack.info.name.startswith(names.PACKS)]
    sign(db)
    versions = placed(db)
    trees = forest(db, versions, compression)
    task = _Task(db, old, versions, trees.above, compression)
    db.reporter.started(Stage.REPACK, 2 * task.size)
    try:
        replaced = _renew(task)
    finally:
        db.reporter.finished(Stage.REPACK)
    db.findings.answer_gone()
    freed = sum(finish_replaced(db, grace, Budget()))
    now = list(list_packs(db.store, carried=False))
    return RepackStats(
        packs=len(now),
        old_packs=len(old),
        nbytes=sum(info.size for info in now),
        old_bytes=sum(pack.info.size for pack in old),
        unreadable=db.index.unreadable,
        aside_bytes=sum(info.size for info in replaced),
        freed_bytes=freed,
        free_from=free_from(db, grace) if replaced else 0,
        compared=trees.versions,
        tree_bytes=round(trees.nbytes),
        least_bytes=round(trees.least),
    )


def _generation(old: Sequence[PackContents]) -> int:
    """Return the generation of packs that replace others."""
    return 1 + max((pack.generation for pack in old), default=0)


def _repacked(old: Sequence[PackContents]) -> int | None:
    """Return the generation of the packs of a repack that wrote all of them, if one did.

    Another one may write the same. Commits write generation 0.
    """
    generations = {pack.generation for pack in old}
    return generations.pop() if len(generations) == 1 and 0 not in generations else None


def _renew(task: _Task) -> list[ObjectInfo]:
    """Store all chunks again, unless the new packs would be those of before, or larger.

    Returns:
        The old packs that were set aside.
    """
    old = sum(pack.info.size for pack in task.old)
    with Rehearsal(task.db, _generation(task.old), _repacked(task.old)) as rehearsal:
        work = _Repack(task, rehearsal, task.db)
        replaced = _rewrite_all(work)
        # Encoding is deterministic and a pack is named by its content, so equal names are enough.
        if rehearsal.names_before == {pack.info.name for pack in task.old}:
            return []
        if task.compression != "fast" and rehearsal.nbytes > old:
            return []
        if rehearsal.is_complete:
            rehearsal.write(task.progress(rehearsal.nbytes))
        else:
            work = _Repack(task, PackWriter(task.db, _generation(task.old)), task.db)
            replaced = _rewrite_all(work)
    renew_lineage(task.db, work.lineages)
    for _ in set_replaced_aside(task.db, replaced, sorted(work.writer.names)):
        pass
    task.db.index.load()
    return replaced


def _rewrite_all(work: _Repack) -> list[ObjectInfo]:
    """Store all chunks in new frames, which the writer has finished when this returns.

    Returns:
        The old packs that are no longer needed.
    """
    old, writer = work.task.old, work.writer
    _keep_carried(work, old)
    try:
        _rewrite_versions(work)
        failed = _copy_others(work, old)
        writer.finish()
    finally:
        writer.close()
    kept = {names.pack_name(loc.pack) for loc in failed if loc.frame.chunk not in work.plan}
    # An old pack may be identical to a new one, and must stay then.
    return [pack.info for pack in old if pack.info.name not in kept | writer.names]


def _keep_carried(work: _Repack, old: Sequence[PackContents]) -> None:
    """Treat frames that snapshots carry as if they were new, so that they are not stored again.

    The chunks of old packs are stored again in any case: a carried frame may be damaged, and the
    old pack goes.
    """
    index = work.db.index
    again = {location.frame.chunk for pack in old for location in pack.locations}
    for pack in index.contents():
        if pack.info.name.startswith(names.SNAPSHOTS):
            kept = [at for at in pack.locations if at.frame.chunk not in again]
            frames = [at for at in kept if not index.doubts(at)]
            work.plan.add_frames(frames)
            work.done.update(at.frame.chunk for at in frames)


def _rewrite_versions(work: _Repack) -> None:
    earlier: dict[SnapshotId, None] = {}
    versions = work.task.versions
    for version in in_order(versions, work.task.above):
        lineage = _rewrite(work, work.db.snapshots.load(version, with_locations=True), earlier)
        if tuple(lineage) != tuple(versions[version].lineage):
            work.lineages[version] = lineage
        earlier[version] = None
        work.db.reporter.advanced(Stage.REPACK, versions[version].size)


def _rewrite(work: _Repack, version: Snapshot, earlier: dict[SnapshotId, None]) -> Sequence[Origin]:
    """Store those chunks of a version in new frames that have none yet; return its lineage."""
    bases = _bases(work, version, earlier)
    built_on: dict[ChunkId, Iterable[ChunkId]] = {}
    jobs: dict[ChunkId, Rewrite] = {}
    for job in rewrites(version, bases, work.done):
        jobs.setdefault(job.chunk, job)
    work.steps.clear()
    encode = partial(_encode, work, work.encoder(version, bases))
    for job, frames in work.db.workers.map(encode, jobs.values()):
        work.writer.add(job.chunk, job.piece.nbytes, frames)
        work.done.add(job.chunk)
        if any(frame.bases for frame in frames):
            built_on[job.chunk] = job.bases
        # The chains of the next chunks count on these frames before their pack is written.
        work.plan.add_frames(job.planned(frames))
    lineage = Lineage(bases, next(iter(version.parents), None))
    lineage.count_all(version, built_on)
    return lineage.origins()


def _bases(work: _Repack, version: Snapshot, earlier: dict[SnapshotId, None]) -> Bases:
    """Return the chunks of the version's first parent, or else of its relatives.

    The version that it is a difference from in a tree comes first.
    """
    db = work.db
    size = db.config.chunk_size
    chunks = {
        (file.path, piece): chunk for file in version.files for chunk, piece in file.pieces(size)
    }
    reader = db.reader.with_local(db.cache)

    def read(path: str, piece: Piece) -> memoryview:
        out = uninitialized(piece.nbytes)
        reader.readinto(chunks[path, piece], out)
        return out

    above = next(iter(version.parents), None)
    if version.id in work.task.above:
        above = work.task.above[version.id]
        if above is None:
            return Bases()
    if above in earlier:
        parent = BaseChunks(db.snapshots.load(above), version.files)
        made = find_rows(db, version.files, read, Bases(parent), [parent])
        return affordable(made, version.files, size)
    signature = signature_of(db, version)
    if signature is None:
        return Bases()
    tensors = sampled_tensors((file.path, file.size, file.header) for file in version.files)
    found = relatives(db, New(version.files, tensors, signature, read), within=earlier)
    made = find_rows(db, version.files, read, found, found.related)
    return affordable(made, version.files, size)


def _encode(
    work: _Repack, encoder: DifferenceEncoder, job: Rewrite
) -> tuple[Rewrite, list[EncodedFrame]]:
    db = work.db
    plain = db.index.plain_chain(job.chunk) is not None
    step = work.steps.pop(job.chunk, None)
    return job, job.encode(encoder, db.reader, db.cache, plain=plain, step=step)


def _copy_others(work: _Repack, old: Sequence[PackContents]) -> list[Location]:
    """Copy the frames of chunks that no version contains.

    Returns:
        The frames that could not be copied, because they are damaged or their pack was deleted.
    """
    others: dict[ChunkId, list[Location]] = {}
    for location in (location for pack in old for location in pack.locations):
        if location.frame.chunk not in work.done:
            others.setdefault(location.frame.chunk, []).append(location)
    failed: list[Location] = []
    for chunk in sorted(others):
        index = work.db.index
        good = {location for location in index.frames(chunk) if not index.doubts(location)}
        nbytes = others[chunk][0].frame.raw_size
        frames: list[EncodedFrame] = []
        damage: dict[Location, CasweightsError] = {}
        for equal in _alike(others[chunk]):
            sound = [loc for loc in equal if loc in good and loc.frame.raw_size == nbytes]
            copy = _copy(work.db, sound, damage)
            if copy is None:
                failed += equal
            else:
                frames.append(copy)
        if damage:
            index.distrust(damage)
        work.writer.add(chunk, nbytes, frames)
        job = Rewrite(chunk, Piece(0, nbytes, BYTES), None)
        work.plan.add_frames(job.planned(frames))
    return failed


def _alike(locations: Sequence[Location]) -> list[list[Location]]:
    """Group the equal frames of one chunk.

    The order of the groups depends on the frames alone, not on where they are stored: repeating a
    repack must write the same packs.
    """
    groups: dict[tuple[int, int, bytes, bytes], list[Location]] = {}
    for location in locations:
        groups.setdefault(location.frame.content, []).append(location)
    return [groups[key] for key in sorted(groups)]


def _copy(
    db: Database, locations: Sequence[Location], damage: dict[Location, CasweightsError]
) -> EncodedFrame | None:
    """Copy the first of these equal frames that can be read; None if all are unreadable.

    Frames that cannot be read are added to `damage`.
    """
    for location in locations:
        try:
            payload = read_payload(db.store, location)
        except (IntegrityError, NotFoundError) as error:
            damage[location] = error
        else:
            return location.frame.encoded(payload)
    return None
