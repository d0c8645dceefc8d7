"""Packs: many frames in one immutable object, with an index that names the pack."""

from __future__ import annotations

from dataclasses import dataclass
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

MAX_INDEX_SIZE = 64 << 20  # bytes that a reader allocates for an index at most
TRAILER_SIZE = 8  # bytes: the length of the index, magic
_TRAILER_MAGIC = b"cidx"
_MAX_OFFSET = 1 << 62  # lest offset and size together overflow


@dataclass(frozen=True, slots=True)
class Frame:
    """One encoded chunk inside a pack.

    Attributes:
        chunk: ID of the chunk's raw bytes.
        raw_size: Raw bytes.
        encoding: Code of the encoding, see `casweights.format.codecs`.
        offset: Offset of the stored bytes in the pack.
        size: Stored bytes.
        checksum: xxh3-64 of the stored bytes.
        base: The chunk that this one is a difference from; None if it stands alone.
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
    """One way to store a chunk, ready to be written.

    Attributes:
        encoding: Code of the encoding.
        payload: The bytes to store.
        checksum: xxh3-64 of them.
        base: The chunk that this is a difference from; None if it stands alone.
    """

    encoding: int
    payload: Buffer
    checksum: bytes
    base: ChunkId | None = None


@dataclass(frozen=True, slots=True)
class Location:
    """Where a chunk can be read: a frame and the pack it lies in."""

    pack: PackId
    frame: Frame

    @property
    def range(self) -> tuple[str, int, int]:
        """The pack's name, and where in it the stored bytes begin and end."""
        start = self.frame.offset
        return pack_name(self.pack), start, start + self.frame.size

    @property
    def suspect(self) -> Suspect:
        """How findings name the frame."""
        return Suspect(self.pack, self.frame.offset)


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A pack that is ready to be written.

    Attributes:
        pack: Its ID.
        frames: Its frames.
        parts: Its bytes, in parts.
    """

    pack: PackId
    frames: Sequence[Frame]
    parts: Sequence[bytes | bytearray | memoryview]

    @property
    def name(self) -> str:
        """Its name in a store."""
        return pack_name(self.pack)

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(map(len, self.parts))

    @property
    def locations(self) -> list[Location]:
        """Where its frames will be."""
        return [Location(self.pack, frame) for frame in self.frames]


def _frames_from_columns(
    table: dict[str, Any],
    chunks: Sequence[ChunkId],
    raw_sizes: Sequence[int],
    offsets: Sequence[int],
) -> list[Frame]:
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
        raise ValueError("it has a base for a frame that is not there")
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
    """The end of a pack (index and trailer) and the pack's ID.

    The index fixes every frame's checksum, so that equal frames in equal order make equal packs of
    one generation.

    Args:
        frames: The frames, in order.
        generation: 0, or one more than the highest of the packs that this one replaces.
    """
    index: bytes = msgpack.packb(
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
    trailer = len(index).to_bytes(TRAILER_SIZE - len(_TRAILER_MAGIC), "little") + _TRAILER_MAGIC
    return pack_id(prefix(ObjectKind.PACK), index), index + trailer


def pack_id(first_bytes: bytes, index: bytes) -> PackId:
    """The ID of a pack with these first bytes and this index."""
    return PackId(blake3_256(first_bytes + index))


def index_span(trailer: bytes, pack_size: int, name: str) -> tuple[int, int]:
    """Start and stop of a pack's index.

    Args:
        trailer: The last `TRAILER_SIZE` bytes of the pack.
        pack_size: Bytes of the pack.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: This is no end of a pack.
    """
    stop = pack_size - TRAILER_SIZE
    size = int.from_bytes(trailer[: -len(_TRAILER_MAGIC)], "little")
    if len(trailer) != TRAILER_SIZE or not trailer.endswith(_TRAILER_MAGIC):
        raise corrupt(name, "it does not end like a pack; it may be truncated")
    if not 0 < size <= min(stop - PREFIX_SIZE, MAX_INDEX_SIZE):
        raise corrupt(name, f"its index claims {size} bytes")
    return stop - size, stop


def parse_index(
    first_bytes: bytes, index: bytes, index_start: int, pack: PackId, name: str
) -> list[Frame]:
    """The frames of a pack.

    Args:
        first_bytes: The pack's first `PREFIX_SIZE` bytes.
        index: Its index.
        index_start: Where the index begins, which is where the last frame must end.
        pack: Its ID.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: The index is not the one that `pack` stands for, or is no index.
        UnsupportedError: A newer casweights wrote the pack.
    """
    if pack_id(first_bytes, index) != pack:
        raise corrupt(name, "its index does not match its ID")
    check_version(first_bytes[5], name)
    try:
        frames, end = _parse_frames(index)
    except MALFORMED as error:
        raise corrupt(name, str(error)) from error
    if end != index_start:
        raise corrupt(name, "its frames do not end where its index begins")
    return frames


def parse_generation(index: bytes, name: str) -> int:
    """The generation of a pack whose index `parse_index` accepts.

    Raises:
        IntegrityError: It is no generation.
    """
    if b"generation" not in index:
        return 0
    generation = msgpack.unpackb(index, strict_map_key=False).get("generation", 0)
    if type(generation) is not int or generation < 0:
        raise corrupt(name, f"its generation is {generation!r}")
    return generation


def _parse_frames(index: bytes) -> tuple[list[Frame], int]:
    """The frames that an index lists, and where the last of them ends."""
    table = _unpack_columns(index)
    chunks = split_ids(table["chunk"], table["digest_size"])
    starts = list(accumulate(table["size"], initial=PREFIX_SIZE))
    end = starts.pop()
    return _frames_from_columns(table, chunks, table["raw_size"], starts), end


def _unpack_columns(index: bytes) -> dict[str, Any]:
    """The values of an index, each of the type that belongs there."""
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
