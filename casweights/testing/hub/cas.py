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
from casweights.testing.hub.xorbs import (
    FormatError,
    Term,
    XorbIndex,
    raw_chunk,
    shard_files,
    stored_chunk,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

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
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._folder = folder
        self._journal = journal
        self._lock = threading.Lock()
        self._files: dict[str, tuple[Term, ...]] = {EMPTY_FILE: ()}
        self._indexes: dict[str, XorbIndex] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(f"*/*{_DRAFT}"):
            draft.unlink()

    def apply(self, event: Event) -> None:
        """Take over an event of the journal."""
        self._files[event["hash"]] = tuple(Term(*term) for term in event["terms"])

    def has_xorb(self, xorb: str) -> bool:
        """Whether a xorb is stored."""
        return self.xorb_path(xorb).exists()

    def has_file(self, name: str) -> bool:
        """Whether a file is registered."""
        return name in self._files

    def size(self, name: str) -> int:
        """Raw bytes of a file."""
        return sum(term.size for term in self._files[name])

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
        path = self.xorb_path(xorb)
        if path.exists():
            return False
        path.parent.mkdir(exist_ok=True)
        with _new_file(path) as file:
            save(file)
            file.flush()
            try:
                self._indexes[xorb] = XorbIndex.read(file.fileno())
            except FormatError as error:
                raise Refusal(400, f"xorb {xorb}: {error}") from None
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
        for _, terms in files:
            for term in terms:
                self._check(term)
        with self._lock:
            new = {name: terms for name, terms in files if name not in self._files}
            self._journal.append(
                {"table": "cas", "hash": name, "terms": [astuple(term) for term in terms]}
                for name, terms in new.items()
            )
            self._files.update(new)
        return bool(new)

    def put_bytes(self, data: bytes) -> str:
        """Store bytes as a file with a made-up hash, which is returned."""
        if not data:
            return EMPTY_FILE
        name = hashlib.sha256(data).hexdigest()
        if self.has_file(name):
            return name
        pieces = [data[at : at + _OWN_CHUNK] for at in range(0, len(data), _OWN_CHUNK)]
        chunks = b"".join(map(stored_chunk, pieces))
        self.put_xorb(name, lambda file: _ignore(file.write(chunks)))
        term = Term(name, len(data), 0, len(pieces))
        with self._lock:
            self._journal.append([{"table": "cas", "hash": name, "terms": [astuple(term)]}])
            self._files[name] = (term,)
        return name

    def index(self, xorb: str) -> XorbIndex:
        """Where the chunks of a stored xorb lie."""
        index = self._indexes.get(xorb)
        if index is None:
            with self.xorb_path(xorb).open("rb") as file:
                index = self._indexes[xorb] = XorbIndex.read(file.fileno())
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
