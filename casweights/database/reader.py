"""Reads chunks from the store, and checks each against its ID before a caller sees it.

`ChunkReader` rebuilds a chunk from a chain of frames. `ChunkReader.with_local` returns a reader
that first looks for the chunk, or for a base to begin a chain at, on this machine.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from casweights.database.chains import MAX_LINKS
from casweights.database.frames import Spent, damaged_frame, read_frame
from casweights.database.nearby import NearbyStore
from casweights.database.read_plan import around, small_packs
from casweights.database.recent import STRIDE, RecentChunks, Waypoints
from casweights.errors import CasweightsError, ErrorCode, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.stores.optional import SupportsReadahead
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casweights.database.chain import Chain, Node
    from casweights.database.index import ChunkIndex
    from casweights.format.file_entry import FileEntry
    from casweights.format.pack import Frame, Location
    from casweights.format.roots import Root
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore
    from casweights.stores.optional import Range
    from casweights.system.buffers import Buffer

    ReadLocal = Callable[[ChunkId, memoryview], bool]

_MAX_ATTEMPTS = 32  # chains tried for one chunk; a forged store may have any number of bad ones
_ROOT_CHUNKS = 8  # of the store's size: the roots of a frame, and those that are kept


class LocalChunks(Protocol):
    """Chunks on this machine, which readers use instead of reading them from the store."""

    @property
    def is_used(self) -> bool:
        """Whether it contains chunks now or may contain some later."""

    def __contains__(self, chunk: object, /) -> bool:
        """Whether it probably contains a chunk; `readinto` decides."""

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk; return False if it is gone. The caller checks the bytes."""


class TrustedChunks(LocalChunks, Protocol):
    """Chunks in the memory of this process, whose bytes callers use without a check."""

    def get(self, chunk: ChunkId) -> memoryview | None:
        """Return a chunk's bytes, valid until the thread's next call, or None if it is missing."""


