"""The content-addressed storage behind the buckets: xorbs in files, and files made of them."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import uuid
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO

from casweights.testing.hub.messages import FileSlice, Pieces, Refusal
from casweights.testing.hub.uses import Uses
from casweights.testing.hub.xorbs import (
    FormatError,
    Term,
    XorbIndex,
    raw_chunk,
    shard_files,
    stored_chunk,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from casweights.testing.hub.clock import Clock
    from casweights.testing.hub.journal import Event, Journal

EMPTY_FILE = "0" * 64

_OWN_CHUNK = 1 << 16
_DRAFT = ".tmp"


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a term that a range of a file needs.

    Attributes:
        term: The chunks, and their raw size.
        start: Where they start in the file.
    """

    term: Term
    start: int


class Cas:
    """Xorbs and file records; may be used by many threads at once.

    Args:
        folder: Where the xorbs are.
        journal: Keeps the file records.
        clock: Says since when something is not needed.
    """

    def __init__(self, folder: Path, journal: Journal, clock: Clock) -> None:
        self._folder = folder
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._uses = Uses()
        self._uses.name(EMPTY_FILE)
        self._files: dict[str, tuple[Term, ...]] = {EMPTY_FILE: ()}
        self._indexes: dict[str, XorbIndex] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(f"*/*{_DRAFT}"):
            draft.unlink()

    def apply(self, event: Event) -> None:
        """Take over an event of the journal."""
        if "freed" in event:
            self._drop(event["freed"])
        else:
            terms = tuple(Term(*term) for term in event["terms"])
            xorbs = {term.xorb for term in terms}
            if event["hash"] not in self._files:
                self._uses.add_file(xorbs)
                self._files[event["hash"]] = terms
            self._uses.send_file(event["hash"], xorbs, event["moment"])

    def adopt_xorbs(self) -> None:
        """After all events: keep xorbs that no file needs for clients that may still need them."""
        for path in self._folder.glob("??/*"):
            if not self._uses.needed(path.name):
                self._uses.send_xorb(path.name, self._clock.now())

    def name(self, file: str) -> None:
        """A path names a file."""
        with self._lock:
            self._uses.name(file)

    def unname(self, file: str, moment: int) -> None:
        """A path no longer names a file."""
        with self._lock:
            self._uses.unname(file, moment)

    def free(self, after: float, grace: float) -> None:
        """Delete what nothing needs any more.

        Args:
            after: Seconds for which a file is kept that has lost its last path.
            grace: Seconds for which what was sent is kept for the path that is to follow.
        """
        now = self._clock.now()
        sent_before = now - round(max(after, grace) * 1_000_000)
        with self._lock:
            files = self._uses.idle_files(now - round(after * 1_000_000), sent_before)
            if files:
                self._journal.append([{"table": "cas", "freed": files}])
            for xorb in self._uses.idle_xorbs(self._drop(files), sent_before):
                self._indexes.pop(xorb, None)
                self.xorb_path(xorb).unlink(missing_ok=True)

    def has_xorb(self, xorb: str) -> bool:
        """Whether a xorb is stored."""
        return self.xorb_path(xorb).exists()

    def keep_xorb(self, xorb: str) -> bool:
        """Whether a xorb is stored; it is then kept for the file that is to follow."""
        with self._lock:
            if not self.has_xorb(xorb):
                return False
            self._uses.send_xorb(xorb, self._clock.now())
            return True

    def has_file(self, name: str) -> bool:
        """Whether a file is registered."""
        return name in self._files

    def size(self, name: str) -> int:
        """Raw bytes of a file."""
        return sum(term.size for term in self.terms(name))

    def terms(self, name: str) -> tuple[Term, ...]:
        """What a file is made of.

        Raises:
            Refusal: If there is no such file.
        """
        try:
            return self._files[name]
        except KeyError:
            raise Refusal(404, f"there is no file {name}") from None

    def xorb_path(self, xorb: str) -> Path:
        """The file of a xorb, which need not exist."""
        if not re.fullmatch("[0-9a-f]{64}", xorb):
            raise Refusal(400, "a hash has 64 hexadecimal digits")
        return self._folder / xorb[:2] / xorb

    def put_xorb(self, xorb: str, save: Callable[[BinaryIO], None]) -> bool:
        """Store a xorb that `save` writes; False if it was there.

        Raises:
            Refusal: If it is not a sequence of chunks.
        """
        if self.keep_xorb(xorb):
            return False
        path = self.xorb_path(xorb)
        path.parent.mkdir(exist_ok=True)
        with _new_file(path) as file:
            save(file)
            file.flush()
            try:
                self._indexes[xorb] = XorbIndex.read(file.fileno())
            except FormatError as error:
                raise Refusal(400, f"xorb {xorb}: {error}") from None
        with self._lock:
            self._uses.send_xorb(xorb, self._clock.now())
        return True

    def put_shard(self, data: bytes) -> bool:
        """Register the files of a shard; False if there is nothing new in it.

        Raises:
            Refusal: If it is not a shard, or if its xorbs are not stored.
        """
        try:
            files = list(shard_files(data))
        except FormatError as error:
            raise Refusal(400, str(error)) from None
        with self._lock:
            for _, terms in files:
                for term in terms:
                    self._check(term)
            return self._register(files)

    def put_bytes(self, data: bytes) -> str:
        """Store bytes as a file with a made-up hash, which is returned."""
        if not data:
            return EMPTY_FILE
        name = hashlib.sha256(data).hexdigest()
        pieces = [data[at : at + _OWN_CHUNK] for at in range(0, len(data), _OWN_CHUNK)]
        chunks = b"".join(map(stored_chunk, pieces))
        self.put_xorb(name, lambda file: _ignore(file.write(chunks)))
        with self._lock:
            self._register([(name, (Term(name, len(data), 0, len(pieces)),))])
        return name

    def index(self, xorb: str) -> XorbIndex:
        """Where the chunks of a stored xorb lie."""
        index = self._indexes.get(xorb)
        if index is None:
            try:
                with self.xorb_path(xorb).open("rb") as file:
                    index = self._indexes[xorb] = XorbIndex.read(file.fileno())
            except FileNotFoundError:
                raise Refusal(404, f"there is no xorb {xorb}") from None
        return index

    def parts(self, name: str, start: int, end: int) -> list[Part]:
        """The chunks that have the bytes from `start` to `end` of a file."""
        parts = []
        terms = self.terms(name)
        places = accumulate((term.size for term in terms), initial=0)
        for term, place in zip(terms, places, strict=False):
            low, high = max(start, place), min(end, place + term.size)
            if low >= high:
                continue
            index = self.index(term.xorb)
            base = index.raw_offsets[term.first]
            first = index.chunk_at(base + low - place)
            last = index.chunk_at(base + high - 1 - place) + 1
            raw = index.raw_size(first, last)
            part = Term(term.xorb, raw, first, last)
            parts.append(Part(part, place + index.raw_offsets[first] - base))
        return parts

    def read(self, name: str, start: int, end: int) -> Pieces:
        """The raw bytes from `start` to `end` of a file."""
        parts = self.parts(name, start, end)
        return Pieces(end - start, self._read(parts, start, end))

    def spans(self, parts: Sequence[Part]) -> dict[str, list[tuple[int, int]]]:
        """The ranges of chunks of each xorb that parts need, merged where they touch."""
        ranges: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for part in parts:
            ranges[part.term.xorb].append((part.term.first, part.term.end))
        return {xorb: _merged(sorted(several)) for xorb, several in ranges.items()}

    def slice(self, xorb: str, range_of: Callable[[int], tuple[int, int] | None]) -> FileSlice:
        """A part of a stored xorb, as it is; `range_of` gets its size.

        Raises:
            Refusal: If there is no such xorb.
        """
        path = self.xorb_path(xorb)
        if not path.exists():
            raise Refusal(404, f"there is no xorb {xorb}")
        size = path.stat().st_size
        start, end = range_of(size) or (0, size)
        return FileSlice(path, start, end - start)

    def corrupt(self, name: str, place: int) -> None:
        """Flip a bit of one byte of a file, in the xorb that it comes from.

        A chunk that is compressed is stored anew without compression.
        """
        (part,) = self.parts(name, place, place + 1)
        path = self.xorb_path(part.term.xorb)
        index = self.index(part.term.xorb)
        start, end = index.offsets[part.term.first], index.offsets[part.term.end]
        xorb = bytearray(path.read_bytes())
        raw = bytearray(raw_chunk(memoryview(bytes(xorb[start:end]))))
        raw[place - part.start] ^= 1
        xorb[start:end] = stored_chunk(bytes(raw))
        with _new_file(path) as file:
            file.write(xorb)
        self._indexes.pop(part.term.xorb, None)

    def _register(self, files: Sequence[tuple[str, tuple[Term, ...]]]) -> bool:
        """Take note of files and keep them for paths; False if all are known."""
        new = any(name not in self._files for name, _ in files)
        moment = self._clock.now()
        events: list[Event] = [
            {
                "table": "cas",
                "hash": name,
                "terms": [astuple(term) for term in terms],
                "moment": moment,
            }
            for name, terms in files
        ]
        self._journal.append(events)
        for event in events:
            self.apply(event)
        return new

    def _drop(self, files: Iterable[str]) -> set[str]:
        """Forget files; returns the xorbs that they needed."""
        dropped = set()
        for name in files:
            xorbs = {term.xorb for term in self._files.pop(name)}
            self._uses.drop_file(name, xorbs)
            dropped |= xorbs
        return dropped

    def _check(self, term: Term) -> None:
        if not self.has_xorb(term.xorb):
            raise Refusal(400, f"xorb {term.xorb} is not stored")
        index = self.index(term.xorb)
        if not term.first < term.end <= index.count:
            raise Refusal(400, f"xorb {term.xorb} has only {index.count} chunks")
        if index.raw_size(term.first, term.end) != term.size:
            raise Refusal(400, f"a part of xorb {term.xorb} has another size")

    def _read(self, parts: Sequence[Part], start: int, end: int) -> Iterator[memoryview]:
        for part in parts:
            place = part.start
            index = self.index(part.term.xorb)
            with self.xorb_path(part.term.xorb).open("rb", buffering=0) as file:
                for chunk in range(part.term.first, part.term.end):
                    low, high = index.offsets[chunk], index.offsets[chunk + 1]
                    raw = raw_chunk(memoryview(os.pread(file.fileno(), high - low, low)))
                    yield raw[max(0, start - place) : min(len(raw), end - place)]
                    place += len(raw)


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, end in ranges:
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def _ignore(_: object) -> None:
    pass


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is whole."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_DRAFT}")
    try:
        with draft.open("w+b") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
