"""Chunks out of the store: read, decode, and check before anybody sees them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from casweights.config import MiB
from casweights.database.chains import MAX_LINKS
from casweights.database.frames import Spent, damaged_frame, read_frame
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
)
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.database.chains import Node, Path
    from casweights.database.index import ChunkIndex
    from casweights.format.manifest import FileEntry
    from casweights.format.pack import Location
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore, Range
    from casweights.system.buffers import Buffer


_ATTEMPTS = 32  # ways to a chunk that are tried
STRIDE = 64  # frames from one waypoint of a long path to the next
_WAYPOINTS = 16 * MiB


class NearbyChunks(Protocol):
    """Chunks that need not come from the store, because the reader's machine has them."""

    @property
    def is_used(self) -> bool:
        """Whether any chunk is here, or may come."""

    def __contains__(self, chunk: object, /) -> bool:
        """Whether this chunk is likely to be here."""

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with what should be the chunk; False if it is gone. The caller checks."""


class HeldChunks(NearbyChunks, Protocol):
    """Chunks in this process's memory, so that nobody need check them."""

    def get(self, chunk: ChunkId) -> memoryview | None:
        """A chunk's bytes, valid until the calling thread asks again; None if it is not here."""


class ChunkReader:
    """Reads chunks by ID. May be used from several threads at once.

    Attributes:
        store: Where they come from.
        spent: What it took until now.
    """

    def __init__(
        self, store: ObjectStore, index: ChunkIndex, hasher: Callable[[Buffer], ChunkId]
    ) -> None:
        self.store = store
        self.spent = Spent()
        self._index = index
        self._hasher = hasher
        self._waypoints = _Waypoints()

    def readinto(self, chunk: ChunkId, out: memoryview) -> int:
        """Fill `out` with a chunk, and check it.

        A frame that is gone or damaged is done without, if there is another way to the chunk.

        Returns:
            The bytes that were read from the store.

        Raises:
            IntegrityError: There is no way to rebuild this chunk; `out` holds nothing of use.
        """
        failure: CasweightsError | None = None
        for _ in range(_ATTEMPTS):
            path = self._index.find_path(chunk)
            if path is None:
                break
            try:
                return self.follow(path, chunk, out)
            except (IntegrityError, NotFoundError) as error:
                failure = failure or error
        else:  # a forged store may have no end of them; without its frames the chunk is missing
            self._index.abandon(chunk)
        if isinstance(failure, IntegrityError):
            raise _told_of(failure, chunk)
        raise self._missing(chunk) from failure

    def _missing(self, chunk: ChunkId) -> IntegrityError:
        """The error for a chunk without a path: what is it that lacks?"""
        wanted, why, seen = chunk, f"no pack holds the chunk {chunk}", {chunk}
        while frames := self._index.frames(chunk):
            pack, base = names.pack_name(frames[0].pack), frames[0].frame.base
            if base is None or base in seen:
                why = (
                    f"the differences that lead to the chunk {wanted} do not fit each other, "
                    f"lead in a circle or are more than {MAX_LINKS}: {pack}"
                )
                break
            why = (
                f"the chunk {wanted} cannot be rebuilt: {pack} has {chunk} as a difference "
                f"from {base}, which is not there"
            )
            seen.add(chunk := base)
        if self._index.damaged:
            why += f". Damaged is: {next(iter(self._index.damaged.values()))}"
        return IntegrityError(ErrorCode.MISSING_CHUNK, why)

    def near(self, *chunks: NearbyChunks) -> NearbyReader:
        """A reader that begins at what is nearby, where that reads less from the store."""
        return NearbyReader(self, self._index, [way for way in chunks if way.is_used])

    def follow(self, path: Path, chunk: ChunkId, out: memoryview) -> int:
        """Decode frame after frame; differences turn their base into the next chunk in place.

        Args:
            path: A path to the chunk. If its first frame has a base, `out` holds that.
            chunk: The chunk.
            out: Where to put it.

        Returns:
            The bytes that were read from the store.

        Raises:
            IntegrityError: A frame is damaged, or the base was not what it should be.
            NotFoundError: A pack is gone.
        """
        try:
            frames = self._waypoints.resume(path, out)
            for number, location in enumerate(frames, 1):
                read_frame(self.store, location, out, self.spent)
                if number % STRIDE == 0 and self.is_right(location.frame.chunk, out):
                    self._waypoints.put(location.frame.chunk, out)
            if path.links == 0 or self.is_right(chunk, out):
                return sum(location.frame.size for location in frames)
        except (IntegrityError, NotFoundError):
            pass
        for location in path.frames:  # a copy on the way to us may be to blame, and not the pack
            self.store.forget(names.pack_name(location.pack))
        if path.base is not None:  # the beginning is not in the store
            raise corrupt(f"chunk {chunk}", "what was rebuilt is something else")
        self._follow_warily(path, chunk, out)
        return path.nbytes

    def is_right(self, chunk: ChunkId, out: memoryview) -> bool:
        """Whether these are the bytes that the ID stands for."""
        begin = time.perf_counter()
        right = self._hasher(out) == chunk
        self.spent.add(check=time.perf_counter() - begin)
        return right

    def _follow_warily(self, path: Path, chunk: ChunkId, out: memoryview) -> None:
        """Once more, and check every chunk on the way: which frame is to blame?"""
        for location in path.frames:
            try:
                read_frame(self.store, location, out, self.spent)
                if not self.is_right(location.frame.chunk, out):
                    raise damaged_frame(location, "its bytes do not match the chunk's ID")
            except (IntegrityError, NotFoundError) as error:
                self._index.distrust({location: error})
                raise
        if not self.is_right(chunk, out):
            wrong = corrupt(f"chunk {chunk}", "what was rebuilt is something else")
            self._index.distrust({path.frames[-1]: wrong})
            raise wrong


