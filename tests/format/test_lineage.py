"""The lineage in a snapshot object: what comes back, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.config import KiB, StoreConfig
from casweights.errors import IntegrityError
from casweights.format.file_entry import FileEntry
from casweights.format.lineage import MAX_ORIGINS, Origin, in_order
from casweights.format.manifest import EncodedSnapshot, Manifest
from casweights.format.pack import TRAILER_SIZE
from casweights.format.pack_table import PackTable
from casweights.format.snapshot import StoredSnapshot, decode_snapshot, encode_snapshot, end_span
from casweights.ids import ChunkId, PackId, SnapshotId
from tests.structure import no_structure, snapshot_object

if TYPE_CHECKING:
    from collections.abc import Sequence

NBYTES = 1000  # of the version
MANIFEST = Manifest(
    number=1,
    parents=(),
    time=datetime(2026, 8, 1, tzinfo=UTC),
    author="",
    message="",
    metadata={},
    config=StoreConfig(chunk_size=64 * KiB),
    files=(FileEntry("a", NBYTES, None, None, (ChunkId(b"c" * 32),)),),
)
SNAPSHOT, ENCODED = EncodedSnapshot.of(MANIFEST)
TABLE = PackTable([PackId(b"p" * 32)], {ChunkId(b"c" * 32): PackId(b"p" * 32)})


def stored(lineage: Sequence[Origin]) -> StoredSnapshot:
    return StoredSnapshot(SNAPSHOT, ENCODED, TABLE, (), lineage)


def decode(data: bytes) -> StoredSnapshot:
    return decode_snapshot(data, SNAPSHOT.id, "snapshots/it", no_structure)


def encode(lineage: Sequence[Origin]) -> bytes:
    return b"".join(encode_snapshot(stored(lineage)))


def forged(value: Any) -> bytes:
    """Return the object with any value as its lineage."""
    data = encode(())
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), "it")
    return snapshot_object(msgpack.packb(msgpack.unpackb(data[start:stop]) | {"lineage": value}))


def ids(number: int) -> bytes:
    return bytes([number]) * 32


lineages = st.dictionaries(
    st.binary(min_size=32, max_size=32).map(SnapshotId),
    st.integers(1, NBYTES // MAX_ORIGINS),
    max_size=MAX_ORIGINS,
).map(lambda shares: in_order([Origin(*share) for share in shares.items()]))


@given(lineages)
def test_a_lineage_comes_back(lineage: tuple[Origin, ...]) -> None:
    again = decode(encode(lineage))
    assert again.lineage == lineage
    assert again.snapshot == SNAPSHOT
    for copy in (again.archived({}), again.bare(TABLE), again.with_table(TABLE)):
        assert decode(b"".join(encode_snapshot(copy))).lineage == lineage


def test_a_version_without_a_lineage_has_no_key_for_it() -> None:
    assert b"lineage" not in encode(())


def test_only_the_largest_origins_are_kept() -> None:
    origins = [Origin(SnapshotId(ids(n)), 1 + n % 5) for n in range(10)]
    kept = in_order(origins)
    assert [one.nbytes for one in kept] == [5, 5, 4, 4, 3, 3, 2, 2]
    assert kept[0].snapshot < kept[1].snapshot
    assert decode(encode(kept)).lineage == kept


@pytest.mark.parametrize(
    "value",
    [
        *(None, 7, "text", b"bytes", {}, [], [[]], [ids(1)], [[ids(1)]], [[ids(1), 1, 1]]),
        [[ids(1)[1:], 1]],
        [[ids(1), "1"]],
        [[ids(1), True]],
        [[ids(1), 1.0]],
        [[ids(1), 0]],
        [[ids(1), -1]],
        [[ids(1), 2**64 - 1]],
        [[ids(1), NBYTES + 1]],
        [[ids(1), NBYTES], [ids(2), 1]],
        [[ids(1), 1], [ids(2), 2]],
        [[ids(2), 1], [ids(1), 1]],
        [[ids(1), 1], [ids(1), 1]],
        [[ids(1), 2], [ids(1), 1]],
        [[SNAPSHOT.id, 1]],
        [[ids(n), 1] for n in range(MAX_ORIGINS + 1)],
    ],
    ids=lambda value: f"{value!s:.40}",
)
def test_a_malformed_lineage_is_refused(value: Any) -> None:
    with pytest.raises(IntegrityError, match="snapshots/it"):
        decode(forged(value))


rows = st.lists(st.binary(max_size=33) | st.integers(-5, 2**63) | st.booleans(), max_size=3)


@given(st.lists(rows | st.tuples(st.binary(min_size=32, max_size=32), st.integers(-1, NBYTES))))
def test_any_lineage_is_refused_or_holds_the_rules(value: list[Any]) -> None:
    try:
        lineage = decode(forged(value)).lineage
    except IntegrityError:
        return
    assert 1 <= len(lineage) <= MAX_ORIGINS
    assert [[one.snapshot, one.nbytes] for one in lineage] == [list(row) for row in value]
    assert lineage == in_order(lineage)
    assert len({one.snapshot for one in lineage}) == len(lineage)
    assert sum(one.nbytes for one in lineage) <= NBYTES


def test_the_id_does_not_depend_on_the_lineage() -> None:
    one, other = encode(()), encode([Origin(SnapshotId(ids(1)), 1)])
    assert one != other
    assert decode(one).snapshot.id == decode(other).snapshot.id
