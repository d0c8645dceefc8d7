"""Archives find each of their versions, and show damage to any byte."""

from __future__ import annotations

import hashlib

import pytest

from casweights.errors import IntegrityError, UnsupportedError
from casweights.format.archive import (
    ENDING_SIZE,
    ROW_SIZE,
    Ending,
    Rows,
    build_archive,
    is_intact,
    parse_archive,
)
from casweights.format.hashing import checksum
from casweights.ids import SnapshotId

NAME = "versions/x"


def ids(count: int) -> list[SnapshotId]:
    return [SnapshotId(hashlib.sha256(str(n).encode()).digest()) for n in range(count)]


def snapshots(count: int) -> dict[SnapshotId, bytes]:
    return {snapshot: b"%d" % n * (n + 1) for n, snapshot in enumerate(ids(count))}


def encoded(count: int, generation: int = 1) -> bytes:
    return b"".join(build_archive(snapshots(count), generation).parts)


@pytest.mark.parametrize("count", [1, 2, 100])
def test_an_archive_gives_back_what_was_put_in(count: int) -> None:
    sealed = build_archive(snapshots(count), 7)
    data = b"".join(sealed.parts)
    opened = parse_archive(data, NAME)
    assert opened.generation == 7
    found = [(snapshot, bytes(content)) for snapshot, content in opened.snapshots.items()]
    assert found == list(snapshots(count).items())  # in this order
    assert (sealed.size, is_intact(data, sealed.id)) == (len(data), True)
    for snapshot, offset, size in sealed.members:
        assert data[offset : offset + size] == snapshots(count)[snapshot]


def test_the_rows_alone_find_a_version() -> None:
    data = encoded(100)
    ending = Ending.parse(data[-ENDING_SIZE:], len(data), NAME)
    rows = Rows(data[ending.start : -ENDING_SIZE], ending.start, NAME)
    assert (len(rows), ending.versions) == (100, 100)
    for snapshot in ids(100):
        [row] = rows.between(snapshot, snapshot)
        assert rows.member(row).snapshot == snapshot
    assert not rows.between(bytes(32), bytes(32))
    prefix = ids(1)[0][:1]
    found = {
        rows.member(n).snapshot for n in rows.between(prefix + bytes(31), prefix + b"\xff" * 31)
    }
    assert found == {snapshot for snapshot in ids(100) if snapshot.startswith(prefix)}


def test_every_flipped_bit_is_noticed() -> None:
    sealed = build_archive(snapshots(3), 1)
    data = b"".join(sealed.parts)
    end_of_snapshots = Ending.parse(data[-ENDING_SIZE:], len(data), NAME).start
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not is_intact(bytes(flipped), sealed.id)
        if 8 <= bit // 8 < end_of_snapshots:
            continue  # a snapshot object, which has a checksum of its own
        with pytest.raises(IntegrityError, match="versions/x"):
            parse_archive(bytes(flipped), NAME)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 19, 20, 27, 60])
def test_a_truncated_archive_is_refused(length: int) -> None:
    with pytest.raises(IntegrityError):
        parse_archive(encoded(3)[:length], NAME)


def forged(rows: bytes, version: int = 2, count: int | None = None, generation: int = 1) -> bytes:
    """Return an archive of ten bytes of snapshots with these rows and a correct checksum."""
    first, merged = b"casw" + b"v" + bytes((version, 0, 0)), generation.to_bytes(4, "little")
    number = len(rows) // ROW_SIZE if count is None else count
    ending = merged + checksum(first + rows + merged) + number.to_bytes(4, "little")
    return first + bytes(10) + rows + ending + b"cver"


def row(snapshot: bytes, offset: int, size: int) -> bytes:
    return snapshot + offset.to_bytes(8, "little") + size.to_bytes(4, "little")


A, B = b"a" * 32, b"b" * 32


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (row(B, 8, 5) + row(A, 13, 5), "not in order"),
        (row(A, 8, 5) + row(A, 13, 5), "not in order"),
        (row(A, 7, 5), "at bytes 7"),
        (row(A, 8, 11), "at bytes 8"),
        (row(A, 8, 0), "at bytes 8"),
        (row(A, 2**64 - 1, 2**32 - 1), "at bytes"),
        (b"", "claims 0"),
    ],
)
def test_forged_rows_are_refused(rows: bytes, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        parse_archive(forged(rows), NAME)


def test_a_number_of_rows_that_does_not_fit_is_refused() -> None:
    with pytest.raises(IntegrityError, match="claims 4294967295"):
        parse_archive(forged(row(A, 8, 5), count=2**32 - 1), NAME)


def test_generations_begin_at_1() -> None:
    assert parse_archive(forged(row(A, 8, 5)), NAME).generation == 1
    with pytest.raises(IntegrityError, match="its generation is 0"):
        parse_archive(forged(row(A, 8, 5), generation=0), NAME)


def test_nothing_follows_the_last_generation() -> None:
    assert parse_archive(encoded(1, 2**32 - 1), NAME).generation == 2**32 - 1
    with pytest.raises(IntegrityError, match="forged"):
        encoded(1, 2**32)


def test_an_archive_of_a_newer_format_is_named_as_such() -> None:
    with pytest.raises(UnsupportedError, match="upgrade"):
        parse_archive(forged(row(A, 8, 5), version=3), NAME)
