"""Writes segments, and merges them as the levels of a log-structured merge tree.

Eight segments of one level become one of the next, so each row is written again a number of times
that grows with the logarithm of their number. Small segments become one each time, because every
one costs a reader a request, and their rows are few. A merge reads its segments in slices of
similar chunk IDs. What it holds in memory is one slice, and the new segment, of at most 60 MiB.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.deleting import try_delete
from casweights.database.packs import try_read_pack
from casweights.database.segments import Segment, list_segments, open_segments
from casweights.errors import CasweightsError, IntegrityError, NotFoundError, UnsupportedError
from casweights.format import names
from casweights.format.envelope import MAX_GENERATION
from casweights.format.segment import (
    MAX_PACKS,
    MAX_ROWS,
    SegmentBuilder,
    fanout_bits,
)
from casweights.format.segment_rows import ROW_SIZE, between, in_order, make_rows, renumbered
from casweights.ids import SegmentId
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence

    from casweights.ids import PackId
    from casweights.stores.base import ObjectStore
    from casweights.system.threads import Workers

_FAN_IN = 8  # segments of one level that are merged
_SMALL_LEVEL = 3  # up to this one, all segments count as one level: together at most 80 KiB
_FULL_ROWS = MAX_ROWS // 2  # larger segments stay: two of them may not fit into one
_FIRST_ROWS = 1 << 18  # of a segment made from packs; 26 MiB while they are sorted
_SLICE_ROWS = 1 << 18  # about; those that a merge sorts at once


class KeptSegments(NamedTuple):
    """The result of `SegmentWriter.slices`.

    Attributes:
        segments: Number of segments after it.
        written_bytes: Bytes of the segments that it wrote.
    """

    segments: int
    written_bytes: int


class SegmentWriter:
    """One maintenance of the segments of a store, in slices; `slices` is called once.

    A new segment is durable before those that it replaces are deleted. Segments are never proof,
    so whatever others do at the same time, and wherever this stops, it can only cost time.

    Args:
        store: The store. Its damaged segments are deleted at once.
        workers: Threads for reading packs.
        doubted: IDs of segments that findings are about; they count as damaged.

    Attributes:
        damaged: IDs of the damaged segments, as they are in findings.
    """

    def __init__(self, store: ObjectStore, workers: Workers, doubted: Collection[bytes]) -> None:
        self._store = store
        self._workers = workers
        self._packs: Mapping[PackId, ObjectInfo] = {}
        self._segments: list[Segment] = []
        self._written = 0
        self.damaged: set[bytes] = set()
        self._open(doubted)

    def slices(
        self, packs: Mapping[PackId, ObjectInfo], old: Iterable[PackId]
    ) -> Generator[None, None, KeptSegments]:
        """Cover packs, and merge segments.

        Args:
            packs: All packs of the store.
            old: Those to cover.

        Returns:
            What the store has then.

        Raises:
            StoreError: The store could not be read or written. Repeat the call to continue.
        """
        self._packs = packs
        wanted = list(old)
        self._delete(self._idle())
        yield
        yield from self._cover(wanted)
        while damaged := (yield from self._merge_all()):
            self._delete([damaged])
            yield from self._cover(wanted)
        return KeptSegments(len(self._segments), self._written)

    @property
    def covered_packs(self) -> dict[PackId, int]:
        """The packs that are covered, with their numbers of rows."""
        return {found.pack: found.rows for s in self._segments for found in s.index.packs}

    def _open(self, doubted: Collection[bytes]) -> None:
        damaged = []
        for info, found in open_segments(self._store, list_segments(self._store)):
            if isinstance(found, Segment) and found.index.segment not in doubted:
                self._segments.append(found)
            elif not isinstance(found, NotFoundError | UnsupportedError):
                damaged.append(info.name)
        if damaged:
            try_delete(self._store, damaged)
        self.damaged.update(names.parse_id(SegmentId, names.SEGMENTS, name) for name in damaged)

    def _delete(self, segments: Sequence[Segment]) -> None:
        self._segments = [segment for segment in self._segments if segment not in segments]
        if segments:
            try_delete(self._store, [segment.info.name for segment in segments])

    def _live_rows(self, segment: Segment) -> int:
        """Return the number of rows of packs that still exist."""
        return sum(found.rows for found in segment.index.packs if found.pack in self._packs)

    def _idle(self) -> list[Segment]:
        """Return the segments that cover no pack which exists and which no larger one covers."""
        covered: set[PackId] = set()
        idle = []
        for segment in sorted(
            self._segments, key=lambda s: (self._live_rows(s), s.info.name), reverse=True
        ):
            live = {found.pack for found in segment.index.packs if found.pack in self._packs}
            if live <= covered:
                idle.append(segment)
            covered |= live
        return idle

    def _cover(self, packs: Sequence[PackId]) -> Iterator[None]:
        """Write segments for those of these packs that are not covered."""
        covered = self.covered_packs
        infos = [self._packs[pack] for pack in packs if pack in self._packs and pack not in covered]
        rows: list[bytes] = []  # of each pack
        numbers: dict[PackId, int] = {}
        for contents in self._workers.map_asked(partial(try_read_pack, self._store), infos):
            yield
            if isinstance(contents, CasweightsError):
                continue
            rows.append(make_rows(contents.chunks(), len(numbers)))
            numbers[names.pack_of(contents.info.name)] = len(numbers)
            if sum(map(len, rows)) > _FIRST_ROWS * ROW_SIZE or len(numbers) == MAX_PACKS:
                yield from self._put_rows(rows, list(numbers))
                rows, numbers = [], {}
        if numbers:
            yield from self._put_rows(rows, list(numbers))

    def _put_rows(self, parts: Iterable[bytes], packs: Sequence[PackId]) -> Iterator[None]:
        """Make a first segment of some packs."""
        rows = in_order(parts)
        builder = SegmentBuilder(packs, fanout_bits(len(rows) // ROW_SIZE), 0)
        yield from self._put([rows], builder)

    def _put(self, parts: Iterable[bytes], builder: SegmentBuilder) -> Iterator[None]:
        """Make a segment durable, and open it."""
        for rows in parts:
            builder.add(rows)
            yield
        index, content = builder.finish()
        self._store.put(index.name, content)
        size = sum(map(len, content))
        self._written += size
        self._segments.append(Segment(self._store, ObjectInfo(index.name, size), index, content[0]))

    def _merge_all(self) -> Generator[None, None, Segment | None]:
        """Merge the segments of each level that has many, and those with many rows of lost packs.

        Returns:
            A segment that turned out to be damaged; None if all merges are complete.
        """
        for level in range(_SMALL_LEVEL, _level(_FULL_ROWS) + 1):
            members = [s for s in self._segments if self._level(s) == level]
            few = len(members) < (2 if level == _SMALL_LEVEL else _FAN_IN)
            for group in self._groups(members):
                chosen = [s for s in group if not few or self._is_thin(s)]
                if len(chosen) > 1 or any(map(self._is_thin, chosen)):
                    damaged = yield from self._merge(chosen)
                    if damaged is not None:
                        return damaged
        return None

    def _level(self, segment: Segment) -> int | None:
        """Return the level of a segment; None if it is full."""
        rows = self._live_rows(segment)
        return None if rows >= _FULL_ROWS and not self._is_thin(segment) else _level(rows)

    def _is_thin(self, segment: Segment) -> bool:
        """Whether most rows of a segment are of packs that are gone."""
        return 2 * self._live_rows(segment) < segment.index.rows

    def _groups(self, segments: Sequence[Segment]) -> Iterator[list[Segment]]:
        """Divide segments into groups of at most the size of one segment."""
        group: list[Segment] = []
        rows = packs = 0
        for segment in segments:
            more, others = self._live_rows(segment), len(segment.index.packs)
            if group and (rows + more > MAX_ROWS or packs + others > MAX_PACKS):
                yield group
                group, rows, packs = [], 0, 0
            group.append(segment)
            rows, packs = rows + more, packs + others
        if group:
            yield group

    def _merge(self, segments: Sequence[Segment]) -> Generator[None, None, Segment | None]:
        """Replace segments by one; return a segment that is damaged, which leaves all in place."""
        every = (found.pack for segment in segments for found in segment.index.packs)
        packs = list(dict.fromkeys(pack for pack in every if pack in self._packs))
        bits = fanout_bits(sum(map(self._live_rows, segments)))
        numbers = {pack: number for number, pack in enumerate(packs)}
        sources = [_Source(segment, numbers) for segment in segments]
        highest = max(segment.index.generation for segment in segments)
        generation = min(1 + highest, MAX_GENERATION)  # nothing depends on it
        try:
            builder = SegmentBuilder(packs, bits, generation)
            yield from self._put(_slices(sources, bits), builder)
            yield
        except _Damaged as damaged:
            return damaged.segment
        self._delete(segments)
        return None


def _level(rows: int) -> int:
    """Return the level of a segment with this number of rows: its logarithm, if it is not small."""
    level = 0
    while rows >= _FAN_IN:
        rows, level = rows // _FAN_IN, level + 1
    return max(level, _SMALL_LEVEL)


class _Damaged(Exception):
    """A segment is damaged or gone."""

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self.segment = segment


class _Source:
    """A segment that is merged.

    Args:
        segment: The segment.
        numbers: The numbers of packs in the new segment; the rows of other packs are left out.
    """

    def __init__(self, segment: Segment, numbers: Mapping[PackId, int]) -> None:
        self._segment = segment
        self._numbers = [numbers.get(found.pack) for found in segment.index.packs]

    def rows(self, first: bytes, last: bytes) -> bytes:
        """Return the rows of chunks whose first two bytes are in a range, with new numbers.

        Raises:
            _Damaged: The segment is damaged or gone.
        """
        index = self._segment.index
        try:
            data = self._segment.rows(index.bucket(first), index.bucket(last))
            return renumbered(between(data, first, last), self._numbers)
        except (IntegrityError, NotFoundError, IndexError):
            raise _Damaged(self._segment) from None


def _slices(sources: Sequence[_Source], bits: int) -> Iterator[bytes]:
    """Yield the rows of all sources in order, in slices of equal ranges of chunk IDs."""
    most = _SLICE_ROWS.bit_length() - 7  # a bucket has 64 rows
    slices = 1 << max(0, bits - most)
    width = (1 << 16) // slices
    for number in range(slices):
        first = (number * width).to_bytes(2, "big")
        last = ((number + 1) * width - 1).to_bytes(2, "big")
        yield in_order(source.rows(first, last) for source in sources)