class _Waypoints:
    """Some chunks on long paths, from which the paths to other chunks go on.

    Without them, a version of all chunks of a chain takes the square of the chain's length.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._size = 0

    def put(self, chunk: ChunkId, data: memoryview) -> None:
        """Keep a chunk, which the caller has checked, in place of the oldest ones."""
        with self._lock:
            if len(data) > _WAYPOINTS or chunk in self._chunks:
                return
            self._chunks[chunk] = bytes(data)
            self._size += len(data)
            while self._size > _WAYPOINTS:
                self._size -= len(self._chunks.popitem(last=False)[1])

    def resume(self, path: Path, out: memoryview) -> Sequence[Location]:
        """The frames of a path behind the last chunk that is here, which `out` holds then."""
        if path.links <= STRIDE:
            return path.frames
        frames: list[Location] = []
        with self._lock:
            for location in path.back():
                found = self._chunks.get(location.frame.chunk) if frames else None
                if found is not None and len(found) == len(out):
                    out[:] = found
                    break
                frames.append(location)
        return frames[::-1]


def _told_of(error: IntegrityError, chunk: ChunkId) -> IntegrityError:
    """An error that names the chunk that was asked for, too."""
    if str(chunk) in error.message:
        return error
    return IntegrityError(error.code, f"{error.message}. The chunk {chunk} needs it")


class NearbyReader:
    """Reads chunks by ID, from what is nearby and from the store. Made by `ChunkReader.near`."""

    def __init__(
        self, reader: ChunkReader, index: ChunkIndex, ways: Sequence[NearbyChunks]
    ) -> None:
        self._reader = reader
        self._index = index
        self._nearby = _AnyOf(ways)
        # Without anything nearby, all readers share what was found.
        self._finder = index.finder(self._nearby) if ways else None

    @contextmanager
    def ahead(self, *, bit_by_bit: bool = False) -> Iterator[Callable[[Sequence[ChunkId]], None]]:
        """A function that announces the chunks to be read next, in order.

        A store behind a network then fetches what they need, many pieces at a time.

        Args:
            bit_by_bit: Whether few chunks are announced at a time, and their neighbours soon.
        """
        store = self._reader.store
        if not store.capabilities.remote:
            yield lambda _: None
            return
        with store.ahead() as announce:

            def announce_chunks(chunks: Sequence[ChunkId]) -> None:
                wanted = [chunk for chunk in chunks if chunk not in self._nearby]
                announce(self._index.small_packs(wanted))
                self._index.prepare(wanted)
                seen: set[Node] = set()
                announce([self._ranges(chunk, seen, bit_by_bit=bit_by_bit) for chunk in wanted])

            yield announce_chunks

    def _ranges(self, chunk: ChunkId, seen: set[Node], *, bit_by_bit: bool) -> list[Range]:
        """What a chunk is read from; of a long path, what lies behind those that were `seen`."""
        path = self._index.find_path(chunk, self._finder)
        if path is None:
            return []
        around = self._index.around
        frames = path.frames if path.links <= STRIDE else [*path.back(seen)][::-1]
        return [around(frame) if bit_by_bit else frame.range for frame in frames]

    def readinto(self, chunk: ChunkId, out: memoryview) -> int:
        """Fill `out` with a chunk, and check it; see `ChunkReader.readinto`.

        A base is not checked by itself: what is made of a wrong one is not right either.
        """
        if self._nearby.readinto(chunk, out) and self._reader.is_right(chunk, out):
            return 0
        path = self._index.find_path(chunk, self._finder)
        base = None if path is None else path.base
        if path is not None and base is not None and self._nearby.readinto(base, out):
            with suppress(IntegrityError, NotFoundError):
                return self._reader.follow(path, chunk, out)
        return self._reader.readinto(chunk, out)


class _AnyOf:
    """What is nearby in one of several ways."""

    def __init__(self, ways: Sequence[NearbyChunks]) -> None:
        self._ways = ways

    def __contains__(self, chunk: object) -> bool:
        return any(chunk in way for way in self._ways)

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """See `NearbyChunks.readinto`."""
        return any(way.readinto(chunk, out) for way in self._ways)


def read_file(reader: ChunkReader, file: FileEntry, chunk_size: int) -> Iterator[memoryview]:
    """The bytes of one file of a version, piece by piece."""
    if file.raw_header is not None:
        yield memoryview(file.raw_header)
    local_first = reader.near()
    with local_first.ahead() as announce:
        announce(file.chunks)
        for chunk, piece in file.pieces(chunk_size):
            view = uninitialized(piece.nbytes)  # the caller's to keep
            local_first.readinto(chunk, view)
            yield view
