"""Objects that hold the signatures of one version, or of many: their names and their rows.

The rows of an object come first: for each version a coarse row, for a search, and where its
signature is. So a reader needs one range of an object to know which signatures it wants.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple, overload

from casweights.format import names
from casweights.format.envelope import (
    PREFIX_SIZE,
    ObjectKind,
    check_kind,
    check_version,
    corrupt,
    prefix,
)
from casweights.format.hashing import CHECKSUM_SIZE, blake3_256, checksum
from casweights.ids import SignaturesId, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterable

COARSE_HASHES = 64  # of a coarse row: the smallest exact features, then the smallest rough ones
COARSE_SIZE = 4 * COARSE_HASHES  # bytes
MAX_SIGNATURE = 4 << 20  # bytes of an encoded signature; honest ones rarely have 256 KiB
MAX_VERSIONS = 16_384  # of an object
MAX_OBJECT = 64 << 20  # bytes
_ROW = struct.Struct(f"<32s{COARSE_SIZE}sI8s")  # ID, coarse row, size and checksum of the signature
ROW_SIZE, COARSE_OFFSET = _ROW.size, 32  # in bytes
_PLAIN = struct.Struct(f"<32s{COARSE_SIZE}xI8s")  # the same without the coarse row
_COUNT = struct.Struct("<I")
_NAME = re.compile(
    re.escape(names.SIGNATURES) + r"((?P<count>[1-9][0-9]{0,4})-)?(?P<digest>[0-9a-f]{64})"
)


class Entry(NamedTuple):
    """A version in an object of signatures.

    Attributes:
        snapshot: The version.
        coarse: Its coarse row.
        content: Its signature, encoded.
    """

    snapshot: SnapshotId
    coarse: bytes
    content: bytes


class Row(NamedTuple):
    """The row of a version in an object of signatures.

    Attributes:
        snapshot: The version.
        coarse: Its coarse row.
        offset: Offset of its signature in the object, in bytes.
        size: Bytes of its signature.
        check: The signature's checksum.
    """

    snapshot: SnapshotId
    coarse: bytes
    offset: int
    size: int
    check: bytes


class Rows(Sequence[Row]):
    """The rows of an object of signatures: a search looks at thousands, and parses a few.

    Args:
        packed: Their bytes.
        start: Offset of the first signature in the object, in bytes.

    Attributes:
        packed: Their bytes.
        snapshots: The versions' IDs, as plain bytes.
        sizes: The sizes of their signatures.
        keys: Tell signatures apart: the IDs, and the checksums.
    """

    def __init__(self, packed: bytes, start: int) -> None:
        self.packed = packed
        plain: list[tuple[bytes, int, bytes]] = list(_PLAIN.iter_unpack(packed))
        self.snapshots = [snapshot for snapshot, _, _ in plain]
        self.sizes = [size for _, size, _ in plain]
        self.keys = [snapshot + check for snapshot, _, check in plain]
        self._offsets = list(accumulate(self.sizes, initial=start))

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[n] for n in range(len(self))[number]]
        at = range(len(self))[number]
        snapshot, coarse, size, check = _ROW.unpack_from(self.packed, at * ROW_SIZE)
        return Row(SnapshotId(snapshot), coarse, self._offsets[at], size, check)


NO_ROWS = Rows(b"", 0)


class ObjectName(NamedTuple):
    """What the name of an object of signatures says.

    Attributes:
        versions: Number of versions in it.
        snapshot: The version, if the object is that of a single one; otherwise None.
        digest: The digest of the rows, if it is that of several; otherwise None.
    """

    versions: int
    snapshot: SnapshotId | None
    digest: SignaturesId | None


class EncodedSignatures(NamedTuple):
    """An object of signatures, ready to be stored."""

    name: str
    parts: list[bytes]


def signature_name(snapshot: SnapshotId) -> str:
    """Return the name of the object with the signature of one version."""
    return f"{names.SIGNATURES}{snapshot}"


def parse_signatures_name(name: str) -> ObjectName:
    """Return what the name of an object of signatures says.

    Raises:
        IntegrityError: No such object has this name.
    """
    match = _NAME.fullmatch(name)
    if match is None or int(match["count"] or 1) > MAX_VERSIONS:
        raise corrupt(name, "its name is not that of signatures")
    if match["count"] is None:
        return ObjectName(1, SnapshotId.from_hex(match["digest"]), None)
    return ObjectName(int(match["count"]), None, SignaturesId.from_hex(match["digest"]))


def rows_size(versions: int) -> int:
    """Return the bytes at the beginning of an object that contain its rows."""
    return PREFIX_SIZE + _COUNT.size + versions * _ROW.size + CHECKSUM_SIZE


def encode_one(entry: Entry) -> EncodedSignatures:
    """Return the object with the signature of one version."""
    return EncodedSignatures(signature_name(entry.snapshot), [_rows([entry]), entry.content])


def encode_many(entries: Iterable[Entry]) -> EncodedSignatures:
    """Return the object with the signatures of several versions, of at most `MAX_VERSIONS`.

    The same entries make the same object. Of several for one version, the last one counts.
    """
    by_id = {entry.snapshot: entry for entry in entries}
    ordered = [by_id[snapshot] for snapshot in sorted(by_id)]
    rows = _rows(ordered)
    name = f"{names.SIGNATURES}{len(ordered)}-{SignaturesId(blake3_256(rows))}"
    return EncodedSignatures(name, [rows, *(entry.content for entry in ordered)])


def _rows(entries: Sequence[Entry]) -> bytes:
    packed = (
        _ROW.pack(
            entry.snapshot,
            entry.coarse,
            len(entry.content),
            checksum(entry.content),
        )
        for entry in entries
    )
    body = prefix(ObjectKind.SIGNATURES) + _COUNT.pack(len(entries)) + b"".join(packed)
    return body + checksum(body)


def decode_rows(data: bytes, name: str) -> Rows:
    """Parse the rows of an object of signatures.

    Args:
        data: The beginning of the object: as many bytes as `rows_size` says for its name.
        name: Its name in the store.

    Raises:
        IntegrityError: The rows are damaged, or they and the name disagree.
        UnsupportedError: A newer casweights wrote it.
    """
    said = parse_signatures_name(name)
    if (
        len(data) != rows_size(said.versions)
        or checksum(data[:-CHECKSUM_SIZE]) != data[-CHECKSUM_SIZE:]
    ):
        raise corrupt(name, "the checksum of its rows does not match")
    check_kind(ObjectKind.SIGNATURES, data, name)
    check_version(data[5], name)
    start = PREFIX_SIZE + _COUNT.size
    rows = Rows(data[start:-CHECKSUM_SIZE], len(data))
    for size in rows.sizes:
        if not 0 < size <= MAX_SIGNATURE:
            raise corrupt(name, f"it has a signature of {size} bytes")
    if data[PREFIX_SIZE:start] != _COUNT.pack(len(rows)):
        raise corrupt(name, "it has another number of rows than it says")
    if any(a >= b for a, b in pairwise(rows.snapshots)):
        raise corrupt(name, "its versions are not in order")
    if said.snapshot not in (None, rows.snapshots[0]):
        raise corrupt(name, "it is about another version")
    if said.digest not in (None, blake3_256(data)):
        raise corrupt(name, "it has another ID")
    return rows


def check_content(data: bytes, row: Row, name: str) -> bytes:
    """Return the bytes of a signature in an object if they are those of its row.

    Raises:
        IntegrityError: They are damaged.
    """
    if len(data) != row.size or checksum(data) != row.check:
        raise corrupt(name, f"the signature of {row.snapshot} does not match its checksum")
    return data
