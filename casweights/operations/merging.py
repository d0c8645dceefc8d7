"""Merging of small objects, so that a long history consists of few.

Objects are merged by size, as in a log-structured merge tree: eight of one level become one of the
next, so each byte is copied a number of times that grows with the logarithm of the history.

The work is done in slices, between which the caller may pause, or stop for good.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import TYPE_CHECKING

from casweights.config import PACK_TARGET, KiB, MiB
from casweights.database.packs import PackContents, try_read_pack
from casweights.errors import CasweightsError
from casweights.events import Stage
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.hashing import checksum
from casweights.format.pack import Frame, Location, build_index
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casweights.database import Database
    from casweights.ids import ChunkId
    from casweights.system.buffers import Buffer

FAN_IN = 8  # objects of one level that are merged; a lower number copies bytes more often
LEVELS = (64 * KiB, 512 * KiB, 4 * MiB, 32 * MiB)  # bytes: the upper ends; larger objects stay
MAX_FRAMES = 1 << 13  # of a merged pack: reading one of them reads the index, some 600 KiB then
_SLICE_FRAMES = 512  # of one slice: a few milliseconds in which other threads get few turns

Counted = Generator[None, None, int]  # slices of work, and a number of bytes


def by_age(infos: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Return objects with the oldest first, so that what is of one time stays together."""
    return sorted(infos, key=lambda info: (info.created, info.name))


def are_enough(infos: Sequence[ObjectInfo]) -> bool:
    """Whether merging this many small objects is worth it."""
    return len(infos) >= FAN_IN


class Budget:
    """A number of bytes that may be read.

    Args:
        nbytes: The number; None for no limit.
    """

    def __init__(self, nbytes: int | None = None) -> None:
        self._left = nbytes

    @property
    def is_limited(self) -> bool:
        """Whether it has a limit."""
        return self._left is not None

    def takes(self, nbytes: int) -> bool:
        """Take bytes; return False, and take none, if it has less."""
        if self._left is None:
            return True
        if nbytes > self._left:
            return False
        self._left -= nbytes
        return True


def merge_levels(
    db: Database,
    list_all: Callable[[], Iterable[ObjectInfo]],
    merge: Callable[[Sequence[ObjectInfo]], Counted],
    budget: Budget,
) -> Counted:
    """Merge objects of each level with enough of them, from the smallest level up.

    Args:
        db: The store.
        list_all: Lists the objects.
        merge: Merges some objects into one, and returns the number of bytes copied.
        budget: What may be read.

    Returns:
        The number of all bytes copied.
    """
    total = 0
    for low, high in pairwise((0, *LEVELS)):
        level = [info for info in by_age(list_all()) if low <= info.size < high]
        yield
        if are_enough(level):
            total += yield from _merge_level(db, level, merge, budget)
    return total


def _merge_level(
    db: Database,
    level: Sequence[ObjectInfo],
    merge: Callable[[Sequence[ObjectInfo]], Counted],
    budget: Budget,
) -> Counted:
    total = 0
    db.reporter.started(Stage.MAINTAIN, sum(info.size for info in level))
    try:
        for group in _groups(level):
            size = sum(info.size for info in group)
            if len(group) > 1 and budget.takes(size):
                total += yield from merge(group)
            db.reporter.advanced(Stage.MAINTAIN, size)
    finally:
        db.reporter.finished(Stage.MAINTAIN)
    return total


def _groups(level: Sequence[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    """Divide objects into consecutive groups of at most the size of one pack."""
    group: list[ObjectInfo] = []
    size = 0
    for info in level:
        if group and size + info.size > PACK_TARGET:
            yield group
            group, size = [], 0
        group.append(info)
        size += info.size
    yield group


def are_sound(data: memoryview, frames: Iterable[Frame]) -> bool:
    """Whether frames of an object with these bytes have the right checksums."""
    return all(checksum(data[f.offset : f.offset + f.size]) == f.checksum for f in frames)


class FrameCopies:
    """Collects the frames of objects for a new pack, each frame once.

    The order of calls: `has_room` and `add` for each object, then `write`, once, if `is_empty` is
    false.
    """

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._of: dict[ChunkId, Frame | list[Frame]] = {}  # rarely more than one
        self._parts: list[Buffer] = [prefix(ObjectKind.PACK)]
        self._size = PREFIX_SIZE

    @property
    def is_empty(self) -> bool:
        """Whether it has no frame."""
        return not self._frames

    def has_room(self, frames: Sequence[Frame]) -> bool:
        """Whether these frames are not too many; the first ones never are."""
        size = self._size + sum(frame.size for frame in frames)
        count = len(self._frames) + len(frames)
        return self.is_empty or (count <= MAX_FRAMES and size <= PACK_TARGET)

    def add(self, frames: Sequence[Frame], data: memoryview) -> Generator[None, None, bool]:
        """Add the frames of an object, in slices.

        Args:
            frames: The frames.
            data: The bytes of the object, which stay in memory.

        Returns:
            Whether they were added; False if only a forged store can have them.
        """
        if any(known.raw_size != f.raw_size for f in frames for known in self._known(f)):
            return False
        start = stop = PREFIX_SIZE  # a run of frames to copy
        for number, frame in enumerate(frames, 1):
            if any(frame.content == known.content for known in self._known(frame)):
                continue
            if frame.offset != stop:
                self._parts.append(data[start:stop])
                start = frame.offset
            stop = frame.offset + frame.size
            self._append(frame.at(self._size))
            if number % _SLICE_FRAMES == 0:
                yield
        if stop > start:
            self._parts.append(data[start:stop])
        return True

    def _known(self, frame: Frame) -> Sequence[Frame]:
        """Return the collected frames of a frame's chunk."""
        known = self._of.get(frame.chunk, ())
        return (known,) if isinstance(known, Frame) else known

    def _append(self, frame: Frame) -> None:
        known = self._known(frame)
        self._of[frame.chunk] = [*known, frame] if known else frame
        self._frames.append(frame)
        self._size += frame.size

    def write(self, db: Database, generation: int) -> Generator[None, None, PackContents | None]:
        """Write the frames as one pack, which is durable at the end.

        Returns:
            The pack; None if a damaged one has its name, so that nothing may be deleted.
        """
        pack, ending = build_index(self._frames, generation)
        parts, self._parts = [*self._parts, ending], []
        info = ObjectInfo(names.pack_name(pack), self._size + len(ending))
        yield
        created = db.store.put(info.name, parts)
        del parts
        yield
        if not created and not _is_sound(db, info.name):
            return None
        return PackContents(info, generation, [Location(pack, frame) for frame in self._frames])


def _is_sound(db: Database, name: str) -> bool:
    """Whether a pack in the store is sound; copies in a cache prove nothing."""
    db.store.forget(name)
    sizes = db.store.sizes([name])
    contents = try_read_pack(db.store, ObjectInfo(name, sizes.get(name, 0)))
    if isinstance(contents, CasweightsError):
        return False
    return are_sound(memoryview(db.store.get(name)), (at.frame for at in contents.locations))
