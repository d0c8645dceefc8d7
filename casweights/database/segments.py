"""Reads segments: which packs of a store contain a chunk, without the indexes of all packs."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Self

from casweights.config import KiB, MiB
from casweights.errors import CasweightsError, IntegrityError, NotFoundError, UnsupportedError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, corrupt, prefix
from casweights.format.pack import TRAILER_SIZE
from casweights.format.segment import (
    parse_segment,
    rows_of,
    segment_id,
    segment_index_span,
)
from casweights.ids import SegmentId
from casweights.stores.base import ObjectInfo
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from casweights.format.segment import SegmentIndex
    from casweights.ids import ChunkId, PackId
    from casweights.stores.base import ObjectStore

_READERS = 16  # threads; they wait for the network
_SMALL_BYTES = 256 * KiB  # up to here, a segment is read whole and kept
_TAIL_SHARE = 64  # the index of a large segment has at most about this part of its bytes
_GAP_BYTES = 4 * KiB  # between rows that are read at once
_FAR_GAP_BYTES = 256 * KiB  # over a network, where a request takes as long as that many bytes
_MOST_BYTES = 1 * MiB  # read at once

Group = list[tuple[int, list["ChunkId"]]]  # chunks, by bucket
Found = dict["PackId", set["ChunkId"]]  # the chunks that each pack contains


class Segment:
    """An open segment, whose index stays in memory. Safe for use from several threads.

    Args:
        store: The store that contains it.
        info: Its name and size.
        index: Its index.
        first_bytes: Its first bytes, with which its ID was computed.
        whole: Its bytes up to the index, if they stay in memory, too.

    Attributes:
        info: Its name and size.
        index: Its index.
    """

    def __init__(
        self,
        store: ObjectStore,
        info: ObjectInfo,
        index: SegmentIndex,
        first_bytes: bytes,
        whole: bytes = b"",
    ) -> None:
        self.info = info
        self.index = index
        self._store = store
        self._first_bytes = first_bytes
        self._whole = whole

    @classmethod
    def open(cls, store: ObjectStore, info: ObjectInfo) -> Self:
        """Read the index of a segment, and all of a small one.

        Raises:
            NotFoundError: The segment is gone.
            IntegrityError: It is damaged, or its content does not match its name.
            UnsupportedError: A newer casweights wrote it.
        """
        segment = names.parse_id(SegmentId, names.SEGMENTS, info.name)
        if info.size < PREFIX_SIZE + TRAILER_SIZE:
            raise corrupt(info.name, "it is too short for a segment")
        begin = max(0, info.size - max(_SMALL_BYTES, info.size // _TAIL_SHARE))
        tail = store.get(info.name, begin, info.size - begin)
        start, stop = segment_index_span(tail[-TRAILER_SIZE:], info.size, info.name)
        if start < begin:
            tail, begin = store.get(info.name, start, info.size - start), start
        index = tail[start - begin : stop - begin]
        first_bytes = prefix(ObjectKind.SEGMENT)
        if segment_id(first_bytes, index) != segment:
            first_bytes = store.get(info.name, 0, PREFIX_SIZE)
        found = parse_segment(first_bytes, index, start, segment)
        return cls(store, info, found, first_bytes, b"" if begin else tail[:start])

    def check_start(self) -> None:
        """Check the first bytes, on which no look-up depends.

        Raises:
            NotFoundError: The segment is gone.
            IntegrityError: They are damaged.
        """
        if self.read(0, PREFIX_SIZE) != self._first_bytes:
            raise corrupt(self.info.name, "its first bytes are wrong")

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from offset `start` to `stop`, which are rows; they are not checked."""
        if self._whole:
            return self._whole[start:stop]
        return self._store.get(self.info.name, start, stop - start)

    def rows(self, first: int, last: int) -> bytes:
        """Return the rows of the buckets `first` to `last`.

        Raises:
            NotFoundError: The segment is gone.
            IntegrityError: These rows are damaged.
        """
        start, stop = self.index.span(first, last)
        rows = self.read(start, stop)
        for bucket in range(first, last + 1):
            begin, end = self.index.span(bucket, bucket)
            self.index.check(bucket, memoryview(rows)[begin - start : end - start])
        return rows

    def groups(self, chunks: Iterable[ChunkId]) -> Iterator[Group]:
        """Divide chunks into groups whose rows are near enough to each other for one read.

        Raises:
            IntegrityError: The index is damaged.
        """
        gap = _GAP_BYTES if self._store.capabilities.cheap_reads else _FAR_GAP_BYTES
        group: Group = []
        begin = end = 0
        for bucket, own in groupby(sorted(chunks), key=self.index.bucket):
            start, stop = self.index.span(bucket, bucket)
            if group and (start - end > gap or stop - begin > _MOST_BYTES):
                yield group
                group = []
            if not group:
                begin = start
            group.append((bucket, list(own)))
            end = stop
        if group:
            yield group

    def find(self, group: Group) -> Found:
        """Return the packs that contain these chunks according to the segment.

        Raises:
            NotFoundError: The segment is gone.
            IntegrityError: Rows that were looked at are damaged.
        """
        found: Found = {}
        start, stop = self.index.span(group[0][0], group[-1][0])
        data = self.read(start, stop)
        for bucket, own in group:
            begin, end = self.index.span(bucket, bucket)
            rows = data[begin - start : end - start]
            self.index.check(bucket, rows)
            for chunk in own:
                for row in rows_of(chunk, rows):
                    found.setdefault(self.index.pack(row), set()).add(chunk)
        return found


