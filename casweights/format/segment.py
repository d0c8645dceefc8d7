"""Segments: for many packs at once, which of them contain a chunk.

A segment saves readers the indexes of the packs that it covers. It is never proof: a reader goes by
the index of the pack that a segment names. A pack that is gone may be covered, too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from casweights.format.envelope import PREFIX_SIZE, ObjectKind, check_version, corrupt, prefix
from casweights.format.hashing import blake3_256, checksum
from casweights.format.names import segment_name
from casweights.format.pack import index_span, trailer
from casweights.format.segment_rows import (
    KEY_SIZE,
    NUMBER,
    ROW_SIZE,
    leading_numbers,
    pack_numbers,
)
from casweights.ids import CarriedPackId, PackId, SegmentId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.ids import ChunkId

MAX_ROWS = 3 << 20  # 60 MiB: writers hold a whole segment in memory
MAX_PACKS = 1 << 16  # readers keep all of them
_ROWS_OF_A_BUCKET = 64  # about; a look-up reads a bucket
_MAX_BITS = 16
_COUNTS = struct.Struct("<4I")  # rows, packs, bits of the fanout, generation
_BUCKET = struct.Struct("<I4s")  # rows up to its end, check
_PACK = struct.Struct("<32sBI")  # ID, kind, rows
_KINDS: tuple[type[PackId], ...] = (PackId, CarriedPackId)  # by their numbers
_MAX_INDEX = (_BUCKET.size << _MAX_BITS) + MAX_PACKS * _PACK.size + _COUNTS.size


class CoveredPack(NamedTuple):
    """A pack that a segment covers, and the number of its rows there."""

    pack: PackId
    rows: int


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """The end of a segment: the packs that it covers, and where the rows of a chunk lie.

    Attributes:
        segment: ID of the segment.
        packs: The packs.
        rows: Number of rows.
        bits: Bits at the beginning of a chunk ID that decide its bucket.
        generation: How often rows of it have been written again.
        fanout: The end and the check of each bucket, as stored.
    """

    segment: SegmentId
    packs: tuple[CoveredPack, ...]
    rows: int
    bits: int
    generation: int
    fanout: bytes

    @property
    def name(self) -> str:
        """Name of the segment in a store."""
        return segment_name(self.segment)

    def bucket(self, chunk: bytes) -> int:
        """Return the number of a chunk's bucket."""
        return _leading(chunk) >> (_MAX_BITS - self.bits)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the start and end offset of the rows of some buckets, `first` to `last`.

        Raises:
            IntegrityError: The buckets are not in order.
        """
        start = self._end(first - 1) if first else 0
        end = self._end(last)
        if not start <= end <= self.rows:
            raise corrupt(self.name, "its buckets are not in order")
        return PREFIX_SIZE + start * ROW_SIZE, PREFIX_SIZE + end * ROW_SIZE

    def _end(self, bucket: int) -> int:
        return int(_BUCKET.unpack_from(self.fanout, bucket * _BUCKET.size)[0])

    def check(self, bucket: int, rows: bytes | memoryview) -> None:
        """Check the rows of a bucket.

        Raises:
            IntegrityError: They are damaged.
        """
        if _BUCKET.unpack_from(self.fanout, bucket * _BUCKET.size)[1] != _check(rows):
            raise corrupt(self.name, "the checksum of some of its rows does not match")

    def pack(self, row: bytes) -> PackId:
        """Return the pack of a row.

        Raises:
            IntegrityError: The segment covers no such pack.
        """
        number: int = NUMBER.unpack_from(row, KEY_SIZE)[0]
        if number >= len(self.packs):
            raise corrupt(self.name, f"it has a row of its pack {number} of {len(self.packs)}")
        return self.packs[number].pack


def _check(rows: bytes | memoryview) -> bytes:
    """Return the check of a bucket."""
    return checksum(rows)[:4]


def _leading(chunk: bytes) -> int:
    """Return the number that the first two bytes of a chunk ID are."""
    return chunk[0] << 8 | chunk[1]


def rows_of(chunk: ChunkId, rows: bytes) -> Iterator[bytes]:
    """Yield the rows of a chunk among those of its bucket."""
    key = chunk[:KEY_SIZE]
    at = rows.find(key)
    while at >= 0:
        if at % ROW_SIZE == 0:
            yield rows[at : at + ROW_SIZE]
        at = rows.find(key, at + 1)


def split_rows(data: bytes | memoryview) -> list[bytes]:
    """Return the rows in these bytes."""
    return [bytes(data[at : at + ROW_SIZE]) for at in range(0, len(data), ROW_SIZE)]


def fanout_bits(rows: int) -> int:
    """Return the bits of the fanout of a segment with about this number of rows."""
    buckets = -(-rows // _ROWS_OF_A_BUCKET)
    return min(_MAX_BITS, max(0, buckets - 1).bit_length())


class SegmentBuilder:
    """Encodes a segment: call `add` for all its rows, and then `finish`.

    Args:
        packs: The packs that it covers, in the order of their numbers.
        bits: Bits of the fanout.
        generation: 0, or one more than the highest of those that it replaces.
    """

    def __init__(self, packs: Sequence[PackId], bits: int, generation: int) -> None:
        self._packs, self._bits, self._generation = packs, bits, generation
        self._content, self._fanout = [prefix(ObjectKind.SEGMENT)], bytearray()
        self._counts: Any = 0  # an array of the numbers of rows, once there are some
        self._total = 0

    def add(self, rows: bytes) -> None:
        """Add the rows of the next range of chunk IDs.

        Args:
            rows: They are in order, without repetitions. The ranges are a power of two of equal
                ones by the first bits of chunk IDs, at most as many as there are buckets.
        """
        import numpy as np  # as in `columns`

        self._content.append(rows)
        self._counts += np.bincount(pack_numbers(rows), minlength=len(self._packs))
        _add_buckets(self._fanout, rows, self._total, self._bits)
        self._total += len(rows) // ROW_SIZE

    def finish(self) -> tuple[SegmentIndex, list[bytes]]:
        """Return the segment's index, and the bytes of the object, in parts."""
        bits, total, generation = self._bits, self._total, self._generation
        _add_buckets(self._fanout, b"", total, bits, last=True)
        fanout, content = bytes(self._fanout), self._content
        counts = self._counts.tolist() if total else [0] * len(self._packs)
        covered = tuple(map(CoveredPack, self._packs, counts))
        table = b"".join(_PACK.pack(p, _KINDS.index(type(p)), rows) for p, rows in covered)
        index = fanout + table + _COUNTS.pack(total, len(covered), bits, generation)
        content.append(index + trailer(index))
        segment = segment_id(content[0], index)
        return SegmentIndex(segment, covered, total, bits, generation, fanout), content


