"""Packs: many frames in one immutable object, with an index whose digest is the pack's ID."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import msgpack

from casweights.config import MAX_CHUNK_SIZE
from casweights.format.columns import (
    IdColumn,
    Ids,
    LinkedIds,
    NumberColumn,
    RunningSums,
    decode_bits,
    encode_bits,
    rows_of,
)
from casweights.format.envelope import (
    MAX_GENERATION,
    PREFIX_SIZE,
    ObjectKind,
    check_generation,
    check_version,
    corrupt,
    prefix,
)
from casweights.format.hashing import CHECKSUM_SIZE, blake3_256
from casweights.format.names import pack_name
from casweights.format.roots import Root, RootColumns, all_bases, encode_roots
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import ChunkId, PackId, Suspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.system.buffers import Buffer

MAX_INDEX_SIZE = 64 << 20  # bytes: readers allocate no more for an index
TRAILER_SIZE = 8  # bytes: length of the index (4), magic (4)
_TRAILER_MAGIC = b"cidx"


class Frame(NamedTuple):
    """One encoded chunk inside a pack.

    Attributes:
        chunk: ID of the chunk.
        raw_size: Number of raw bytes of the chunk.
        encoding: Code of the encoding, see `casweights.format.codecs`.
        offset: Offset of the stored bytes in the pack.
        size: Number of stored bytes.
        checksum: XXH3-64 of the stored bytes.
        base: The chunk that this frame is a difference from; None if the frame has no base.
        roots: The chunks that this frame is made from, if it is derived.
    """

    chunk: ChunkId
    raw_size: int
    encoding: int
    offset: int
    size: int
    checksum: bytes
    base: ChunkId | None = None
    roots: tuple[Root, ...] = ()

    @property
    def bases(self) -> tuple[ChunkId, ...]:
        """All chunks that this frame builds on: its base, or its roots."""
        return all_bases(self.base, self.roots)

    @property
    def content(self) -> tuple[int, int, bytes, bytes]:
        """What the copies of a frame in several packs have in common, for frames of one chunk."""
        return self.size, self.encoding, b"".join(self.bases), self.checksum

    def encoded(self, payload: Buffer) -> EncodedFrame:
        """Return the same frame in no pack, given its stored bytes."""
        return EncodedFrame(self.encoding, payload, self.checksum, self.base, self.roots)

    def at(self, offset: int) -> Frame:
        """Return the same frame at another offset. `_replace` takes twice as long."""
        return Frame(
            self.chunk,
            self.raw_size,
            self.encoding,
            offset,
            self.size,
            self.checksum,
            self.base,
            self.roots,
        )


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One encoded chunk that is not in a pack yet.

    Attributes:
        encoding: Code of the encoding.
        payload: The bytes to store.
        checksum: XXH3-64 of `payload`.
        base: The chunk that this frame is a difference from; None if the frame has no base.
        roots: The chunks that this frame is made from, if it is derived.
    """

    encoding: int
    payload: Buffer
    checksum: bytes
    base: ChunkId | None = None
    roots: tuple[Root, ...] = ()

    @property
    def bases(self) -> tuple[ChunkId, ...]:
        """All chunks that this frame builds on: its base, or its roots."""
        return all_bases(self.base, self.roots)

    def of(self, chunk: ChunkId, raw_size: int) -> Frame:
        """Return the frame of a chunk, before it has an offset."""
        size = len(self.payload)
        return Frame(chunk, raw_size, self.encoding, 0, size, self.checksum, self.base, self.roots)

    def detached(self, raw: memoryview) -> EncodedFrame:
        """Return this frame with a copy of its payload, if that is this view of the chunk."""
        return replace(self, payload=bytes(raw)) if self.payload is raw else self


class Location(NamedTuple):
    """Where a chunk can be read: a frame and the pack that contains it."""

    pack: PackId
    frame: Frame

    @property
    def range(self) -> tuple[str, int, int]:
        """The pack's object name, and the start and end offset of the stored bytes in it."""
        start = self.frame.offset
        return pack_name(self.pack), start, start + self.frame.size

    @property
    def suspect(self) -> Suspect:
        """The place that a finding about this frame names."""
        return Suspect(self.pack, self.frame.offset)


