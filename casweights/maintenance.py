"""Looking after a store: is everything in it sound, and what takes how much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from casweights.buffers import scratch
from casweights.chunks import damaged_frame, decode_frame
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from casweights.events import Stage
from casweights.format import names
from casweights.format.codecs import Encoding
from casweights.format.fields import parse_id
from casweights.format.hashing import checksum
from casweights.ids import SnapshotId
from casweights.index import read_pack_index
from casweights.snapshots import SnapshotStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.database import Database
    from casweights.format.pack import Frame, Location
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectInfo


_UNSOUND = (IntegrityError, InvalidInputError, NotFoundError, UnsupportedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify` found.

    Attributes:
        problems: One error for each thing that is wrong; empty if the store is sound.
        snapshots: Snapshots looked at.
        packs: Packs looked at.
        frames: Frames looked at.
        nbytes: Bytes of the packs.
    """

    problems: tuple[CasweightsError, ...]
    snapshots: int
    packs: int
    frames: int
    nbytes: int


def verify(db: Database, *, quick: bool) -> Verification:
    """Check every object of the store.

    Args:
        db: The store.
        quick: Check the stored bytes against their checksums, without decoding and hashing the
            chunks: finds damage, but not every forgery.
    """
    problems: list[CasweightsError] = []
    have: set[ChunkId] = set()
    # Listed against the order of writing, so that a commit beside us is seen whole or not at all.
    refs = [*db.store.list(names.HEADS), *db.store.list(names.TAGS)]
    snapshots = list(db.store.list(names.SNAPSHOTS))
    packs = list(db.store.list(names.PACKS))
    frames = 0
    db.reporter.started(Stage.VERIFY, sum(info.size for info in packs))
    try:
        for info, good, errors in db.workers.map(partial(_verify_pack, db, quick), packs):
            problems += errors
            have.update(good)
            frames += len(good) + len(errors)
            db.reporter.advanced(Stage.VERIFY, info.size)
    finally:
        db.reporter.finished(Stage.VERIFY)
    found = _verify_snapshots(db, snapshots, have, problems)
    _verify_refs(db, refs, found, problems)
    _verify_names(db, problems)
    return Verification(
        problems=tuple(problems),
        snapshots=len(found),
        packs=len(packs),
        frames=frames,
        nbytes=sum(info.size for info in packs),
    )


def _verify_pack(
    db: Database, quick: bool, info: ObjectInfo
) -> tuple[ObjectInfo, list[ChunkId], list[CasweightsError]]:
    good: list[ChunkId] = []
    problems: list[CasweightsError] = []
    try:
        for location in read_pack_index(db.store, info):
            try:
                _verify_frame(db, location, quick=quick)
                good.append(location.frame.chunk)
            except IntegrityError as error:
                problems.append(error)
    except _UNSOUND as error:
        problems.append(error)
    return info, good, problems


def _verify_frame(db: Database, location: Location, *, quick: bool) -> None:
    frame, name = location.frame, names.pack_name(location.pack)
    payload = db.store.get(name, frame.offset, frame.size)
    if quick:
        if checksum(payload) != frame.checksum:
            raise damaged_frame(name, frame, "its checksum does not match")
        return
    out = scratch(frame.raw_size)
    decode_frame(frame, payload, out, name)
    if db.hasher(out) != frame.chunk:
        raise damaged_frame(name, frame, "its bytes do not match the chunk's ID")


def _verify_snapshots(
    db: Database,
    listed: Sequence[ObjectInfo],
    have: set[ChunkId],
    problems: list[CasweightsError],
) -> set[SnapshotId]:
    """Check all snapshots; returns those that are in the store, sound or not."""
    stored = SnapshotStore(db.store, db.index, db.config)  # which remembers none yet
    found = set()
    for info in listed:
        try:
            found.add(parse_id(SnapshotId, names.SNAPSHOTS, info.name))
        except IntegrityError as error:
            problems.append(error)
    for snapshot_id in sorted(found):
        name = names.snapshot_name(snapshot_id)
        try:
            snapshot = stored.load(snapshot_id)
        except _UNSOUND as error:
            problems.append(error)
            continue
        lost = {chunk for chunk, _ in snapshot.pieces()} - have
        if lost:
            count = "its chunk" if len(lost) == 1 else f"{len(lost)} of its chunks, as"
            problems.append(_missing(f"{name}: no sound frame holds {count} {min(lost)}"))
        problems.extend(
            _missing(f"{name}: its parent {parent} is not in the store")
            for parent in snapshot.parents
            if parent not in found
        )
    return found


