"""Archives: the snapshot objects of many old versions, in one immutable object.

An archive ends with rows that find each of its snapshot objects by the ID of the version. IDs are
evenly distributed, so a reader of a large archive can guess where the row of an ID is.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from casweights.format.envelope import (
    PREFIX_SIZE,
    ObjectKind,
    check_generation,
    check_kind,
    check_version,
    corrupt,
    prefix,
)
from casweights.format.hashing import CHECKSUM_SIZE, blake3_256, checksum
from casweights.format.names import archive_name
from casweights.ids import ArchiveId, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROW_SIZE = 44  # bytes: an ID, an offset, a size
MAX_ROWS_SIZE = 64 << 20  # bytes of the rows: readers allocate no more, for 1.5 million versions
_ID_SIZE = 32
_PLACE = struct.Struct("<QI")
_GENERATION = struct.Struct("<I")
_TRAILER = struct.Struct("<I4s")
_TRAILER_MAGIC = b"cver"
ENDING_SIZE = _GENERATION.size + CHECKSUM_SIZE + _TRAILER.size  # bytes after the rows


class Member(NamedTuple):
    """The place of one version in an archive.

    Attributes:
        snapshot: The version.
        offset: Where its snapshot object begins in the archive.
        size: Bytes of its snapshot object.
    """

    snapshot: SnapshotId
    offset: int
    size: int


class Ending(NamedTuple):
    """The last bytes of an archive, of which nothing is checked but the magic and the sizes.

    Attributes:
        start: Offset of the rows in the archive.
        versions: Number of rows.
        generation: How often these versions have been merged, from 1.
        checksum: The checksum of the prefix, the rows and the generation.
    """

    start: int
    versions: int
    generation: int
    checksum: bytes

    @classmethod
    def parse(cls, last_bytes: bytes, archive_size: int, name: str) -> Ending:
        """Parse the last `ENDING_SIZE` bytes of an archive.

        Raises:
            IntegrityError: They are not the end of an archive.
        """
        if len(last_bytes) != ENDING_SIZE:
            raise corrupt(name, "it is too short for an archive")
        (generation,) = _GENERATION.unpack_from(last_bytes)
        count, magic = _TRAILER.unpack_from(last_bytes, ENDING_SIZE - _TRAILER.size)
        if magic != _TRAILER_MAGIC:
            raise corrupt(name, "it does not end like an archive; it may be truncated")
        start = archive_size - ENDING_SIZE - count * ROW_SIZE
        if not count or start < PREFIX_SIZE or count * ROW_SIZE > MAX_ROWS_SIZE:
            raise corrupt(name, f"it claims {count} versions")
        return cls(start, count, generation, last_bytes[_GENERATION.size : -_TRAILER.size])

    def fits(self, first_bytes: bytes, rows: bytes) -> bool:
        """Whether the checksum is that of these first bytes and rows."""
        return checksum(first_bytes + rows + _GENERATION.pack(self.generation)) == self.checksum

    def check(self, first_bytes: bytes, rows: bytes, name: str) -> None:
        """Check all rows of an archive, and its first `PREFIX_SIZE` bytes.

        Raises:
            IntegrityError: The archive is damaged.
            UnsupportedError: A newer casweights wrote it.
        """
        # The checksum comes first: a damaged version byte must not look like a newer format.
        if not self.fits(first_bytes, rows):
            raise corrupt(name, "its checksum does not match")
        check_kind(ObjectKind.ARCHIVE, first_bytes, name)
        check_version(first_bytes[5], name)
        if not self.generation:
            raise corrupt(name, "its generation is 0")


class Rows:
    """Some consecutive rows of an archive, sorted by ID. They may be forged or damaged.

    Args:
        encoded: The rows.
        end: Offset at which the archive's snapshot objects end.
        name: Name of the archive, for error messages.
    """

    def __init__(self, encoded: bytes, end: int, name: str) -> None:
        self._encoded = encoded
        self._end = end
        self._name = name

    def __len__(self) -> int:
        return len(self._encoded) // ROW_SIZE

    def id(self, row: int) -> bytes:
        """Return the ID in a row."""
        start = range(0, len(self._encoded), ROW_SIZE)[row]
        return self._encoded[start : start + _ID_SIZE]

    def member(self, row: int) -> Member:
        """Return the version of a row.

        Raises:
            IntegrityError: Its place is not in the archive.
        """
        offset, size = _PLACE.unpack_from(self._encoded, row * ROW_SIZE + _ID_SIZE)
        found = Member(SnapshotId(self.id(row)), offset, size)
        if offset < PREFIX_SIZE or not size or offset + size > self._end:
            raise corrupt(self._name, f"it lists {found.snapshot} at bytes {offset} + {size}")
        return found

    def between(self, low: bytes, high: bytes) -> range:
        """Return the rows with IDs from `low` to `high`."""
        numbers = range(len(self))
        return range(
            bisect_left(numbers, low, key=self.id), bisect_right(numbers, high, key=self.id)
        )

    def members(self) -> Iterator[Member]:
        """Yield all versions, ordered by ID.

        Raises:
            IntegrityError: The rows are not in order, or a place is not in the archive.
        """
        before = b""
        for row in range(len(self)):
            member = self.member(row)
            if member.snapshot <= before:
                raise corrupt(self._name, "its versions are not in order")
            before = member.snapshot
            yield member


class SealedArchive(NamedTuple):
    """An archive, ready to be written.

    Attributes:
        id: Its ID.
        parts: Its content.
        members: Its versions, ordered by ID.
    """

    id: ArchiveId
    parts: list[bytes]
    members: list[Member]

    @property
    def name(self) -> str:
        """Its name in the store."""
        return archive_name(self.id)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(map(len, self.parts))


def build_archive(snapshots: Mapping[SnapshotId, bytes], generation: int) -> SealedArchive:
    """Return the archive of some versions.

    Args:
        snapshots: The bare snapshot object of each version, at least one. Readers that follow a
            history fetch neighbours together, so they are best ordered by age.
        generation: How often these versions have been merged, from 1.

    Raises:
        IntegrityError: There is no such generation.
    """
    check_generation(generation)
    first_bytes = prefix(ObjectKind.ARCHIVE)
    offsets = accumulate(map(len, snapshots.values()), initial=PREFIX_SIZE)
    placed = zip(offsets, snapshots.items(), strict=False)
    members = sorted(Member(snapshot, offset, len(data)) for offset, (snapshot, data) in placed)
    rows = b"".join(member.snapshot + _PLACE.pack(*member[1:]) for member in members)
    merged = _GENERATION.pack(generation)
    trailer = _TRAILER.pack(len(members), _TRAILER_MAGIC)
    ending = merged + checksum(first_bytes + rows + merged) + trailer
    parts = [first_bytes, *snapshots.values(), rows, ending]
    return SealedArchive(ArchiveId(blake3_256(b"".join(parts))), parts, members)


class OpenArchive(NamedTuple):
    """A whole archive in memory, whose rows were checked.

    Attributes:
        generation: How often its versions have been merged.
        snapshots: The bare snapshot object of each version, in the order of the archive. They are
            not checked.
    """

    generation: int
    snapshots: dict[SnapshotId, memoryview]


def parse_archive(data: bytes, name: str) -> OpenArchive:
    """Parse a whole archive.

    Raises:
        IntegrityError: The archive is damaged. Its snapshot objects are not looked at.
        UnsupportedError: A newer casweights wrote it.
    """
    ending = Ending.parse(data[-ENDING_SIZE:], len(data), name)
    encoded = data[ending.start : -ENDING_SIZE]
    ending.check(data[:PREFIX_SIZE], encoded, name)
    view, members = memoryview(data), Rows(encoded, ending.start, name).members()
    by_place = sorted(members, key=lambda member: member.offset)
    found = {m.snapshot: view[m.offset : m.offset + m.size] for m in by_place}
    return OpenArchive(ending.generation, found)


def is_intact(data: bytes, archive: ArchiveId) -> bool:
    """Whether an archive of this ID has this content."""
    return blake3_256(data) == archive
