"""Reading ahead: what will be needed is fetched in large pieces, many at a time."""

from __future__ import annotations

import threading
from collections import deque
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
_GAP = MiB // 4  # bytes between two ranges that are fetched along, rather than to ask twice
_THREADS = 16  # fetches at a time: enough to hide round trips of some 100 ms


class _Span:
    """A piece of an object: to be fetched, on its way, or here."""

    def __init__(self, name: str, start: int, stop: int) -> None:
        self.name = name
        self.start = start
        self.stop = stop
        self.needed = 0  # bytes that somebody will still ask for
        self.fetched: Future[memoryview] | None = None

    @property
    def size(self) -> int:
        return self.stop - self.start

    def covers(self, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.stop


class _Cell(NamedTuple):
    name: str
    number: int


class ReadaheadStore(Handle, WrapperStore):
    """Another store, of which announced ranges are fetched before they are read.

    At most `window` bytes are held; what is not used in time is fetched again by who reads it.

    Args:
        inner: The store that does the work.
        window: Bytes to hold, of what is fetched and not yet used.
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

    @contextmanager
    def ahead(self) -> Iterator[Announce]:
        """See `SupportsReadahead.ahead`."""
        announced: list[_Span] = []

        def announce(groups: Iterable[Sequence[Range]]) -> None:
            announced.extend(self._announce(list(groups)))

        try:
            yield announce
        finally:
            with self._lock:
                for span in announced:
                    self._drop(span)

    def _announce(self, groups: Sequence[Sequence[Range]]) -> list[_Span]:
        # What is read together is held together.
        cell = _CELL
        while cell > _MIN_CELL and cell * max(map(len, groups), default=0) > self._window // 2:
            cell //= 2
        new: list[_Span] = []
        with self._lock:
            by_cell: dict[_Cell, list[tuple[int, int]]] = {}
            for name, start, stop in (wanted for group in groups for wanted in group):
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
        """Start what the window has room for."""
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
        for span in self._spans.get(name, ()):
            if span.covers(start, stop):
                return span
        return None

    def _drop(self, span: _Span) -> None:
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
            span.fetched = None  # its bytes go with the last reader who has them

    def _take(self, name: str, start: int, stop: int) -> memoryview | None:
        """An announced range; None if it was not announced, or could not be fetched."""
        with self._lock:
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
        except Exception:  # whoever reads it now meets the same error, in its own call
            data = None
        with self._lock:
            span.needed -= stop - start
            if span.needed <= 0 or data is None:
                self._drop(span)
            self._fill()
        return None if data is None else data[start - span.start : stop - span.start]

    def _make_room(self, keep: _Span) -> None:
        """Give up what was fetched and not used for longest, to stay within the window."""
        for span in list(self._started):
            if self._held <= self._window:
                return
            if span is not keep and span.fetched is not None and span.fetched.done():
                self._drop(span)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        found = None if size is None else self._take(name, start, start + size)
        return self.inner.get(name, start, size) if found is None else bytes(found)

    def read(self, name: str, limit: int) -> bytes:
        """See `ObjectStore.read`: nobody announces whole objects."""
        return self.inner.read(name, limit)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        found = self._take(name, start, start + len(out))
        if found is None:
            self.inner.readinto(name, start, out)
        else:
            out[:] = found

    def forget(self, name: str) -> bool:
        """See `ObjectStore.forget`."""
        with self._lock:
            spans = list(self._spans.get(name, ()))
            for span in spans:
                self._drop(span)
        return self.inner.forget(name) or bool(spans)


def _merged(name: str, ranges: list[tuple[int, int]]) -> Iterator[_Span]:
    """Spans that cover these ranges of one cell, and what lies between near ones."""
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
