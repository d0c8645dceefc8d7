"""The content-addressed storage (CAS) behind the buckets.

Clients upload xorbs, which are sequences of compressed chunks, and then a shard, which registers
files as lists of terms, that is, of ranges of chunks in xorbs.
"""

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

_OWN_CHUNK = 1 << 16  # bytes of a chunk of files that the server stores itself
_DRAFT = ".tmp"  # suffix of files that are not complete yet


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a term that a range of a file needs, in whole chunks.

    Attributes:
        term: The chunks and their raw size.
        start: Offset in the file of the first byte of these chunks.
    """

    term: Term
    start: int


class Cas:
    """Xorbs on disk and the files made of them. May be used from several threads at once.

    Xorbs are files of `folder`, written under a temporary name and then renamed. Files are events
    of the journal: after a restart, `apply` every event and then call `adopt_xorbs`.

    Args:
        folder: Folder of the xorbs.
        journal: The log of registered and freed files.
        clock: The source of times, by which bytes that are not needed are freed.
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
        for draft in folder.glob(f"*/*{_DRAFT}"):  # left by a process that was killed
            draft.unlink()

    def apply(self, event: Event) -> None:
        """Apply an event of the journal: register a file, or drop freed ones."""
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
        """Start the grace period of xorbs that no file needs; call it after all events.

        Xorbs are not in the journal, so the time of their upload is lost in a restart.
        """
        for path in self._folder.glob("??/*"):
            if not self._uses.needed(path.name):
                self._uses.send_xorb(path.name, self._clock.now())

    def name(self, file: str) -> None:
        """Record that one more path names a file."""
        with self._lock:
            self._uses.name(file)

    def unname(self, file: str, moment: int) -> None:
        """Record that a path stopped naming a file at a time."""
        with self._lock:
            self._uses.unname(file, moment)

    def free(self, after: float, grace: float) -> None:
        """Delete files and xorbs that are not needed any more.

        Args:
            after: Seconds for which a file is kept after its last path was removed.
            grace: Seconds for which uploaded bytes are kept although no path names them yet.
        """
        now = self._clock.now()
        sent_before = now - round(max(after, grace) * 1_000_000)
        with self._lock:
            files = self._uses.idle_files(now - round(after * 1_000_000), sent_before)
            # The journal before the bytes: a registered file must never lack its xorbs.
            if files:
                self._journal.append([{"table": "cas", "freed": files}])
            for xorb in self._uses.idle_xorbs(self._drop(files), sent_before):
                self._indexes.pop(xorb, None)
                self.xorb_path(xorb).unlink(missing_ok=True)

    def has_xorb(self, xorb: str) -> bool:
        """Return whether a xorb is stored."""
        return self.xorb_path(xorb).exists()

    def keep_xorb(self, xorb: str) -> bool:
        """Return whether a xorb is stored; if so, restart its grace period.

        The client then skips the upload, and relies on the xorb until it registers a file.
        """
        with self._lock:
            if not self.has_xorb(xorb):
                return False
            self._uses.send_xorb(xorb, self._clock.now())
            return True

    def has_file(self, name: str) -> bool:
        """Return whether a file is registered."""
        return name in self._files

    def size(self, name: str) -> int:
        """Return the number of raw bytes of a file.

        Raises:
            Refusal: The file is not registered.
        """
        return sum(term.size for term in self.terms(name))

    def terms(self, name: str) -> tuple[Term, ...]:
        """Return the terms that make up a file, in order.

        Raises:
            Refusal: The file is not registered.
        """
        try:
            return self._files[name]
        except KeyError:
            raise Refusal(404, f"file {name} is not registered") from None

    def xorb_path(self, xorb: str) -> Path:
        """Return the path on disk for a xorb, whether it is stored or not.

        Raises:
            Refusal: The hash is not valid.
        """
        if not re.fullmatch("[0-9a-f]{64}", xorb):  # also keeps paths within the folder
            raise Refusal(400, f"a hash must have 64 hexadecimal digits, got {xorb!r}")
        return self._folder / xorb[:2] / xorb

    def put_xorb(self, xorb: str, save: Callable[[BinaryIO], None]) -> bool:
        """Store a xorb; return False if it was stored before.

        Args:
            xorb: Hash of the xorb.
            save: Writes the xorb to a file.

        Raises:
            Refusal: The bytes are not a sequence of chunks, or the hash is not valid.
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
        """Register the files of a shard; return False if all were registered before.

        Raises:
            Refusal: The bytes are not a shard, or a xorb that it needs is not stored.
        """
        try:
            files = list(shard_files(data))
        except FormatError as error:
            raise Refusal(400, str(error)) from None
        with self._lock:  # so that `free` deletes no xorb between the check and the registration
            for _, terms in files:
                for term in terms:
                    self._check(term)
            return self._register(files)

    def put_bytes(self, data: bytes) -> str:
        """Store bytes as a file and return its hash.

        The hash is the SHA-256 of the bytes, not the tree hash that hf_xet computes.
        """
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
        """Return the offsets of the chunks of a xorb.

        Raises:
            Refusal: The xorb is not stored.
        """
        index = self._indexes.get(xorb)
        if index is None:
            try:
                with self.xorb_path(xorb).open("rb") as file:
                    index = self._indexes[xorb] = XorbIndex.read(file.fileno())
            except FileNotFoundError:
                raise Refusal(404, f"xorb {xorb} is not stored") from None
        return index

    def parts(self, name: str, start: int, end: int) -> list[Part]:
        """Return the chunks that contain the bytes from `start` to `end` of a file."""
        parts = []
        terms = self.terms(name)
        places = accumulate((term.size for term in terms), initial=0)  # offsets in the file
        for term, place in zip(terms, places, strict=False):
            low, high = max(start, place), min(end, place + term.size)
            if low >= high:
                continue
            index = self.index(term.xorb)
            base = index.raw_offsets[term.first]  # offset in the xorb's raw bytes
            first = index.chunk_at(base + low - place)
            last = index.chunk_at(base + high - 1 - place) + 1
            raw = index.raw_size(first, last)
            part = Term(term.xorb, raw, first, last)
            parts.append(Part(part, place + index.raw_offsets[first] - base))
        return parts

    def read(self, name: str, start: int, end: int) -> Pieces:
        """Return the raw bytes from `start` to `end` of a file, as a body."""
        parts = self.parts(name, start, end)
        return Pieces(end - start, self._read(parts, start, end))

    def spans(self, parts: Sequence[Part]) -> dict[str, list[tuple[int, int]]]:
        """Return the ranges of chunks that parts need, by xorb; adjacent ranges are merged."""
        ranges: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for part in parts:
            ranges[part.term.xorb].append((part.term.first, part.term.end))
        return {xorb: _merged(sorted(several)) for xorb, several in ranges.items()}

    def slice(self, xorb: str, range_of: Callable[[int], tuple[int, int] | None]) -> FileSlice:
        """Return a range of a xorb's stored (compressed) bytes, as a body.

        Args:
            xorb: Hash of the xorb.
            range_of: Receives the xorb's size and returns start and end; None for all bytes.

        Raises:
            Refusal: The xorb is not stored.
        """
        path = self.xorb_path(xorb)
        if not path.exists():
            raise Refusal(404, f"xorb {xorb} is not stored")
        size = path.stat().st_size
        start, end = range_of(size) or (0, size)
        return FileSlice(path, start, end - start)

    def corrupt(self, name: str, place: int) -> None:
        """Flip the lowest bit of the byte at offset `place` of a file, in the xorb it comes from.

        The chunk that contains the byte is rewritten without compression.
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
        """Register files by their terms, and start their grace period; the caller holds the lock.

        Returns:
            Whether any of the files is new.
        """
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
        """Forget files; return the xorbs that they needed."""
        dropped = set()
        for name in files:
            xorbs = {term.xorb for term in self._files.pop(name)}
            self._uses.drop_file(name, xorbs)
            dropped |= xorbs
        return dropped

    def _check(self, term: Term) -> None:
        """Check that the chunks of a term are stored and have the size that it states."""
        if not self.has_xorb(term.xorb):
            raise Refusal(400, f"xorb {term.xorb} is not stored")
        index = self.index(term.xorb)
        if not term.first < term.end <= index.count:
            wanted = f"a file needs chunks {term.first} to {term.end}"
            raise Refusal(400, f"xorb {term.xorb} has {index.count} chunks, {wanted}")
        if index.raw_size(term.first, term.end) != term.size:
            raise Refusal(400, f"a term of xorb {term.xorb} states a wrong size: {term.size}")

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
    """Merge sorted ranges that touch or overlap."""
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
    """Open a file for writing that appears under `path` only when the block ends."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_DRAFT}")
    try:
        with draft.open("w+b") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