def _verify_refs(
    db: Database,
    listed: Sequence[ObjectInfo],
    snapshots: set[SnapshotId],
    problems: list[CasweightsError],
) -> None:
    for info in listed:
        try:
            target = db.refs.target(info.name)
        except _UNSOUND as error:
            problems.append(error)
            continue
        if target not in snapshots:
            ref = info.name.removesuffix(names.REF_SUFFIX)
            problems.append(_missing(f"{ref} points to {target}, which is not there"))


def _verify_names(db: Database, problems: list[CasweightsError]) -> None:
    """Objects that nothing of ours would have written."""
    folders = (names.PACKS, names.SNAPSHOTS, names.HEADS, names.TAGS)
    problems.extend(
        IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{info.name} is no object of a casweights store")
        for info in db.store.list()
        if info.name != names.CONFIG and not info.name.startswith(folders)
    )


def _missing(message: str) -> IntegrityError:
    return IntegrityError(ErrorCode.MISSING_CHUNK, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStats:
    """One version's share of a store.

    Attributes:
        id: The version.
        nbytes: Its size as plain files.
        new_bytes: Raw bytes of the chunks that no older version of the store has.
        stored_bytes: What those chunks take in the store, encoded.
    """

    id: SnapshotId
    nbytes: int
    new_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What a store holds.

    Attributes:
        versions: All snapshots, oldest first.
        packs: Packs.
        pack_bytes: Their bytes.
        snapshot_bytes: Bytes of the snapshots' own objects.
        chunks: Distinct chunks.
        chunk_bytes: Their raw bytes.
        encodings: Frames by the name of their encoding.
    """

    versions: tuple[VersionStats, ...]
    packs: int
    pack_bytes: int
    snapshot_bytes: int
    chunks: int
    chunk_bytes: int
    encodings: dict[str, int]

    @property
    def version_bytes(self) -> int:
        """Bytes that plain copies of all versions would take."""
        return sum(version.nbytes for version in self.versions)


def stats(db: Database) -> StoreStats:
    """Count what the store holds.

    Raises:
        IntegrityError: A snapshot is damaged.
    """
    db.index.load()
    packs = list(db.store.list(names.PACKS))
    frames = {location.frame.chunk: location.frame for location in db.index}
    return StoreStats(
        versions=tuple(_version_stats(db, frames)),
        packs=len(packs),
        pack_bytes=sum(info.size for info in packs),
        snapshot_bytes=sum(info.size for info in db.store.list(names.SNAPSHOTS)),
        chunks=len(frames),
        chunk_bytes=sum(frame.raw_size for frame in frames.values()),
        encodings=dict(Counter(_encoding_name(frame) for frame in frames.values())),
    )


def _encoding_name(frame: Frame) -> str:
    try:
        return Encoding(frame.encoding).name.lower()
    except ValueError:
        return f"unknown ({frame.encoding})"


def _version_stats(db: Database, frames: dict[ChunkId, Frame]) -> Iterator[VersionStats]:
    seen: set[ChunkId] = set()
    times = {snapshot_id: db.snapshots.load(snapshot_id).time for snapshot_id in db.snapshots.ids()}
    for snapshot_id in sorted(times, key=lambda i: (times[i], i)):
        version = db.snapshots.load(snapshot_id)  # once more, rather than hold them all
        new = {chunk: piece.nbytes for chunk, piece in version.pieces() if chunk not in seen}
        seen.update(new)
        yield VersionStats(
            id=version.id,
            nbytes=version.size,
            new_bytes=sum(new.values()),
            stored_bytes=sum(frames[chunk].size for chunk in new if chunk in frames),
        )