@dataclass(frozen=True, slots=True)
class OpenPack:
    """Frames with the offsets that they have in any object, a pack or that of a snapshot.

    Attributes:
        frames: The frames, in order; at least one.
        payloads: The stored bytes of each.
    """

    frames: Sequence[Frame]
    payloads: Sequence[Buffer]

    def seal(self, generation: int = 0) -> SealedPack:
        """Return the pack that contains these frames, see `build_index`."""
        pack, ending = build_index(self.frames, generation)
        return SealedPack(pack, self.frames, [prefix(ObjectKind.PACK), *self.payloads, ending])

    def repeated(self) -> OpenPack:
        """Return the same frames, the first of them a second time at the end."""
        last = self.frames[-1]
        again = self.frames[0].at(last.offset + last.size)
        return OpenPack([*self.frames, again], [*self.payloads, self.payloads[0]])


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A complete pack that is not written yet.

    Attributes:
        pack: ID of the pack.
        frames: The frames, in order.
        parts: The bytes of the pack, in parts.
    """

    pack: PackId
    frames: Sequence[Frame]
    parts: Sequence[bytes | bytearray | memoryview]

    @property
    def name(self) -> str:
        """Name of the pack in a store."""
        return pack_name(self.pack)

    @property
    def size(self) -> int:
        """Bytes of the pack."""
        return sum(map(len, self.parts))

    @property
    def locations(self) -> list[Location]:
        """The locations that its frames will have."""
        return [Location(self.pack, frame) for frame in self.frames]


class FrameColumns(Sequence[Frame]):
    """The frames that an index lists, as columns. A frame is made when it is asked for.

    A pack may have tens of thousands of frames, of which a version needs one.

    Args:
        table: The columns, each of the right type.

    Raises:
        ValueError: They do not fit each other.

    Attributes:
        chunks: The ID of each frame's chunk.
        end: The offset at which the last frame ends.
        generation: The pack's generation: 0 for packs of a commit, more for merged packs.
        has_derived: Whether any frame has roots.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        width: int = table["digest_size"]
        if width not in ChunkId.sizes:
            raise ValueError(f"it has digests of {width} bytes")
        self.chunks = IdColumn(table["chunk"], width)
        self._bases: Ids = IdColumn(table["base"], width)
        self.generation: int = table.get("generation", 0)
        self._raw_sizes, self._sizes = NumberColumn(table["raw_size"]), NumberColumn(table["size"])
        self._encodings, self._checksums = table["encoding"], table["checksum"]
        self._based = decode_bits(table["based"], len(self.chunks))
        self._roots = RootColumns(
            NumberColumn(table.get("root_of", b"")),
            IdColumn(table.get("root", b""), width),
            NumberColumn(table.get("root_size", b"")),
            len(self.chunks),
        )
        self.has_derived = len(self._roots.chunks) > 0
        self._check()
        self._offsets = RunningSums(self._sizes.numbers, PREFIX_SIZE)
        self.end = self._offsets.total

    def _check(self) -> None:
        """Check the columns against each other."""
        count = len(self.chunks)
        lengths = {len(self._raw_sizes.numbers), len(self._sizes.numbers), len(self._encodings)}
        if lengths != {count} or len(self._checksums) != count * CHECKSUM_SIZE:
            raise ValueError("its columns differ in length")
        if len(self._bases) != self._based.count(1):
            raise ValueError("it has more or fewer bases than frames that need one")
        if any(self._based[n] for n in self._roots.frames()):
            raise ValueError("it has a frame with a base and roots")
        if self._raw_sizes.most() > MAX_CHUNK_SIZE:
            raise ValueError("it has a chunk above the largest chunk size")
        if not 0 <= self.generation <= MAX_GENERATION:
            raise ValueError(f"its generation is {self.generation}")
        if self._sizes.exceeds(self._raw_sizes):
            raise ValueError("it has a frame that is larger than its chunk")

    @property
    def bases(self) -> list[bytes]:
        """The base of each frame that has one, and all roots, as plain bytes."""
        return [*self._bases, *self._roots.chunks]

    def whole_sizes(self) -> dict[int, int]:
        """Return the smallest size of the frames that build on nothing, by their raw size."""
        raw_sizes, sizes = self._raw_sizes.numbers, self._sizes.numbers
        derived = set(self._roots.frames())
        wholes = [(raw_sizes[n], sizes[n]) for n in rows_of(0, self._based) if n not in derived]
        return dict(sorted(wholes, reverse=True))

    def __len__(self) -> int:
        return len(self.chunks)

    @overload
    def __getitem__(self, n: int) -> Frame: ...
    @overload
    def __getitem__(self, n: slice) -> Sequence[Frame]: ...
    def __getitem__(self, n: int | slice) -> Frame | Sequence[Frame]:
        if isinstance(n, slice):
            return [self.at(number) for number in range(len(self))[n]]
        return self.at(range(len(self))[n])

    def __iter__(self) -> Iterator[Frame]:
        return map(self.at, range(len(self)))

    @cached_property
    def _numbers_of_bases(self) -> RunningSums:
        """For each frame, how many frames before it have a base."""
        return RunningSums(self._based, 0)

    def _base(self, n: int) -> ChunkId | None:
        return ChunkId(self._bases.at(self._numbers_of_bases.at(n))) if self._based[n] else None

    def compact(self) -> None:
        """Take less memory, where the frames of many packs are kept."""
        if isinstance(self._bases, IdColumn):
            self._bases = LinkedIds(self._bases, self.chunks)

    def at(self, n: int) -> Frame:
        """Make the frame of a row that exists; faster than ``[n]``."""
        return Frame(
            ChunkId(self.chunks.at(n)),
            self._raw_sizes.numbers[n],
            self._encodings[n],
            self._offsets.at(n),
            self._sizes.numbers[n],
            self._checksums[n * CHECKSUM_SIZE : (n + 1) * CHECKSUM_SIZE],
            self._base(n),
            self._roots.of(n) if self.has_derived else (),
        )