class ChunkReader:
    """Reads chunks by ID. Safe for use from several threads.

    Reading goes from fast to thorough. `rebuild` decodes a chain and checks the result alone. If
    the result is wrong, it discards cached copies of the packs and decodes once more, with a check
    after every frame; this finds the damaged frame, which the index then excludes. `readinto`
    repeats that with other chains until one is right or none remains.

    Args:
        store: The store that chunks are read from.
        index: Knows the chains.
        hasher: Returns the ID of a chunk.
        chunk_size: Bytes of most chunks.

    Attributes:
        store: The argument.
        nearby: The same, for frames.
        spent: Time and bytes spent so far.
    """

    def __init__(
        self,
        store: ObjectStore,
        index: ChunkIndex,
        hasher: Callable[[Buffer], ChunkId],
        chunk_size: int,
    ) -> None:
        self.store = store
        self.nearby = NearbyStore(store, index.pack_size)
        self.spent = Spent()
        self._index = index
        self._hasher = hasher
        self._waypoints = Waypoints()
        self._most_roots = _ROOT_CHUNKS * chunk_size
        # Neighbouring chunks are often made from the same roots.
        self._roots = RecentChunks(self._most_roots)

    def readinto(self, chunk: ChunkId, out: memoryview) -> int:
        """Fill `out` with a chunk and check it against its ID.

        Where a frame is gone or damaged, other chains to the chunk are tried.

        Args:
            chunk: The chunk.
            out: A buffer of the chunk's size.

        Returns:
            Number of stored bytes that were read for the chain that succeeded.

        Raises:
            IntegrityError: No chain rebuilds the chunk. The content of `out` is undefined then.
            StoreError: The store could not be read.
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
        else:  # the chunk counts as missing from now on, so that writers store it again
            self._index.abandon(chunk)
        if isinstance(failure, IntegrityError):
            raise _naming(failure, chunk)
        raise self.missing(chunk) from failure

    def missing(self, chunk: ChunkId) -> IntegrityError:
        """Return the error for a chunk without a chain, which says what is missing.

        It follows the bases of the first frame of each chunk down to the one that is not stored.
        """
        wanted, why, seen = chunk, f"no pack contains the chunk {chunk}", {chunk}
        while frames := self._index.frames(chunk):
            pack, bases = names.pack_name(frames[0].pack), frames[0].frame.bases
            lost = (base for base in bases if self._index.plain_chain(base) is None)
            base = next(lost, bases[0] if bases else None)
            if base is None or base in seen:
                why = (
                    f"the chunk {wanted} cannot be rebuilt: its differences have different sizes, "
                    f"form a circle, or are more than {MAX_LINKS}, see {pack}"
                )
                break
            why = (
                f"the chunk {wanted} cannot be rebuilt: {pack} contains {chunk} as a difference "
                f"from {base}, which is missing"
            )
            seen.add(chunk := base)
        if self._index.damaged:
            why += f". The store is damaged: {next(iter(self._index.damaged.values()))}"
        return IntegrityError(ErrorCode.MISSING_CHUNK, why)

    def with_local(self, *chunks: LocalChunks) -> LocalFirstReader:
        """Return a reader that uses local chunks where that reads less from the store."""
        return LocalFirstReader(self, self._index, [local for local in chunks if local.is_used])

    def rebuild(
        self, chain: Chain, chunk: ChunkId, out: memoryview, local: ReadLocal | None = None
    ) -> int:
        """Decode the frames of a chain in order, each in the place of its base, and check the end.

        Args:
            chain: A chain to the chunk.
            chunk: The chunk.
            out: A buffer of the chunk's size. If the chain has a base, it must hold that base.
            local: Reads the local chunks at which the chains of its roots may begin, as
                `LocalChunks.readinto` does.

        Returns:
            Number of stored bytes that were read.

        Raises:
            IntegrityError: A frame is damaged, or `out` did not hold the base.
            NotFoundError: A pack is gone.
        """
        try:
            nbytes, frames = 0, self._waypoints.resume(chain, out)
            for number, location in enumerate(frames, 1):
                roots, more = self._read_roots(location, chain, local)
                nbytes += location.frame.size + more
                read_frame(self.nearby, location, out, self.spent, roots)
                if number % STRIDE == 0 and self.is_right(location.frame.chunk, out):
                    self._waypoints.put(location.frame.chunk, out)
            if chain.links == 0 or self.is_right(chunk, out):
                return nbytes
        except (IntegrityError, NotFoundError):
            pass
        for location in chain.back():  # a cached copy may be damaged where the pack is sound
            self.nearby.forget(names.pack_name(location.pack))
        if chain.base is not None:  # `out` held the base, which decoding has overwritten
            raise corrupt(f"chunk {chunk}", "the rebuilt bytes do not match its ID")
        self._rebuild_checked(chain, chunk, out, local)
        return chain.nbytes

    def _read_roots(
        self, location: Location, chain: Chain, local: ReadLocal | None
    ) -> tuple[list[memoryview], int]:
        """Read the roots of a frame; none if it is not derived, and so not the chain's first.

        Returns:
            The roots, and the number of stored bytes that were read for them.

        Raises:
            IntegrityError: A root is damaged.
            NotFoundError: A pack is gone.
        """
        roots = self._usable_roots(location.frame)
        chains = zip(roots, chain.roots, strict=True) if roots else ()
        read = [self._read_root(root, its_chain, local) for root, its_chain in chains]
        return [out for out, _ in read], sum(nbytes for _, nbytes in read)

    def _read_root(
        self, root: Root, chain: Chain, local: ReadLocal | None
    ) -> tuple[memoryview, int]:
        with self._roots.rebuilding(root.chunk):
            kept = self._kept_root(root)
            return self._rebuild_root(root, chain, local) if kept is None else (kept, 0)

    def _rebuild_root(
        self, root: Root, chain: Chain, local: ReadLocal | None
    ) -> tuple[memoryview, int]:
        out = uninitialized(root.raw_size)
        begin = chain.base if chain.links else root.chunk
        if begin is not None and (local is None or not local(begin, out)):
            raise corrupt(f"chunk {begin}", "it is not on this machine any more")
        nbytes = self.rebuild(chain, root.chunk, out)
        if begin is not None and not self.is_right(root.chunk, out):
            raise corrupt(f"chunk {begin}", "the bytes on this machine do not match its ID")
        self._roots.put(root.chunk, out)
        return out, nbytes

    def read_roots(self, frame: Frame) -> list[memoryview]:
        """Read the roots of a frame by any chains, for a check of the frame alone.

        Raises:
            IntegrityError: A root is damaged or missing, or the frame claims another size of it.
            StoreError: The store could not be read.
        """
        roots = []
        for root in self._usable_roots(frame):
            kept = self._kept_root(root)
            if kept is None:
                kept = memoryview(self.with_local().read(root.chunk, root.raw_size))
                self._roots.put(root.chunk, kept)
            roots.append(kept)
        return roots

    def _usable_roots(self, frame: Frame) -> tuple[Root, ...]:
        """Return the roots of a frame; none if they are too large, so that it cannot be decoded."""
        nbytes = sum(root.raw_size for root in frame.roots)
        return frame.roots if nbytes <= self._most_roots else ()

    def _kept_root(self, root: Root) -> memoryview | None:
        kept = self._roots.get(root.chunk)
        return None if kept is None or len(kept) != root.raw_size else memoryview(kept)

    def is_right(self, chunk: ChunkId, out: memoryview) -> bool:
        """Whether the bytes in `out` match a chunk's ID."""
        begin = time.perf_counter()
        right = self._hasher(out) == chunk
        self.spent.add(check=time.perf_counter() - begin)
        return right

    def _rebuild_checked(
        self, chain: Chain, chunk: ChunkId, out: memoryview, local: ReadLocal | None
    ) -> None:
        """Decode a whole chain, check the chunk after every frame, and exclude a damaged frame.

        Raises:
            IntegrityError: A frame is damaged.
            NotFoundError: A pack is gone.
        """
        for location in chain.frames:
            roots, _ = self._read_roots(location, chain, local)  # blames their own frames
            try:
                read_frame(self.nearby, location, out, self.spent, roots)
                if not self.is_right(location.frame.chunk, out):
                    raise damaged_frame(location, "its bytes do not match the chunk's ID")
            except (IntegrityError, NotFoundError) as error:
                self._index.distrust({location: error})
                raise
        if not self.is_right(chunk, out):
            wrong = corrupt(f"chunk {chunk}", "the rebuilt bytes do not match its ID")
            self._index.distrust({chain.frames[-1]: wrong})
            raise wrong


