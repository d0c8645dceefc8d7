"""Chunks out of the store: read, decoded, and checked before a caller sees them.

`ChunkReader` rebuilds a chunk from a chain of frames. `ChunkReader.with_local` makes a reader that
looks at chunks on this machine first, and begins chains at them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from casweights.config import MiB
from casweights.database.chains import MAX_LINKS
from casweights.database.frames import Spent, damaged_frame, read_frame
from casweights.database.read_plan import around, small_packs
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
)
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.stores.optional import SupportsReadahead
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.database.chains import Chain, Node
    from casweights.database.index import ChunkIndex
    from casweights.format.manifest import FileEntry
    from casweights.format.pack import Location
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore
    from casweights.stores.optional import Range
    from casweights.system.buffers import Buffer


_MAX_ATTEMPTS = 32  # chains to one chunk that are tried; a forged store may have any number
STRIDE = 64  # frames from one waypoint of a long chain to the next; shorter chains have none
_WAYPOINT_BYTES = 16 * MiB  # of chunks kept as waypoints: few, and shared by all chains


class LocalChunks(Protocol):
    """Chunks that this machine has, so that they need not come from the store."""

    @property
    def is_used(self) -> bool:
        """Whether there are any, or may be later."""

    def __contains__(self, chunk: object, /) -> bool:
        """Whether this chunk is probably among them."""

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with the chunk, which the caller checks; False if it is gone."""


class TrustedChunks(LocalChunks, Protocol):
    """Chunks in the memory of this process, which are used without a check."""

    def get(self, chunk: ChunkId) -> memoryview | None:
        """A chunk's bytes, valid until the calling thread asks again; None if there is none."""


class ChunkReader:
    """Reads chunks by ID. May be used from several threads at once.

    Attributes:
        store: Where they come from.
        spent: What reading has taken so far.
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

        A frame that is gone or damaged is replaced by another chain, where there is one.

        Returns:
            The bytes that were read from the store.

        Raises:
            IntegrityError: The chunk cannot be rebuilt; what `out` holds is undefined.
        """
        failure: CasweightsError | None = None
        for _ in range(_MAX_ATTEMPTS):
            chain = self._index.find_chain(chunk)
            if chain is None:
                break
            try:
                return self.rebuild(chain, chunk, out)
            except (IntegrityError, NotFoundError) as error:
                failure = failure or error
        else:  # without its frames the chunk counts as missing
            self._index.abandon(chunk)
        if isinstance(failure, IntegrityError):
            raise _naming(failure, chunk)
        raise self._missing(chunk) from failure

    def _missing(self, chunk: ChunkId) -> IntegrityError:
        """Explain why a chunk cannot be rebuilt."""
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

    def with_local(self, *chunks: LocalChunks) -> LocalFirstReader:
        """A reader that uses local chunks where that reads less from the store."""
        return LocalFirstReader(self, self._index, [local for local in chunks if local.is_used])

    def rebuild(self, chain: Chain, chunk: ChunkId, out: memoryview) -> int:
        """Decode the frames of a chain in order, each in the place of its base.

        Args:
            chain: A chain to the chunk. If its first frame has a base, `out` holds that.
            chunk: The chunk.
            out: Where to put it.

        Returns:
            The bytes that were read from the store.

        Raises:
            IntegrityError: A frame is damaged, or the base was not what it should be.
            NotFoundError: A pack is gone.
        """
        try:
            frames = self._waypoints.resume(chain, out)
            for number, location in enumerate(frames, 1):
                read_frame(self.store, location, out, self.spent)
                if number % STRIDE == 0 and self.is_right(location.frame.chunk, out):
                    self._waypoints.put(location.frame.chunk, out)
            if chain.links == 0 or self.is_right(chunk, out):
                return sum(location.frame.size for location in frames)
        except (IntegrityError, NotFoundError):
            pass
        for location in chain.frames:  # a copy on the way to us may be to blame, and not the pack
            self.store.forget(names.pack_name(location.pack))
        if chain.base is not None:  # the beginning is not in the store
            raise corrupt(f"chunk {chunk}", "what was rebuilt is something else")
        self._rebuild_checked(chain, chunk, out)
        return chain.nbytes

    def is_right(self, chunk: ChunkId, out: memoryview) -> bool:
        """Whether these are the bytes that the ID stands for."""
        begin = time.perf_counter()
        right = self._hasher(out) == chunk
        self.spent.add(check=time.perf_counter() - begin)
        return right

    def _rebuild_checked(self, chain: Chain, chunk: ChunkId, out: memoryview) -> None:
        """Once more, and check every chunk on the way: which frame is to blame?"""
        for location in chain.frames:
            try:
                read_frame(self.store, location, out, self.spent)
                if not self.is_right(location.frame.chunk, out):
                    raise damaged_frame(location, "its bytes do not match the chunk's ID")
            except (IntegrityError, NotFoundError) as error:
                self._index.distrust({location: error})
                raise
        if not self.is_right(chunk, out):
            wrong = corrupt(f"chunk {chunk}", "what was rebuilt is something else")
            self._index.distrust({chain.frames[-1]: wrong})
            raise wrong


