"""Replacing: what a repair makes of damaged objects, once their content is in new ones.

A pack with damaged frames is deleted when all its frames have replacements, by the rule of a
repack; see docs/design/011 and docs/design/034. What nobody can read is set aside, not deleted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.frames import read_payload
from casweights.database.merged import Merged
from casweights.database.packs import read_pack
from casweights.database.writer import PackWriter
from casweights.errors import IntegrityError, NotFoundError, UnsupportedError
from casweights.format import names
from casweights.format.archive import parse_archive
from casweights.format.layout import BYTES
from casweights.format.snapshot import encode_snapshot
from casweights.ids import SnapshotId
from casweights.operations.archiving import write_archive
from casweights.operations.rebuild import add_whole, read_chunk
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.pack import EncodedFrame, Location
    from casweights.ids import ChunkId, PackId, Suspect
    from casweights.operations.survey import Survey


class Doomed(NamedTuple):
    """A pack that can be replaced.

    Attributes:
        frames: All its frames.
        bad: The chunks of its damaged frames, all of which can be rebuilt from other frames.
    """

    frames: list[Location]
    bad: set[ChunkId]


def replaceable(
    db: Database, found: Survey, damaged: Container[Suspect], have: Container[ChunkId]
) -> dict[str, Doomed]:
    """Return the packs with damaged frames that can be replaced, by the names of their objects.

    Args:
        db: The store.
        found: What is in the store.
        damaged: The damaged frames.
        have: Chunks that can be rebuilt without these frames.
    """
    bad = {at.pack for at in found.frames.locations() if at.suspect in damaged}
    packs: dict[PackId, list[Location]] = {pack: [] for pack in bad}
    for location in found.frames.locations():
        if location.pack in packs:
            packs[location.pack].append(location)
    plain = set(db.objects.sizes(map(names.pack_name, packs)))  # a whole move is no such object
    doomed: dict[str, Doomed] = {}
    for pack, frames in packs.items():
        lost = {at.frame.chunk for at in frames if at.suspect in damaged}
        if names.pack_name(pack) in plain and all(chunk in have for chunk in lost):
            doomed[names.pack_name(pack)] = Doomed(frames, lost)
    return doomed


def replace_packs(
    db: Database,
    look: Database,
    doomed: Mapping[str, Doomed],
    written: PackWriter,
    generation: int,
) -> list[str]:
    """Copy the frames of packs, rebuild those that are damaged, and delete the packs.

    Args:
        db: The store.
        look: The same store, read past caches, which knows what is damaged.
        doomed: The packs.
        written: Has written whole frames of some chunks already, and is finished.
        generation: Generation of the new packs, higher than that of all others.

    Returns:
        The names of the objects that were replaced.
    """
    writer = PackWriter(db, generation)
    try:
        kept = _write_replacements(look, doomed, written, writer)
        writer.finish()
    finally:
        writer.close()
    written.packs += writer.packs
    written.names |= writer.names
    gone = [name for name in doomed if name not in kept | written.names]
    packs = [name for name in gone if name.startswith(names.PACKS)]
    objects = [name for name in gone if not name.startswith(names.PACKS)]
    archived = _archive(db, look, objects, written.names)
    db.store.delete_all(packs)
    _forget(db, [*packs, *archived], written.names)
    return [*packs, *archived]


def _write_replacements(
    look: Database, doomed: Mapping[str, Doomed], written: PackWriter, writer: PackWriter
) -> set[str]:
    """Write the new frames; return the names of packs that must stay after all."""
    kept: set[str] = set()
    bad = {chunk for pack in doomed.values() for chunk in pack.bad}
    frames: dict[ChunkId, list[Location]] = {}
    for location in (location for pack in doomed.values() for location in pack.frames):
        frames.setdefault(location.frame.chunk, []).append(location)
    for chunk, locations in frames.items():
        if written.has(chunk):
            continue
        if chunk in bad:
            raw = read_chunk(look, chunk)
            if raw is not None:
                add_whole(writer, chunk, raw, BYTES)
        else:
            copies = _copies(look, locations)
            writer.add(chunk, locations[0].frame.raw_size, copies)
        if not writer.has(chunk):
            kept |= {names.pack_name(location.pack) for location in locations}
    return kept


def _copies(look: Database, locations: Sequence[Location]) -> list[EncodedFrame]:
    """Return copies of all frames of a chunk, equal ones once; none if one cannot be copied."""
    copies: dict[tuple[int, int, bytes, bytes], EncodedFrame] = {}
    for location in locations:
        frame = location.frame
        if frame.content in copies:
            continue
        if frame.raw_size != locations[0].frame.raw_size:  # forged: one of them is wrong
            return []
        try:
            payload = read_payload(look.store, location)
        except (IntegrityError, NotFoundError):
            return []
        copies[frame.content] = frame.encoded(payload)
    return [copies[key] for key in sorted(copies)]


def _archive(
    db: Database, look: Database, objects: Sequence[str], new: Collection[str]
) -> list[str]:
    """Move versions whose objects carry replaced frames into archives; return those that moved."""
    moved: list[str] = []
    into = names.pack_of(min(new)) if new else None  # a hint, where readers look first
    for name in objects:
        pack = names.pack_of(name)
        with suppress(IntegrityError, NotFoundError):
            stored = look.snapshots.load_own(SnapshotId(pack))
            bare = stored.archived({} if into is None else {pack: into})
            content = b"".join(encode_snapshot(bare))
            if write_archive(db, {stored.snapshot.id: content}, 1):
                db.objects.delete_all([name])
                moved.append(name)
    return moved


def _forget(db: Database, gone: Sequence[str], new: Iterable[str]) -> None:
    """Let the handle know that packs were replaced."""
    sizes = db.store.sizes(list(new))
    packs = [read_pack(db.store, ObjectInfo(name, size)) for name, size in sizes.items()]
    db.learn_merged(Merged(gone, packs))
    db.index.drop(gone)


def beyond_reading(db: Database, look: Database, found: Survey) -> list[str]:
    """Return the objects of which nobody can read anything, because their index is damaged.

    Whole moves are left out: a branch names its versions by them.
    """
    packs = [name for name in sorted(found.frames.unreadable) if _is_pack(name)]
    listed = [*packs, *(info.name for info in found.archives)]
    there = db.objects.sizes(listed)
    return [name for name in listed if name in there and _is_damaged(look, name)]


def set_aside(db: Database, look: Database, doomed: Sequence[str]) -> int:
    """Move objects to ``lost/``, and return their number.

    Under the names of packs, sound copies can be put again. Others may be doing so: each object is
    read once more just before it is deleted.
    """
    moved: list[str] = []
    for name in doomed:
        aside = names.LOST + name
        db.objects.copy_from(db.objects, [aside], {aside: name})
        if _is_damaged(look, name):
            db.objects.delete_all([name])
            moved.append(name)
    db.index.drop(moved)
    db.snapshots.archives.refresh()
    return len(moved)


def _is_damaged(look: Database, name: str) -> bool:
    """Whether the index of an object is damaged, and not only unknown to this casweights."""
    try:
        if name.startswith(names.ARCHIVES):
            parse_archive(look.store.get(name), name)
        else:
            read_pack(look.store, ObjectInfo(name, look.store.size(name)))
    except IntegrityError:
        return True
    except (NotFoundError, UnsupportedError):
        return False
    return False


def _is_pack(name: str) -> bool:
    with suppress(IntegrityError):
        return bool(names.pack_of(name))
    return False
