"""The binary formats of the CAS: hashes as text, xorbs and their chunks, shards, and LZ4."""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK_HEADER = 8  # bytes: version, stored size (3), scheme, raw size (3)
STORED, LZ4, GROUPED_LZ4 = 0, 1, 2  # schemes of compression

_MAX_CHUNK = 1 << 24  # the header has three bytes for the size
_SHARD_TAG = b"HFRepoMetaData\x00" + bytes(
    (85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169)
)
_RECORD = 48  # bytes of every record of a shard
_BOOKEND = b"\xff" * 32  # in place of a hash: the end of the files
_HAS_VERIFICATION = 1 << 31  # flag of a file: each term has a second record
_HAS_METADATA = 1 << 30  # flag of a file: one more record follows its terms


class FormatError(ValueError):
    """Bytes that do not have the expected format."""


def hash_text(digest: bytes) -> str:
    """Return a hash of 32 bytes as the CAS writes it: four little-endian words in hex."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


@dataclass(frozen=True, slots=True)
class XorbIndex:
    """The offsets of the chunks of a xorb.

    Attributes:
        offsets: Offset of each chunk's header in the stored xorb, and the end of the last chunk.
        raw_offsets: Offset of each chunk in the raw data, and the end of the last chunk.
    """

    offsets: Sequence[int]
    raw_offsets: Sequence[int]

    @property
    def count(self) -> int:
        """Number of chunks."""
        return len(self.offsets) - 1

    def raw_size(self, first: int, end: int) -> int:
        """Return the number of raw bytes of the chunks from `first` to before `end`."""
        return self.raw_offsets[end] - self.raw_offsets[first]

    def chunk_at(self, place: int) -> int:
        """Return the number of the chunk that contains the byte at this offset of the raw data."""
        return bisect_right(self.raw_offsets, place) - 1

    @classmethod
    def read(cls, file: int) -> XorbIndex:
        """Read all chunk headers of a xorb.

        Args:
            file: Descriptor of the open file of the xorb.

        Raises:
            FormatError: The file is not a sequence of chunks.
        """
        size = os.fstat(file).st_size
        offsets, raw_offsets = [0], [0]
        while offsets[-1] < size:
            compressed, scheme, raw = chunk_header(os.pread(file, CHUNK_HEADER, offsets[-1]))
            if scheme not in (STORED, LZ4, GROUPED_LZ4) or (scheme == STORED and compressed != raw):
                raise FormatError("a chunk has an unknown header")
            offsets.append(offsets[-1] + CHUNK_HEADER + compressed)
            raw_offsets.append(raw_offsets[-1] + raw)
        if offsets[-1] != size:
            raise FormatError("the last chunk is cut short")
        return cls(offsets, raw_offsets)


def chunk_header(data: bytes) -> tuple[int, int, int]:
    """Return stored size, scheme of compression and raw size of a chunk, from its header.

    Raises:
        FormatError: The bytes are not a chunk header.
    """
    if len(data) < CHUNK_HEADER or data[0] != 0:  # the only version of the format
        raise FormatError("a chunk has an unknown header")
    return int.from_bytes(data[1:4], "little"), data[4], int.from_bytes(data[5:8], "little")


def stored_chunk(data: bytes) -> bytes:
    """Return a chunk with its header for these raw bytes, without compression.

    Raises:
        FormatError: There are too many bytes for one chunk.
    """
    if len(data) >= _MAX_CHUNK:
        raise FormatError(f"a chunk must be smaller than 16 MiB, got {len(data)} bytes")
    size = len(data).to_bytes(3, "little")
    return bytes((0,)) + size + bytes((STORED,)) + size + data


def raw_chunk(chunk: memoryview) -> memoryview:
    """Return the raw bytes of a chunk, which is given with its header.

    Raises:
        FormatError: The chunk cannot be decoded.
    """
    _, scheme, raw = chunk_header(bytes(chunk[:CHUNK_HEADER]))
    data = chunk[CHUNK_HEADER:]
    if scheme == STORED:
        return data
    plain = decode_lz4_frame(data)
    if len(plain) != raw:
        raise FormatError(f"a chunk decodes to {len(plain)} bytes, its header states {raw}")
    return memoryview(plain if scheme == LZ4 else _ungroup(plain))


def _ungroup(data: bytearray) -> bytearray:
    """Undo the grouping of bytes by their position in words of four."""
    out = bytearray(len(data))
    sizes = [len(range(place, len(data), 4)) for place in range(4)]
    starts = [sum(sizes[:place]) for place in range(5)]
    for place, (start, end) in enumerate(pairwise(starts)):
        out[place::4] = data[start:end]
    return out


def decode_lz4_frame(data: memoryview) -> bytearray:
    """Return the content of an LZ4 frame. Its checksums are not verified.

    Raises:
        FormatError: The bytes are not an LZ4 frame.
    """
    if bytes(data[:4]) != b"\x04\x22\x4d\x18":
        raise FormatError("the bytes are not an LZ4 frame")
    flags = data[4]
    # Magic (4), flags, block size, header checksum; the flags add content size and dictionary ID.
    place = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    checksum = 4 if flags & 0x10 else 0
    out = bytearray()
    while True:
        size = int.from_bytes(data[place : place + 4], "little")
        place += 4
        if size == 0:
            return out
        block = data[place : place + (size & 0x7FFFFFFF)]
        place += len(block) + checksum
        if size >> 31:
            out += block
        else:
            _decode_lz4_block(block, out)
        if place >= len(data):
            raise FormatError("an LZ4 frame is cut short")


def _decode_lz4_block(block: memoryview, out: bytearray) -> None:
    place = 0
    while True:
        token = block[place]
        literals, place = _lz4_length(block, place + 1, token >> 4)
        out += block[place : place + literals]
        place += literals
        if place >= len(block):
            return
        distance = block[place] | block[place + 1] << 8
        length, place = _lz4_length(block, place + 2, token & 15)
        length += 4
        start = len(out) - distance
        if distance == 0 or start < 0:
            raise FormatError("an LZ4 match starts before the data")
        if distance >= length:
            out += out[start : start + length]
        else:  # the match overlaps its own output, so it repeats the last bytes
            pattern = out[start:]
            out += (pattern * (length // distance + 1))[:length]


def _lz4_length(block: memoryview, place: int, length: int) -> tuple[int, int]:
    """Return the full length that a token's four bits begin, and the offset after it."""
    if length == 15:
        while True:
            more = block[place]
            place += 1
            length += more
            if more != 255:
                break
    return length, place


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a file: consecutive chunks of one xorb.

    Attributes:
        xorb: Hash of the xorb.
        size: Number of raw bytes.
        first: Number of the first chunk.
        end: Number of the chunk after the last one.
    """

    xorb: str
    size: int
    first: int
    end: int


def shard_files(data: bytes) -> Iterator[tuple[str, tuple[Term, ...]]]:
    """Yield hash and terms of each file that a shard registers.

    Raises:
        FormatError: The bytes are not a shard.
    """
    if len(data) < _RECORD or data[:32] != _SHARD_TAG:
        raise FormatError("the bytes are not a shard")
    place = _RECORD
    while (record := data[place : place + _RECORD])[:32] != _BOOKEND:
        if len(record) < _RECORD:
            raise FormatError("a shard is cut short")
        flags, count = struct.unpack_from("<II", record, 32)
        place += _RECORD
        terms = tuple(
            Term(hash_text(data[at : at + 32]), *struct.unpack_from("<III", data, at + 36))
            for at in range(place, place + count * _RECORD, _RECORD)
        )
        place += count * _RECORD * (2 if flags & _HAS_VERIFICATION else 1)
        place += _RECORD if flags & _HAS_METADATA else 0
        yield hash_text(record[:32]), terms