class _Waypoints:
    """Chunks kept from the middle of long chains, where reading other chunks can begin.

    Without them, reading all chunks of a chain takes time with the square of its length.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._size = 0

    def put(self, chunk: ChunkId, data: memoryview) -> None:
        """Keep a chunk, which the caller has checked, in place of the oldest ones."""
        with self._lock:
            if len(data) > _WAYPOINT_BYTES or chunk in self._chunks:
                return
            self._chunks[chunk] = bytes(data)
            self._size += len(data)
            while self._size > _WAYPOINT_BYTES:
                self._size -= len(self._chunks.popitem(last=False)[1])

    def resume(self, chain: Chain, out: memoryview) -> Sequence[Location]:
        """The frames of a chain after its last waypoint, which is copied to `out`."""
        if chain.links <= STRIDE:
            return chain.frames
        frames: list[Location] = []
        with self._lock:
            for location in chain.back():
                found = self._chunks.get(location.frame.chunk) if frames else None
                if found is not None and len(found) == len(out):
                    out[:] = found
                    break
                frames.append(location)
        return frames[::-1]


def _naming(error: IntegrityError, chunk: ChunkId) -> IntegrityError:
    """The same error, which also names the chunk that was asked for."""
    if str(chunk) in error.message:
        return error
    return IntegrityError(error.code, f"{error.message}. The chunk {chunk} needs it")


class LocalFirstReader:
    """Reads chunks by ID from this machine and the store; made by `ChunkReader.with_local`."""

    def __init__(
        self, reader: ChunkReader, index: ChunkIndex, local: Sequence[LocalChunks]
    ) -> None:
        self._reader = reader
        self._index = index
        self._local = _AnyLocal(local)
        # Without local chunks, all readers share the chains that the index has found.
        self._finder = index.finder(self._local) if local else None

    @contextmanager
    def ahead(
        self, *, with_neighbours: bool = False
    ) -> Iterator[Callable[[Sequence[ChunkId]], None]]:
        """A function that announces the chunks to be read next, in order.

        A store behind a network then fetches what they need, many pieces at a time.

        Args:
            with_neighbours: Also fetch what lies around each frame in a small pack. For callers
                who announce few chunks at a time, and their neighbours next.
        """
        store = self._reader.store
        readahead = store.ability(SupportsReadahead)
        if readahead is None:
            yield lambda _: None
            return
        with readahead.ahead() as announce:

            def announce_chunks(chunks: Sequence[ChunkId]) -> None:
                wanted = [chunk for chunk in chunks if chunk not in self._local]
                announce(small_packs(store, self._index, wanted))
                self._index.prepare(wanted)
                seen: set[Node] = set()
                announce(
                    [self._ranges(chunk, seen, with_neighbours=with_neighbours) for chunk in wanted]
                )

            yield announce_chunks

    def _ranges(self, chunk: ChunkId, seen: set[Node], *, with_neighbours: bool) -> list[Range]:
        """The ranges to read for a chunk; of a long chain, only those after what was `seen`."""
        chain = self._index.find_chain(chunk, self._finder)
        if chain is None:
            return []
        frames = chain.frames if chain.links <= STRIDE else [*chain.back(seen)][::-1]
        return [around(self._index, frame) if with_neighbours else frame.range for frame in frames]

    def readinto(self, chunk: ChunkId, out: memoryview) -> int:
        """Fill `out` with a chunk, and check it; see `ChunkReader.readinto`.

        A base is not checked by itself: what is made of a wrong one is not right either.
        """
        if self._local.readinto(chunk, out) and self._reader.is_right(chunk, out):
            return 0
        chain = self._index.find_chain(chunk, self._finder)
        base = None if chain is None else chain.base
        if chain is not None and base is not None and self._local.readinto(base, out):
            with suppress(IntegrityError, NotFoundError):
                return self._reader.rebuild(chain, chunk, out)
        return self._reader.readinto(chunk, out)


class _AnyLocal:
    """The chunks of several sources as one."""

    def __init__(self, sources: Sequence[LocalChunks]) -> None:
        self._sources = sources

    def __contains__(self, chunk: object) -> bool:
        return any(chunk in source for source in self._sources)

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """See `LocalChunks.readinto`."""
        return any(source.readinto(chunk, out) for source in self._sources)


def read_file(reader: ChunkReader, file: FileEntry, chunk_size: int) -> Iterator[memoryview]:
    """The bytes of one file of a version, piece by piece."""
    if file.raw_header is not None:
        yield memoryview(file.raw_header)
    local_first = reader.with_local()
    with local_first.ahead() as announce:
        announce(file.chunks)
        for chunk, piece in file.pieces(chunk_size):
            view = uninitialized(piece.nbytes)  # the caller's to keep
            local_first.readinto(chunk, view)
            yield view
