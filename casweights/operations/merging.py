"""Merging of small objects, so that a long history consists of few.

Objects are merged by size, as in a log-structured merge tree: eight of one level become one of the
next, so each byte is copied a number of times that grows with the logarithm of the history.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from casweights.config import PACK_TARGET, KiB, MiB
from casweights.database.packs import try_read_pack
from casweights.database.writer import PackWriter
from casweights.errors import CasweightsError
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casweights.database import Database
    from casweights.format.pack import Frame
    from casweights.ids import ChunkId

    Payloads = Sequence[tuple[Frame, memoryview]]

FAN_IN = 8  # objects of one level that are merged; a lower number copies bytes more often
LEVELS = (64 * KiB, 512 * KiB, 4 * MiB, 32 * MiB)  # bytes: the upper ends; larger objects stay


def by_age(infos: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Return objects with the oldest first, so that what is of one time stays together."""
    return sorted(infos, key=lambda info: (info.created, info.name))


def are_enough(infos: Sequence[ObjectInfo]) -> bool:
    """Whether merging this many small objects is worth it."""
    return len(infos) >= FAN_IN


def merge_levels(
    list_all: Callable[[], Iterable[ObjectInfo]], merge: Callable[[Sequence[ObjectInfo]], int]
) -> int:
    """Merge objects of each level with enough of them, from the smallest level up.

    Args:
        list_all: Lists the objects.
        merge: Merges objects of one level, and returns a number.

    Returns:
        The sum of these numbers.
    """
    total = 0
    for low, high in pairwise((0, *LEVELS)):
        level = [info for info in by_age(list_all()) if low <= info.size < high]
        if are_enough(level):
            total += merge(level)
    return total


def groups(level: Sequence[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
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


def payloads(data: memoryview, frames: Sequence[Frame]) -> Payloads | None:
    """Return the frames of an object with their payloads; None if one is damaged."""
    found = [(frame, data[frame.offset :][: frame.size]) for frame in frames]
    is_sound = all(checksum(payload) == frame.checksum for frame, payload in found)
    return found if is_sound else None


class FrameCopies:
    """Copies of frames, each once. `add` some, and then `write` them."""

    def __init__(self) -> None:
        self._chunks: dict[ChunkId, tuple[int, list[EncodedFrame]]] = {}

    def add(self, frames: Payloads) -> bool:
        """Add the frames of an object; add none and return False if only a forger writes them."""
        if any(self._chunks.get(f.chunk, (f.raw_size,))[0] != f.raw_size for f, _ in frames):
            return False
        for frame, payload in frames:
            copies = self._chunks.setdefault(frame.chunk, (frame.raw_size, []))[1]
            new = EncodedFrame(frame.encoding, payload, frame.checksum, frame.base)
            if not any(_is_same(new, other) for other in copies):
                copies.append(new)
        return True

    def write(self, db: Database, generation: int) -> PackWriter | None:
        """Write the frames into packs that are durable when this returns.

        Returns:
            The writer, with the packs' names; None if a pack exists already and is damaged, so that
            nothing may be deleted.
        """
        writer = PackWriter(db, generation)
        try:
            for chunk, (raw_size, frames) in self._chunks.items():
                writer.add(chunk, raw_size, frames)
            writer.finish()
        finally:
            writer.close()
        return writer if all(_is_sound(db, name) for name in writer.existed) else None


def _is_same(one: EncodedFrame, other: EncodedFrame) -> bool:
    facts = [(f.encoding, f.base, f.checksum, len(f.payload)) for f in (one, other)]
    return facts[0] == facts[1]


def _is_sound(db: Database, name: str) -> bool:
    """Whether a pack in the store is sound; copies in a cache prove nothing."""
    db.store.forget(name)
    sizes = db.store.sizes([name])
    contents = try_read_pack(db.store, ObjectInfo(name, sizes.get(name, 0)))
    if isinstance(contents, CasweightsError):
        return False
    frames = [location.frame for location in contents.locations]
    return payloads(memoryview(db.store.get(name)), frames) is not None