def _add_buckets(
    fanout: bytearray, rows: bytes, before: int, bits: int, *, last: bool = False
) -> None:
    """Add the buckets up to that of the last of these rows, or all that are left.

    Args:
        fanout: The buckets so far.
        rows: The next rows.
        before: The number of rows before them.
        bits: Bits of the fanout.
        last: Whether no row follows.
    """
    import numpy as np  # as in `columns`

    shift, done, leading = _MAX_BITS - bits, len(fanout) // _BUCKET.size, leading_numbers(rows)
    stop = 1 << bits if last else (int(leading[-1]) >> shift) + 1 if rows else done
    start, data = 0, memoryview(rows)
    for end in np.searchsorted(leading, np.arange(done + 1, stop + 1) << shift).tolist():
        fanout += _BUCKET.pack(before + end, _check(data[start * ROW_SIZE : end * ROW_SIZE]))
        start = end


def segment_id(first_bytes: bytes, index: bytes) -> SegmentId:
    """Return the ID of a segment with these first bytes and this index."""
    return SegmentId(blake3_256(first_bytes + index))


def parse_segment(
    first_bytes: bytes, index: bytes, index_start: int, segment: SegmentId
) -> SegmentIndex:
    """Parse the index of a segment.

    Args:
        first_bytes: The segment's first `PREFIX_SIZE` bytes.
        index: Its index.
        index_start: Offset at which the index begins and the last row must end.
        segment: Its ID.

    Raises:
        IntegrityError: The index does not match the ID, or is malformed.
        UnsupportedError: A newer casweights wrote the segment.
    """
    name = segment_name(segment)
    if segment_id(first_bytes, index) != segment:
        raise corrupt(name, "its index does not match its ID")
    check_version(first_bytes[5], name)
    if len(index) < _COUNTS.size:
        raise corrupt(name, "its index is too short")
    rows, packs, bits, generation = _COUNTS.unpack_from(index, len(index) - _COUNTS.size)
    if rows > MAX_ROWS or packs > MAX_PACKS or bits > _MAX_BITS:
        raise corrupt(name, f"it claims {rows} rows, {packs} packs, and a fanout of {bits} bits")
    table = _BUCKET.size << bits
    if len(index) != table + packs * _PACK.size + _COUNTS.size:
        raise corrupt(name, "its counts do not match the size of its index")
    if index_start != PREFIX_SIZE + rows * ROW_SIZE:
        raise corrupt(name, "its rows do not end where its index begins")
    covered = _parse_packs(index[table : -_COUNTS.size], name)
    if sum(pack.rows for pack in covered) != rows:
        raise corrupt(name, "its packs do not have as many rows as it")
    return SegmentIndex(segment, covered, rows, bits, generation, index[:table])


def _parse_packs(table: bytes, name: str) -> tuple[CoveredPack, ...]:
    found = []
    for pack, kind, rows in _PACK.iter_unpack(table):
        if kind >= len(_KINDS):
            raise corrupt(name, f"it covers a pack of the unknown kind {kind}")
        found.append(CoveredPack(_KINDS[kind](pack), rows))
    return tuple(found)


def segment_index_span(last_bytes: bytes, size: int, name: str) -> tuple[int, int]:
    """Return the start and end offset of a segment's index, as `pack.index_span` does for packs."""
    return index_span(last_bytes, size, name, limit=_MAX_INDEX)
