"""Check all frames of a store: their stored bytes, and the chunks that are decoded from them."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.chains import MAX_LINKS
from casweights.database.frames import damaged_frame, decode_frame, read_payload
from casweights.database.packs import read_pack_index
from casweights.errors import (
    CasweightsError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from casweights.events import Stage
from casweights.format import names
from casweights.format.segment_rows import KEY_SIZE
from casweights.ids import CarriedPackId, Suspect
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.database import Database
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId
    from casweights.stores.base import ObjectInfo

UNSOUND = (IntegrityError, InvalidInputError, NotFoundError, UnsupportedError)


class _Pending(NamedTuple):
    """A frame that can be checked now, because its base was checked.

    Attributes:
        location: The frame.
        links: Number of frames in its chain, itself included.
        base: The base's bytes; None for a whole frame, or if chunks are not decoded.
    """

    location: Location
    links: int
    base: memoryview | None


class FrameCheck:
    """One check of the frames in some packs.

    Call `read_indexes` first, which finds the frames; then `check`, which checks each of them or
    a choice; then `blame`. One thread calls them, and the workers of the store share the work. The
    attributes are complete when `check` returns. Damage to the store is collected in `problems`,
    never raised.

    Args:
        db: The store.
        quick: Check stored bytes against their checksums, without decoding them.

    Attributes:
        problems: One error for each damaged frame or pack.
        gone: Names of packs that were deleted since they were listed.
        unreadable: Names of packs, and of snapshots' objects, whose index is damaged.
        packs: Number of packs, those that snapshots carry included.
        frames: Number of frames found.
        keys: The beginnings of the chunk IDs of each pack whose index is readable. Those that
            snapshots carry are left out: the object of a snapshot may get other frames.
        checked: Number of frames that were checked.
        checked_bytes: Their stored bytes.
        sound: Chunks that have a sound frame, and those that were not chosen.
        stranded: Frames whose base has no sound frame.
    """

    def __init__(self, db: Database, *, quick: bool) -> None:
        self._db = db
        self._quick = quick
        self._lock = threading.Lock()  # held while `sound` or `gone` is used
        self._by_base: dict[ChunkId | None, list[Location]] = {}  # whole frames at None
        self._derived: list[Location] = []
        self.problems: list[CasweightsError] = []
        self.gone: set[str] = set()
        self.unreadable: set[str] = set()
        self.packs = 0
        self.frames = self.checked = self.checked_bytes = 0
        self.sound: set[ChunkId] = set()
        self.stranded: list[Location] = []
        self.keys: dict[PackId, set[bytes]] = {}
        self._left_out: set[ChunkId] = set()

    def read_indexes(self, packs: Sequence[ObjectInfo]) -> None:
        """Read the indexes of these packs, and remember the frames that they list."""
        db = self._db
        for info, found in db.workers.map(partial(_try_index, db), packs):
            locations: Sequence[Location] = []
            if isinstance(found, NotFoundError):
                self.gone.add(info.name)
            elif isinstance(found, CasweightsError):
                self.problems.append(found)
                self.unreadable.add(info.name)
            else:
                locations = found
            self.packs += bool(locations) or not _is_snapshot(info)
            for location in locations:
                if location.frame.roots:
                    self._derived.append(location)
                else:
                    self._by_base.setdefault(location.frame.base, []).append(location)
                if not isinstance(location.pack, CarriedPackId):
                    keys = self.keys.setdefault(location.pack, set())
                    keys.add(location.frame.chunk[:KEY_SIZE])
            self.frames += len(locations)
            index_bytes = info.size - sum(location.frame.size for location in locations)
            db.reporter.advanced(Stage.VERIFY, index_bytes)

    def locations(self) -> Iterator[Location]:
        """Yield all frames that `read_indexes` found."""
        return (at for frames in (*self._by_base.values(), self._derived) for at in frames)

    def check(self, chosen: Callable[[ChunkId], bool] | None = None) -> None:
        """Check the frames that `read_indexes` found, each difference after its base.

        Args:
            chosen: Which chunks to check the frames of, with all that these build on; None for all.
        """
        if chosen is not None:
            self._choose(chosen)
        # Frames form trees: whole frames are the first, and the differences from a chunk are its
        # children. Walking a tree from its first frame decodes each base once. Derived frames begin
        # trees, too, and are made from chunks of the others.
        checked = self._check_trees(self._by_base.get(None, []))
        derived = [at for at in self._derived if self.sound.issuperset(at.frame.bases)]
        checked |= self._check_trees(derived)
        self.stranded = [location for location in self.locations() if location not in checked]
        for location, error in self._db.workers.map(partial(_try_payload, self._db), self.stranded):
            if isinstance(error, NotFoundError):
                self.gone.add(names.pack_name(location.pack))
            elif error is not None:
                self.problems.append(error)
            self._advance([location])
        self.sound |= self._left_out

    def _check_trees(self, first: Sequence[Location]) -> set[Location]:
        """Check trees, given their first frames, and return the frames that were checked."""
        checked: set[Location] = set()
        for tree, errors in self._db.workers.map(self._check_tree, first):
            self.problems += errors
            checked.update(tree)
            self._advance(tree)
        return checked

    def _choose(self, chosen: Callable[[ChunkId], bool]) -> None:
        """Forget the frames of chunks that were not chosen and that no chosen one builds on."""
        bases: dict[ChunkId, set[ChunkId]] = {}
        for frame in (location.frame for location in self.locations()):
            bases.setdefault(frame.chunk, set()).update(frame.bases)
        needed = set(filter(chosen, bases))
        todo = list(needed)
        while todo:
            new = bases.get(todo.pop(), set()) - needed
            needed |= new
            todo += new
        self._left_out = bases.keys() - needed
        self._by_base = {
            base: [location for location in frames if location.frame.chunk in needed]
            for base, frames in self._by_base.items()
        }
        self._derived = [at for at in self._derived if at.frame.chunk in needed]

    def _advance(self, checked: Sequence[Location]) -> None:
        nbytes = sum(location.frame.size for location in checked)
        self.checked += len(checked)
        self.checked_bytes += nbytes
        self._db.reporter.advanced(Stage.VERIFY, nbytes)

    def _check_tree(self, first: Location) -> tuple[list[Location], list[CasweightsError]]:
        """Check a whole or derived frame, and all differences whose chains begin with it.

        Returns:
            The frames that were checked, and the errors that were found.
        """
        checked: list[Location] = []
        problems: list[CasweightsError] = []
        pending = [_Pending(first, 1, None)]
        while pending:
            due = pending.pop()
            checked.append(due.location)
            try:
                pending += self._check_frame(due)
            except IntegrityError as error:
                problems.append(error)
            except NotFoundError:
                with self._lock:
                    self.gone.add(names.pack_name(due.location.pack))
        return checked, problems

    def _check_frame(self, due: _Pending) -> list[_Pending]:
        """Check one frame, and return the differences from its chunk, which can be checked next.

        Raises:
            IntegrityError: It is damaged.
            NotFoundError: Its pack was deleted.
        """
        if due.links > MAX_LINKS:
            raise damaged_frame(due.location, f"its chain has more than {MAX_LINKS} frames")
        raw = self._decode(due.location, due.base)
        chunk = due.location.frame.chunk
        # A chunk may have frames in several trees: the first sound one continues with the children.
        with self._lock:
            is_new = chunk not in self.sound
            self.sound.add(chunk)
        children = self._by_base.get(chunk, []) if is_new else []
        return [_Pending(child, due.links + 1, raw) for child in children]

    def _decode(self, location: Location, base: memoryview | None) -> memoryview | None:
        """Verify a frame and return its chunk's bytes; a quick check returns None."""
        payload = read_payload(self._db.store, location)
        if self._quick:
            return None
        out = uninitialized(location.frame.raw_size)
        if base is not None:
            if len(base) != len(out):
                raise damaged_frame(location, "its base has another size")
            out[:] = base
        decode_frame(location, payload, out, self._roots(location))
        if not self._db.reader.is_right(location.frame.chunk, out):
            raise damaged_frame(location, "its bytes do not match the chunk's ID")
        return out

    def _roots(self, location: Location) -> list[memoryview]:
        """Return the roots of a frame, which are sound; none if it is not derived.

        Raises:
            IntegrityError: A root has another size than the frame claims, or they are too large.
        """
        try:
            return self._db.reader.read_roots(location.frame)
        except IntegrityError as error:
            raise damaged_frame(location, f"its roots cannot be used: {error.message}") from error

    def blame(self, lost: set[ChunkId]) -> Iterator[IntegrityError]:
        """Yield an error for each stranded frame from which a lost chunk would be rebuilt.

        Other stranded frames are not reported. They are harmless: a push copies whole packs, which
        may contain frames that no version of this store needs.
        """
        frames: dict[ChunkId, list[Location]] = {}
        for location in self.stranded:
            frames.setdefault(location.frame.chunk, []).append(location)
        pending, seen = sorted(lost), set(lost)
        while pending:
            for location in frames.get(pending.pop(), []):
                bases = location.frame.bases
                lost_bases = [base for base in bases if base not in self.sound] or bases
                yield damaged_frame(location, f"its base {lost_bases[0]} cannot be rebuilt")
                new = set(lost_bases) - seen
                seen |= new
                pending += sorted(new)


def _try_index(
    db: Database, info: ObjectInfo
) -> tuple[ObjectInfo, Sequence[Location] | CasweightsError]:
    try:
        return info, read_pack_index(db.store, info)
    except UNSOUND as error:
        # A snapshot counts, too: writers may have read its end when it was sound.
        if isinstance(error, IntegrityError):
            with suppress(IntegrityError):  # the object's name is not a pack's name
                error.suspect = Suspect(names.pack_of(info.name), None)
        return info, error


def _is_snapshot(info: ObjectInfo) -> bool:
    return info.name.startswith(names.SNAPSHOTS)


def _try_payload(db: Database, location: Location) -> tuple[Location, CasweightsError | None]:
    try:
        read_payload(db.store, location)
    except (IntegrityError, NotFoundError) as error:
        return location, error
    return location, None