def _naming(error: IntegrityError, chunk: ChunkId) -> IntegrityError:
    """Return the same error with the requested chunk in its message."""
    if str(chunk) in error.message:
        return error
    return IntegrityError(error.code, f"{error.message}. The chunk {chunk} needs it")


class LocalFirstReader:
    """Reads chunks by ID from this machine and the store.

    `ChunkReader.with_local` makes it. Callers that read many chunks enter `ahead`, announce the
    chunks, and then call `readinto` for each in the announced order; over a network this fetches
    many at a time. Reading chunks that were not announced works, too.
    """

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
        """Provide a function that announces the chunks to be read next, in order.

        A store over a network then fetches their frames, many at a time. From other stores, small
        frames are read together with their neighbours.

        Args:
            with_neighbours: Whether to fetch the frames around each frame in a small pack, too.
                For callers that announce few chunks at a time, and the adjacent chunks next.
        """
        store = self._reader.store
        readahead = store.ability(SupportsReadahead)
        if readahead is None:
            with self._reader.nearby.keeping():
                yield lambda _: None
            return
        with readahead.ahead() as announce:

            def announce_chunks(chunks: Sequence[ChunkId]) -> None:
                wanted = self.lacking(chunks)
                # Packs that are fetched whole first, so that `prepare` reads their indexes from
                # the fetched bytes.
                announce(small_packs(store, self._index, wanted))
                self._index.prepare(wanted)
                seen: set[Node] = set()
                announce(
                    [self._ranges(chunk, seen, with_neighbours=with_neighbours) for chunk in wanted]
                )

            yield announce_chunks

    def _ranges(self, chunk: ChunkId, seen: set[Node], *, with_neighbours: bool) -> list[Range]:
        """Return the ranges to fetch for a chunk, in the order in which they are read.

        For a long chain, they leave out the frames that earlier chunks with the same `seen` need.
        """
        chain = self._index.find_chain(chunk, self._finder)
        if chain is None:
            return []
        short = chain.links <= STRIDE and not chain.roots
        frames = chain.frames if short else [*chain.back(seen)][::-1]
        return [around(self._index, frame) if with_neighbours else frame.range for frame in frames]

    def lacking(self, chunks: Iterable[ChunkId]) -> list[ChunkId]:
        """Return those of some chunks that are not local."""
        return [chunk for chunk in chunks if chunk not in self._local]

    def reaches(self, chunks: Iterable[ChunkId]) -> bool:
        """Return whether local chunks and the packs that were read suffice for these chunks."""
        finder = self._finder or self._index
        return all(finder.chain(chunk) is not None for chunk in chunks)

    def read(self, chunk: ChunkId, size: int) -> bytes:
        """Return a chunk that must have this size, and check it against its ID.

        Memory for it is allocated when a frame of that size is known.

        Raises:
            IntegrityError: No chain rebuilds the chunk.
            StoreError: The store could not be read.
        """
        if chunk not in self._local:
            if self._index.find_chain(chunk, self._finder) is None:
                raise self._reader.missing(chunk)
            sizes = {location.frame.raw_size for location in self._index.frames(chunk)}
            if sizes and size not in sizes:
                raise IntegrityError(
                    ErrorCode.CORRUPT_OBJECT,
                    f"the chunk {chunk} has {min(sizes)} bytes instead of {size}",
                )
        out = bytearray(size)
        self.readinto(chunk, memoryview(out))
        return bytes(out)

    def readinto(self, chunk: ChunkId, out: memoryview) -> int:
        """Fill `out` with a chunk and check it against its ID.

        Local bases are not checked, because the check of the chunk fails if its base is wrong.
        The chunk is then read from the store alone.

        Args:
            chunk: The chunk.
            out: A buffer of the chunk's size.

        Returns:
            Number of stored bytes that were read; 0 if this machine had the chunk.

        Raises:
            IntegrityError: No chain rebuilds the chunk. The content of `out` is undefined then.
            StoreError: The store could not be read.
        """
        if self._local.readinto(chunk, out) and self._reader.is_right(chunk, out):
            return 0
        chain = self._index.find_chain(chunk, self._finder)
        if chain is not None and (chain.roots or self._holds_base(chain, out)):
            with suppress(IntegrityError, NotFoundError):
                return self._reader.rebuild(chain, chunk, out, self._local.readinto)
        return self._reader.readinto(chunk, out)

    def _holds_base(self, chain: Chain, out: memoryview) -> bool:
        """Fill `out` with the base of a chain that has one; False without one, or if it is gone."""
        return chain.base is not None and self._local.readinto(chain.base, out)


class _AnyLocal:
    """Several sources of local chunks as one."""

    def __init__(self, sources: Sequence[LocalChunks]) -> None:
        self._sources = sources

    def __contains__(self, chunk: object) -> bool:
        return any(chunk in source for source in self._sources)

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk from the first source that has it; False if no source does."""
        return any(source.readinto(chunk, out) for source in self._sources)


def read_file(reader: ChunkReader, file: FileEntry, chunk_size: int) -> Iterator[memoryview]:
    """Yield the bytes of one file of a version in pieces of at most a chunk."""
    if file.raw_header is not None:
        yield memoryview(file.raw_header)
    local_first = reader.with_local()
    with local_first.ahead() as announce:
        announce(file.chunks)
        for chunk, piece in file.pieces(chunk_size):
            view = uninitialized(piece.nbytes)  # a new buffer, because the caller may keep it
            local_first.readinto(chunk, view)
            yield view