def list_segments(store: ObjectStore) -> list[ObjectInfo]:
    """Return the segments of a store; objects in their folder with other names are left out."""
    return [info for info in store.list(names.SEGMENTS) if _is_segment(info.name)]


def _is_segment(name: str) -> bool:
    """Whether an object has the name of a segment."""
    try:
        names.parse_id(SegmentId, names.SEGMENTS, name)
    except IntegrityError:
        return False
    return True


def open_segment(store: ObjectStore, info: ObjectInfo) -> Segment | CasweightsError:
    """Open a segment, and return an error for one that is damaged, newer, or gone.

    If a cache of the store may hold a damaged copy, it is discarded and the segment read again.
    """
    try:
        return Segment.open(store, info)
    except (IntegrityError, NotFoundError, UnsupportedError) as error:
        if not store.forget(info.name):
            return error
    try:
        return Segment.open(store, ObjectInfo(info.name, store.size(info.name)))
    except (IntegrityError, NotFoundError, UnsupportedError) as error:
        return error


def open_segments(
    store: ObjectStore, infos: Collection[ObjectInfo]
) -> Iterator[tuple[ObjectInfo, Segment | CasweightsError]]:
    """Open segments at the same time; yield each with its name."""
    if not infos:
        return
    with Workers(_READERS) as workers:
        yield from zip(infos, workers.map(partial(open_segment, store), infos), strict=True)


class Segments:
    """The segments of a store that are open.

    Not safe for use from several threads: `ChunkIndex` calls it under its lock.

    Args:
        store: The store.

    Attributes:
        ignored: Why each segment is not used that is damaged or that a newer casweights wrote, by
            name.
        version: A number that grows whenever a segment is no longer used.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open: dict[str, Segment] = {}
        self._covered: dict[PackId, None] | None = None
        self.ignored: dict[str, CasweightsError] = {}
        self.version = 0

    def refresh(self) -> None:
        """List the segments, open the new ones, and forget those that are gone.

        Raises:
            StoreError: The store could not be read.
        """
        listed = {info.name: info for info in list_segments(self._store)}
        for name in self._open.keys() - listed.keys():
            self._drop(name)
        self.ignored = {name: why for name, why in self.ignored.items() if name in listed}
        known = self._open.keys() | self.ignored.keys()
        new = [info for name, info in listed.items() if name not in known]
        for info, segment in open_segments(self._store, new):
            if isinstance(segment, Segment):
                self._open[info.name] = segment
            elif not isinstance(segment, NotFoundError):
                self.ignored[info.name] = segment
        self._covered = None

    def ignore(self, damage: Mapping[str, CasweightsError]) -> None:
        """Use these segments no longer, for these reasons."""
        for name, why in damage.items():
            self.ignored[name] = why
            self._drop(name)

    def _drop(self, name: str) -> None:
        if self._open.pop(name, None) is not None:
            self._covered = None
            self.version += 1

    def covers(self, pack: PackId) -> bool:
        """Whether a segment covers a pack."""
        if self._covered is None:
            open_ones = self._open.values()
            self._covered = {found.pack: None for s in open_ones for found in s.index.packs}
        return pack in self._covered

    @property
    def indexes(self) -> list[SegmentIndex]:
        """The indexes of the open segments."""
        return [segment.index for segment in self._open.values()]

    def find(self, chunks: Collection[ChunkId]) -> tuple[Found, dict[str, CasweightsError]]:
        """Return the packs that contain these chunks according to the segments.

        Segments that turn out to be damaged or gone are used no longer.

        Returns:
            The packs; and the damaged segments, with the reason for each.

        Raises:
            StoreError: The store could not be read.
        """
        found: Found = {}
        damaged: dict[str, CasweightsError] = {}
        for name, result in self._look(chunks):
            if isinstance(result, NotFoundError):
                self._drop(name)
            elif isinstance(result, CasweightsError):
                damaged[name] = result
            else:
                for pack, own in result.items():
                    found.setdefault(pack, set()).update(own)
        self.ignore(damaged)
        return found, damaged

    def _look(self, chunks: Collection[ChunkId]) -> Iterator[tuple[str, Found | CasweightsError]]:
        """Look into all segments; yield the name of a segment with each result."""
        jobs: list[tuple[Segment, Group]] = []
        for segment in self._open.values():
            try:
                jobs += [(segment, group) for group in segment.groups(chunks)]
            except IntegrityError as error:
                yield segment.info.name, error
        if self._store.capabilities.cheap_reads:
            yield from map(self._try_find, jobs)
            return
        with Workers(_READERS) as workers:
            yield from workers.map(self._try_find, jobs)

    def _try_find(self, job: tuple[Segment, Group]) -> tuple[str, Found | CasweightsError]:
        """Look into a segment, a second time if a cache may hold a damaged copy of it."""
        segment, group = job
        name = segment.info.name
        for is_last in (False, True):
            try:
                return name, segment.find(group)
            except (IntegrityError, NotFoundError) as error:
                if is_last or not self._store.forget(name):
                    return name, error
        raise AssertionError("the second attempt returns")