def build_index(frames: Sequence[Frame], generation: int = 0) -> tuple[PackId, bytes]:
    """Encode the end of a pack.

    The index contains every frame's checksum, so equal frames in equal order make equal packs of
    one generation.

    Args:
        frames: The frames in the order of their bytes; at least one.
        generation: 0, or one more than the highest generation of the packs that this one replaces.

    Returns:
        The pack's ID, and its index and trailer, concatenated.

    Raises:
        IntegrityError: There is no such generation.
    """
    check_generation(generation)
    index = encode_frames(frames, generation)
    return pack_id(prefix(ObjectKind.PACK), index), index + trailer(index)


def encode_frames(frames: Sequence[Frame], generation: int = 0) -> bytes:
    """Return the columns of an index, for at least one frame."""
    columns: bytes = msgpack.packb(
        {
            "digest_size": len(frames[0].chunk),
            "chunk": b"".join(frame.chunk for frame in frames),
            "raw_size": NumberColumn.encode(frame.raw_size for frame in frames),
            "size": NumberColumn.encode(frame.size for frame in frames),
            "encoding": bytes(frame.encoding for frame in frames),
            "checksum": b"".join(frame.checksum for frame in frames),
            "based": encode_bits([frame.base is not None for frame in frames]),
            "base": b"".join(frame.base for frame in frames if frame.base is not None),
        }
        | encode_roots(frame.roots for frame in frames)
        | ({"generation": generation} if generation else {})
    )
    return columns


def trailer(index: bytes) -> bytes:
    """Return the last bytes of an object that ends with this index."""
    return len(index).to_bytes(TRAILER_SIZE - len(_TRAILER_MAGIC), "little") + _TRAILER_MAGIC


def pack_id(first_bytes: bytes, index: bytes) -> PackId:
    """Return the ID of a pack with these first bytes and this index."""
    return PackId(blake3_256(first_bytes, index))


def index_span(
    last_bytes: bytes,
    object_size: int,
    name: str,
    *,
    checksum_size: int = 0,
    limit: int = MAX_INDEX_SIZE,
) -> tuple[int, int]:
    """Return the start and end offset of the index of a pack or snapshot object.

    Args:
        last_bytes: The last `TRAILER_SIZE` bytes of the object.
        object_size: Bytes of the object.
        name: Its name in the store, for error messages.
        checksum_size: Bytes between the index and the trailer.
        limit: Bytes that the index has at most.

    Raises:
        IntegrityError: `last_bytes` are not the end of such an object.
    """
    stop = object_size - TRAILER_SIZE - checksum_size
    size = int.from_bytes(last_bytes[: -len(_TRAILER_MAGIC)], "little")
    if len(last_bytes) != TRAILER_SIZE or not last_bytes.endswith(_TRAILER_MAGIC):
        raise corrupt(name, "it does not end with an index; it may be truncated")
    if not 0 < size <= min(stop - PREFIX_SIZE, limit):
        raise corrupt(name, f"its index claims {size} bytes")
    return stop - size, stop


def parse_index(
    first_bytes: bytes, index: bytes, index_start: int, pack: PackId, name: str
) -> FrameColumns:
    """Parse the index of a pack and return its frames.

    Args:
        first_bytes: The pack's first `PREFIX_SIZE` bytes.
        index: Its index.
        index_start: Offset at which the index begins and the last frame must end.
        pack: Its ID.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: The index does not match the ID, or is malformed.
        UnsupportedError: A newer casweights wrote the pack.
    """
    if pack_id(first_bytes, index) != pack:
        raise corrupt(name, "its index does not match its ID")
    check_version(first_bytes[5], name)
    try:
        frames = parse_frames(index, has_generation=True)
    except MALFORMED as error:
        raise corrupt(name, str(error)) from error
    if frames.end != index_start:
        raise corrupt(name, "its frames do not end where its index begins")
    return frames


def parse_frames(index: bytes, *, has_generation: bool = False) -> FrameColumns:
    """Return the frames that an index lists.

    Args:
        index: The columns, as `encode_frames` returns them.
        has_generation: Whether a generation counts; snapshots have none, and readers pass over it.

    Raises:
        ValueError: The columns are not valid; also the other errors of `MALFORMED`.
    """
    data = Unpacker(index)
    column = partial(data.scalar, bytes)
    readers: dict[str, Callable[[], Any]] = {
        "digest_size": lambda: data.scalar(int),
        "chunk": column,
        "raw_size": column,
        "size": column,
        "encoding": column,
        "checksum": column,
        "based": column,
        "base": column,
    }
    of_roots = dict.fromkeys(("root_of", "root", "root_size"), column)
    if has_generation:
        readers["generation"] = lambda: data.scalar(int)
    table = data.fields(readers | of_roots, optional={"generation", *of_roots})
    data.finish()
    return FrameColumns(table)
