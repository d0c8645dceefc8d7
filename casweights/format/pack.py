"""Packs: many frames in one immutable object, with an index whose digest is the pack's ID."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgpack

from casweights.config import MAX_CHUNK_SIZE
from casweights.format.envelope import (
    PREFIX_SIZE,
    ObjectKind,
    check_version,
    corrupt,
    prefix,
)
from casweights.format.fields import split_ids
from casweights.format.hashing import CHECKSUM_SIZE, blake3_256
from casweights.format.names import pack_name
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import ChunkId, PackId, Suspect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights.system.buffers import Buffer

MAX_INDEX_SIZE = 64 << 20  # bytes: readers allocate no more for an index
TRAILER_SIZE = 8  # bytes: length of the index (4), magic (4)
_TRAILER_MAGIC = b"cidx"
_MAX_OFFSET = 1 << 62  # so that the sum of an offset and a size fits into 63 bits


@dataclass(frozen=True, slots=True)
class Frame:
    """One encoded chunk inside a pack.

    Attributes:
        chunk: ID of the chunk.
        raw_size: Number of raw bytes of the chunk.
        encoding: Code of the encoding, see `casweights.format.codecs`.
        offset: Offset of the stored bytes in the pack.
        size: Number of stored bytes.
        checksum: XXH3-64 of the stored bytes.
        base: The chunk that this frame is a difference from; None if the frame has no base.
    """

    chunk: ChunkId
    raw_size: int
    encoding: int
    offset: int
    size: int
    checksum: bytes
    base: ChunkId | None = None


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One encoded chunk that is not in a pack yet.

    Attributes:
        encoding: Code of the encoding.
        payload: The bytes to store.
        checksum: XXH3-64 of `payload`.
        base: The chunk that this frame is a difference from; None if the frame has no base.
    """

    encoding: int
    payload: Buffer
    checksum: bytes
    base: ChunkId | None = None


@dataclass(frozen=True, slots=True)
class Location:
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
        again = replace(self.frames[0], offset=last.offset + last.size)
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


def _frames_from_columns(
    table: dict[str, Any],
    chunks: Sequence[ChunkId],
    raw_sizes: Sequence[int],
    offsets: Sequence[int],
) -> list[Frame]:
    """Check the columns of an index against each other, and return one frame per row."""
    sizes, encodings = table["size"], table["encoding"]
    checksums, bases = table["checksum"], table["base"]
    lengths = {len(chunks), len(raw_sizes), len(offsets), len(sizes), len(encodings)}
    if lengths != {len(checksums) / CHECKSUM_SIZE}:
        raise ValueError("its columns differ in length")
    for column in (sizes, raw_sizes, offsets):
        if not 0 <= min(column, default=0) <= max(column, default=0) < _MAX_OFFSET:
            raise ValueError("it has a size or offset that is out of bounds")
    if any(n > MAX_CHUNK_SIZE for n in raw_sizes):
        raise ValueError("it has a chunk above the largest chunk size")
    if any(size > raw_size for size, raw_size in zip(sizes, raw_sizes, strict=True)):
        raise ValueError("it has a frame that is larger than its chunk")
    if not all(0 <= n < len(chunks) for n in bases):
        raise ValueError("it has a base for a frame that does not exist")
    return [
        Frame(
            chunk=chunk,
            raw_size=raw_sizes[n],
            encoding=encodings[n],
            offset=offsets[n],
            size=sizes[n],
            checksum=checksums[n * CHECKSUM_SIZE : (n + 1) * CHECKSUM_SIZE],
            base=ChunkId(bases[n]) if n in bases else None,
        )
        for n, chunk in enumerate(chunks)
    ]


def build_index(frames: Sequence[Frame], generation: int = 0) -> tuple[PackId, bytes]:
    """Encode the end of a pack.

    The index contains every frame's checksum, so equal frames in equal order make equal packs of
    one generation.

    Args:
        frames: The frames in the order of their bytes; at least one.
        generation: 0, or one more than the highest generation of the packs that this one replaces.

    Returns:
        The pack's ID, and its index and trailer, concatenated.
    """
    index = encode_frames(frames, generation)
    return pack_id(prefix(ObjectKind.PACK), index), index + trailer(index)


def encode_frames(frames: Sequence[Frame], generation: int = 0) -> bytes:
    """Return the columns of an index, for at least one frame."""
    columns: bytes = msgpack.packb(
        {
            "digest_size": len(frames[0].chunk),
            "chunk": b"".join(frame.chunk for frame in frames),
            "raw_size": [frame.raw_size for frame in frames],
            "size": [frame.size for frame in frames],
            "encoding": bytes(frame.encoding for frame in frames),
            "checksum": b"".join(frame.checksum for frame in frames),
            "base": {n: frame.base for n, frame in enumerate(frames) if frame.base is not None},
        }
        | ({"generation": generation} if generation else {})
    )
    return columns


def trailer(index: bytes) -> bytes:
    """Return the last bytes of an object that ends with this index."""
    return len(index).to_bytes(TRAILER_SIZE - len(_TRAILER_MAGIC), "little") + _TRAILER_MAGIC


def pack_id(first_bytes: bytes, index: bytes) -> PackId:
    """Return the ID of a pack with these first bytes and this index."""
    return PackId(blake3_256(first_bytes + index))


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
) -> list[Frame]:
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
        frames, end = parse_frames(index)
    except MALFORMED as error:
        raise corrupt(name, str(error)) from error
    if end != index_start:
        raise corrupt(name, "its frames do not end where its index begins")
    return frames


def parse_generation(index: bytes, name: str) -> int:
    """Return the generation of a pack.

    Args:
        index: An index that `parse_index` accepted.
        name: Name of the pack in the store, for error messages.

    Raises:
        IntegrityError: The generation is not an integer of at least 0.
    """
    # Decoding an index again is expensive, and few indexes contain the key.
    if b"generation" not in index:
        return 0
    generation = msgpack.unpackb(index, strict_map_key=False).get("generation", 0)
    if type(generation) is not int or generation < 0:
        raise corrupt(name, f"its generation is {generation!r}")
    return generation


def parse_frames(index: bytes) -> tuple[list[Frame], int]:
    """Return the frames that an index lists, and the offset at which the last one ends.

    Raises one of `MALFORMED` if the columns do not fit each other.
    """
    table = _unpack_columns(index)
    chunks = split_ids(table["chunk"], table["digest_size"])
    starts = list(accumulate(table["size"], initial=PREFIX_SIZE))
    end = starts.pop()
    return _frames_from_columns(table, chunks, table["raw_size"], starts), end


def _unpack_columns(index: bytes) -> dict[str, Any]:
    """Decode the columns of an index, and check the type of each."""
    data = Unpacker(index)
    readers: dict[str, Callable[[], Any]] = {
        "digest_size": lambda: data.scalar(int),
        "chunk": lambda: data.scalar(bytes),
        "raw_size": data.ints,
        "size": data.ints,
        "encoding": lambda: data.scalar(bytes),
        "checksum": lambda: data.scalar(bytes),
        "base": lambda: {data.scalar(int): data.scalar(bytes) for _ in data.pairs(len(index))},
    }
    table = data.fields(readers)
    data.finish()
    return table
