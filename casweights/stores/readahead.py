"""Reading ahead: announced ranges are fetched in large pieces, many at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import MiB
from casweights.stores.wrapper import WrapperStore
from casweights.system.buffers import uninitialized
from casweights.system.handles import Handle
from casweights.system.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from casweights.stores.base import ObjectStore
    from casweights.stores.optional import Announce, Range

_CELL = 8 * MiB  # bytes; no piece crosses a multiple of this, so pieces are the same every time
_MIN_CELL = MiB // 2  # bytes; below this, a round trip takes longer than the transfer
_GAP = MiB // 4  # bytes; ranges at most this far apart are fetched in one request
_MAX_ENDS = 16  # kept: those of the snapshots that are read at about the same time
_ENDS_BYTES = 4 * MiB  # of the ends that are kept
_THREADS = 16  # concurrent fetches: enough to hide round trips of about 100 ms


class _Span:
    """A piece of an object that is fetched by one request: waiting, being fetched, or in memory."""

    def __init__(self, name: str, start: int, stop: int) -> None:
        self.name = name
        self.start = start
        self.stop = stop
        self.needed = 0  # announced bytes that were not read yet
        self.fetched: Future[memoryview] | None = None

    @property
    def size(self) -> int:
        return self.stop - self.start

    def covers(self, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.stop


class _Cell(NamedTuple):
    """A part of an object, on a fixed grid. Only ranges that begin in one cell share a span."""

    name: str
    number: int


class ReadaheadStore(Handle, WrapperStore):
    """Another store whose announced ranges are fetched before they are read.

    Announced ranges that lie close together make a span. A span waits, is fetched once the window
    has room, and is dropped after its last announced read. Spans that are not read in time may be
    dropped early. Readers of such a span, and of ranges that were never announced, fetch the bytes
    themselves. A failed fetch raises nothing: the reader repeats it and gets the
    error. One lock guards all fields, and no thread holds it during a fetch.

    The ends of objects that `read_end` returned last are kept, too. They answer reads inside of
    ``with`` blocks of `ahead`: the reader of a snapshot needs other parts of its end soon after.
    Spans stop where such an end begins, so that its bytes are not fetched twice.

    Args:
        inner: The store to read from.
        window: Maximum bytes in memory that were fetched and not read yet. One span may exceed it.
    """

    def __init__(self, inner: ObjectStore, window: int) -> None:
        super().__init__(inner)
        self._window = window
        self._lock = threading.Lock()
        self._threads = Threads(_THREADS, "casweights-ahead")
        self._spans: dict[str, list[_Span]] = {}
        self._waiting: deque[_Span] = deque()
        self._started: dict[_Span, None] = {}  # the least recently used first
        self._held = 0
        self._blocks = 0  # of `ahead` that have not ended
        self._ends: OrderedDict[str, tuple[int, bytes]] = OrderedDict()  # offset and bytes

    @contextmanager
    def ahead(self) -> Iterator[Announce]:
        """Yield a function that announces ranges, as `SupportsReadahead.ahead` says."""
        announced: list[_Span] = []

        def announce(groups: Iterable[Sequence[Range]]) -> None:
            announced.extend(self._announce(list(groups)))

        with self._lock:
            self._blocks += 1
        try:
            yield announce
        finally:
            with self._lock:
                self._blocks -= 1
                for span in announced:
                    self._drop(span)

    def _announce(self, groups: Sequence[Sequence[Range]]) -> list[_Span]:
        """Add spans for ranges that no span covers yet, start fetching, and return these spans."""
        # The ranges of a group must fit into the window together: large groups need small cells.
        cell = _CELL
        while cell > _MIN_CELL and cell * max(map(len, groups), default=0) > self._window // 2:
            cell //= 2
        new: list[_Span] = []
        with self._lock:
            by_cell: dict[_Cell, list[tuple[int, int]]] = {}
            for name, start, stop in (wanted for group in groups for wanted in group):
                end = self._end(name, start, stop)
                stop -= len(end)
                if end and start == stop:
                    continue
                known = self._find(name, start, stop)
                if known is not None:
                    known.needed += stop - start
                else:
                    by_cell.setdefault(_Cell(name, start // cell), []).append((start, stop))
            for (name, _), ranges in by_cell.items():
                new += _merged(name, ranges)
            for span in new:
                self._spans.setdefault(span.name, []).append(span)
            self._waiting.extend(new)
            self._fill()
        return new

    def _fill(self) -> None:
        """Start to fetch waiting spans while the window has room. The caller holds the lock."""
        while self._waiting:
            span = self._waiting[0]
            if span.fetched is None and span.needed > 0:
                if self._held and self._held + span.size > self._window:
                    return
                self._start(span)
            self._waiting.popleft()

    def _start(self, span: _Span) -> None:
        span.fetched = self._threads.submit(self._fetch, span)
        self._started[span] = None
        self._held += span.size

    def _fetch(self, span: _Span) -> memoryview:
        out = uninitialized(span.size)
        self.inner.readinto(span.name, span.start, out)
        return out

    def _find(self, name: str, start: int, stop: int) -> _Span | None:
        """Return the span that covers a range, if any. The caller holds the lock."""
        for span in self._spans.get(name, ()):
            if span.covers(start, stop):
                return span
        return None

    def _end(self, name: str, start: int, stop: int) -> memoryview:
        """Return the last bytes of a range, as many as a kept end has that may be used.

        The caller holds the lock.
        """
        offset, data = self._ends.get(name, (0, b""))
        if not self._blocks or not offset < stop <= offset + len(data):
            return memoryview(b"")
        return memoryview(data)[max(0, start - offset) : stop - offset]

    def _ends_bytes(self) -> int:
        return sum(len(data) for _, data in self._ends.values())

    def _drop(self, span: _Span) -> None:
        """Remove a span, and free its part of the window. The caller holds the lock."""
        span.needed = 0
        spans = self._spans.get(span.name, [])
        if span in spans:
            spans.remove(span)
            if not spans:
                del self._spans[span.name]
        if span in self._started:
            del self._started[span]
            self._held -= span.size
        if span.fetched is not None:
            span.fetched.cancel()
            span.fetched = None  # readers may still hold its bytes

    def _take(self, name: str, start: int, stop: int) -> memoryview | None:
        """Return an announced range; None if it was not announced, or could not be fetched."""
        with self._lock:
            end = self._end(name, start, stop)
            stop -= len(end)
            if end and start == stop:
                return end
            span = self._find(name, start, stop)
            if span is None:
                return None
            if span.fetched is None:  # it is needed before its turn
                self._start(span)
            self._started[span] = self._started.pop(span)
            self._make_room(span)
            fetched = span.fetched
        try:
            data = fetched.result() if fetched is not None else None
        except Exception:  # the caller reads the range itself, and gets the error there
            data = None
        with self._lock:
            span.needed -= stop - start
            if span.needed <= 0 or data is None:
                self._drop(span)
            self._fill()
        if data is None:
            return None
        found = data[start - span.start : stop - span.start]
        return memoryview(b"".join((found, end))) if end else found

    def _make_room(self, keep: _Span) -> None:
        """Drop fetched spans, the least recently used first, until the window is not exceeded.

        The caller holds the lock.
        """
        for span in list(self._started):
            if self._held <= self._window:
                return
            if span is not keep and span.fetched is not None and span.fetched.done():
                self._drop(span)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        found = None if size is None else self._take(name, start, start + size)
        return self.inner.get(name, start, size) if found is None else bytes(found)

    def read(self, name: str, limit: int) -> bytes:
        return self.inner.read(name, limit)

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:
        data, size = self.inner.read_end(name, most)
        with self._lock:
            self._ends.pop(name, None)
            self._ends[name] = size - len(data), data
            while len(self._ends) > _MAX_ENDS or self._ends_bytes() > _ENDS_BYTES:
                self._ends.popitem(last=False)
        return data, size

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        found = self._take(name, start, start + len(out))
        if found is None:
            self.inner.readinto(name, start, out)
        else:
            out[:] = found

    def forget(self, name: str) -> bool:
        with self._lock:
            spans = list(self._spans.get(name, ()))
            for span in spans:
                self._drop(span)
            end = self._ends.pop(name, None)
        return self.inner.forget(name) or bool(spans) or end is not None


def _merged(name: str, ranges: list[tuple[int, int]]) -> Iterator[_Span]:
    """Merge ranges of one cell, and gaps of up to `_GAP` bytes between them, into spans."""
    span: _Span | None = None
    for start, stop in sorted(ranges):
        if span is not None and start <= span.stop + _GAP:
            span.stop = max(span.stop, stop)
        else:
            if span is not None:
                yield span
            span = _Span(name, start, stop)
        span.needed += stop - start
    if span is not None:
        yield span
