"""Tensors of a version as bytes of its chunks: where they lie, reading them, comparing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.format.differences import encode_difference
from casweights.format.layout import bundles
from casweights.system.buffers import uninitialized
from casweights.system.threads import Recent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from casweights.database import Database
    from casweights.database.reader import LocalFirstReader
    from casweights.format.file_entry import FileEntry
    from casweights.format.safetensors import TensorInfo
    from casweights.ids import ChunkId, SnapshotId

    Between = Callable[[int, int], Iterable[tuple[ChunkId | None, int, int]]]

# Share of a chunk's bytes: differences between unrelated weights take more.
_MAX_RELATED = 0.6
_RECENT = 4  # shared chunks kept while the tensors in them are compared, two for each version


class Span(NamedTuple):
    """Consecutive bytes of a chunk.

    Attributes:
        chunk: The chunk.
        size: Bytes of the whole chunk.
        offset: Offset of the bytes in the chunk.
        nbytes: Their number.
    """

    chunk: ChunkId
    size: int
    offset: int
    nbytes: int


class StoredTensor(NamedTuple):
    """A tensor of a version's file, and where its bytes are.

    Attributes:
        info: Its name, dtype and shape.
        chunks: IDs of the chunks that hold it, in order: its own, or the one that it shares.
        chunk_size: Bytes of every chunk but the last.
        first: Number of the first of them in the file.
        offset: Offset of the tensor in the bytes of these chunks.
        total: Bytes of these chunks.
    """

    info: TensorInfo
    chunks: tuple[ChunkId, ...]
    chunk_size: int
    first: int
    offset: int
    total: int

    @property
    def is_alone(self) -> bool:
        """Whether the chunks hold nothing else, so that their IDs stand for its content."""
        return self.total == self.info.nbytes

    def spans(self, start: int = 0, stop: int | None = None) -> Iterator[Span]:
        """Yield the spans that hold the tensor's bytes from `start` to before `stop`, in order."""
        first = self.offset + start
        last = self.offset + (self.info.nbytes if stop is None else stop)
        for number in range(first // self.chunk_size, -(-last // self.chunk_size)):
            begin = number * self.chunk_size
            size = min(self.chunk_size, self.total - begin)
            inside, end = max(first - begin, 0), min(last - begin, size)
            if inside < end:
                yield Span(self.chunks[number], size, inside, end - inside)


def stored_tensors(file: FileEntry, chunk_size: int) -> Iterator[StoredTensor]:
    """Yield the tensors of a safetensors file, in its order; nothing for other files."""
    infos = file.header.tensors if file.header else ()
    found: dict[str, StoredTensor] = {}
    first = 0
    for tensors, nbytes in bundles(infos, chunk_size):
        count = -(-nbytes // chunk_size)
        chunks = file.chunks[first : first + count]
        for info in tensors:
            offset = info.start - tensors[0].start
            found[info.name] = StoredTensor(info, chunks, chunk_size, first, offset, nbytes)
        first += count
    for info in infos:
        yield found.get(info.name) or StoredTensor(info, (), chunk_size, first, 0, 0)


class ChunkRead:
    """A chunk to read, and the memory that receives parts of it.

    Args:
        chunk: The chunk.
        size: Its size in bytes.
    """

    __slots__ = ("_targets", "chunk", "size")

    def __init__(self, chunk: ChunkId, size: int) -> None:
        self.chunk = chunk
        self.size = size
        self._targets: list[tuple[int, memoryview]] = []

    @property
    def nbytes(self) -> int:
        """Bytes that the read writes."""
        return sum(len(out) for _, out in self._targets)

    def add(self, offset: int, out: memoryview) -> None:
        """Let `out` receive the chunk's bytes from an offset on."""
        self._targets.append((offset, out))

    def perform(self, db: Database, reader: LocalFirstReader) -> int:
        """Read and verify the chunk; return the number of stored bytes that were read.

        Raises:
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        whole = next((out for _, out in self._targets if len(out) == self.size), None)
        if whole is None:
            whole = uninitialized(self.size)
        nbytes = reader.readinto(self.chunk, whole)
        db.cache.put(self.chunk, whole)
        for offset, out in self._targets:
            if out is not whole:
                out[:] = whole[offset : offset + len(out)]
        return nbytes


def reads_of(wanted: Iterable[tuple[Iterable[Span], memoryview]]) -> list[ChunkRead]:
    """Return the reads that fill memory with spans, end to end; one for each distinct chunk."""
    found: dict[ChunkId, ChunkRead] = {}
    for spans, memory in wanted:
        at = 0
        for chunk, size, offset, nbytes in spans:
            read = found.get(chunk)
            if read is None:
                read = found[chunk] = ChunkRead(chunk, size)
            read.add(offset, memory[at : at + nbytes])
            at += nbytes
    return list(found.values())


class TensorContents:
    """Compares tensors of versions, and reads no more than that needs.

    The IDs of chunks decide where a tensor has chunks of its own. Only small tensors that share
    chunks are read, and only if these chunks differ.

    Args:
        db: The store.
        versions: The versions that contain the tensors.
    """

    def __init__(self, db: Database, *versions: SnapshotId) -> None:
        self._db = db
        self._versions = versions
        self._chunk = Recent(self._read, _RECENT)

    def same(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Whether two tensors have the same dtype, shape and bits.

        Raises:
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        if (one.info.dtype, one.info.shape) != (other.info.dtype, other.info.shape):
            return False
        if (one.chunks, one.offset) == (other.chunks, other.offset):
            return True
        if one.is_alone and other.is_alone:
            return False
        return self._content(one) == self._content(other)

    def are_related(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Whether two tensors of one dtype and shape differ so little that one came of the other.

        One chunk of each decides.

        Raises:
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        spans = next(zip(one.spans(), other.spans(), strict=False), None)
        if spans is None or spans[0].nbytes != spans[1].nbytes:
            return False
        old, new = map(self._part, spans)
        encoded = encode_difference(new, old, one.info.dtype)
        return encoded is not None and len(encoded[1]) <= _MAX_RELATED * len(new)

    def consists_of(
        self, stored: StoredTensor, between: Between, sizes: Mapping[ChunkId, int]
    ) -> bool:
        """Whether a tensor has the bytes of other chunks, and no others.

        Args:
            stored: The tensor.
            between: Returns chunk, offset and size of what is between two positions of it.
            sizes: The raw sizes of the chunks.

        Raises:
            IntegrityError: The store is damaged.
            StoreError: The store could not be read.
        """
        at = 0
        for span in stored.spans():
            own, place = self._part(span), 0
            parts: dict[ChunkId, list[tuple[int, int, int]]] = {}
            for chunk, offset, nbytes in between(at, at + span.nbytes):
                if chunk is None:
                    return False
                parts.setdefault(chunk, []).append((place, offset, nbytes))
                place += nbytes
            at += span.nbytes
            if place != span.nbytes:
                return False
            for chunk, places in parts.items():  # one by one: columns of many may alternate
                whole = self._chunk((chunk, sizes[chunk]))
                if any(own[to : to + n] != whole[of : of + n] for to, of, n in places):
                    return False
        return True

    def _content(self, stored: StoredTensor) -> memoryview:
        """The bytes of a small tensor, which are in one chunk."""
        (span,) = stored.spans()
        return self._part(span)

    def _part(self, span: Span) -> memoryview:
        whole = self._chunk((span.chunk, span.size))
        return whole[span.offset : span.offset + span.nbytes]

    def _read(self, wanted: tuple[ChunkId, int]) -> memoryview:
        # Versions may come from a cache without locations, which the reader needs.
        for version in self._versions:
            self._db.snapshots.load(version, with_locations=True)
        chunk, size = wanted
        out = uninitialized(size)
        self._db.reader.with_local(self._db.cache).readinto(chunk, out)
        return out
