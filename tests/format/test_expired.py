"""The names and bytes of records of expired versions."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis
import msgpack
import pytest
from hypothesis import strategies as st

from casweights.errors import CasweightsError, IntegrityError
from casweights.format import expired
from casweights.format.envelope import ObjectKind, seal
from casweights.format.expired import (
    MAX_POLICY_TEXT,
    MAX_RECORD,
    decode_record,
    encode_records,
    parse_record_name,
)
from casweights.format.hashing import blake3_256
from casweights.ids import SnapshotId
from casweights.results import ExpiredVersion

WHEN = datetime(2026, 11, 29, tzinfo=UTC)
A, B, C = (SnapshotId(bytes([n]) * 32) for n in (1, 2, 3))
ROWS = [
    ExpiredVersion(id=B, number=2, parents=(A,), time=WHEN, policy="last 1"),
    ExpiredVersion(id=C, number=3, parents=(B, A), time=WHEN, policy="last 1"),
    ExpiredVersion(id=A, number=1, parents=(), time=WHEN, policy="every 5"),
]
FIELDS: dict[str, Any] = {
    "id": A + B + C,
    "number": [1, 2, 3],
    "parents": A + B + A,
    "parent_count": b"\0\1\2",
    "run": [0, 1, 1],
    "runs": [[1_795_910_400_000_000, "every 5"], [1_795_910_400_000_000, "last 1"]],
}

ids = st.binary(min_size=32, max_size=32).map(SnapshotId)
rows = st.builds(
    ExpiredVersion,
    id=ids,
    number=st.integers(1, (1 << 63) - 1),
    parents=st.lists(ids, max_size=16).map(tuple),
    time=st.datetimes(timezones=st.just(UTC)),
    policy=st.text(st.characters(codec="utf-8"), max_size=9),
)


def record(fields: dict[str, Any]) -> tuple[str, bytes]:
    """Return the name and content of a record, honest or not."""
    data = seal(ObjectKind.EXPIRED, msgpack.packb(fields))
    return f"expired/{blake3_256(data).hex()}", data


def test_encode_writes_the_specified_bytes() -> None:
    [encoded] = encode_records(ROWS)
    assert (encoded.name, encoded.data) == record(FIELDS)
    assert encoded.data[:8] == b"caswe\2\0\0"
    assert encoded.rows == 3


@hypothesis.given(st.lists(rows, min_size=1, max_size=20, unique_by=lambda row: row.id))
def test_any_rows_come_back(wanted: list[ExpiredVersion]) -> None:
    [encoded] = encode_records(wanted)
    found = decode_record(encoded.data, encoded.name)
    assert list(found) == sorted(wanted, key=lambda row: row.id)
    assert all(found.find(row.id) == row for row in wanted)
    assert found.find(SnapshotId(hashlib.sha256(encoded.data).digest())) is None
    [again] = encode_records(reversed(wanted))
    assert again == encoded


def test_of_two_rows_for_a_version_the_earliest_counts() -> None:
    early = ExpiredVersion(
        id=A, number=1, parents=(), time=WHEN - timedelta(days=1), policy="last 9"
    )
    for order in ([*ROWS, early], [early, *ROWS]):
        [encoded] = encode_records(order)
        assert decode_record(encoded.data, encoded.name).find(A) == early


def test_many_rows_become_several_records(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        ExpiredVersion(
            id=SnapshotId(n.to_bytes(32)), number=n + 1, parents=(), time=WHEN, policy=f"last {n}"
        )
        for n in range(100)
    ]
    for limit, value in (("MAX_RECORD_ROWS", 30), ("MAX_RECORD", 3000), ("_MAX_RUNS", 30)):
        with monkeypatch.context() as patch:
            patch.setattr(expired, limit, value)
            encoded = list(encode_records(wanted))
            assert len(encoded) > 3
            found = [row for part in encoded for row in decode_record(part.data, part.name)]
        assert found == wanted


def test_a_record_of_the_longest_rows_is_small_enough() -> None:
    parents = tuple(SnapshotId(bytes([n]) * 32) for n in range(16))
    text = "\N{GRINNING FACE}" * MAX_POLICY_TEXT
    wanted = (
        ExpiredVersion(
            id=SnapshotId(n.to_bytes(32)),
            number=(1 << 63) - 1,
            parents=parents,
            time=WHEN + timedelta(microseconds=n),
            policy=text,
        )
        for n in range(5000)
    )
    encoded = list(encode_records(wanted))
    assert len(encoded) > 1
    assert max(len(part.data) for part in encoded) <= MAX_RECORD
    assert sum(len(decode_record(part.data, part.name)) for part in encoded) == 5000


@hypothesis.given(st.binary(max_size=200))
def test_malformed_records_are_refused(data: bytes) -> None:
    for content in (data, seal(ObjectKind.EXPIRED, data), seal(ObjectKind.REF, data)):
        with pytest.raises(CasweightsError):
            decode_record(content, f"expired/{blake3_256(content).hex()}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", A + B),
        ("id", A + C + B),
        ("id", A + B + B),
        ("id", b""),
        ("number", [1, 2]),
        ("number", [1, 2, 0]),
        ("number", [1, 2, 1 << 63]),
        ("number", [1, 2, True]),
        ("parents", A + B),
        ("parents", A + B + A + b"x"),
        ("parent_count", b"\0\1"),
        ("parent_count", b"\0\1\x11"),
        ("run", [0, 1, 2]),
        ("run", [0, 1, -1]),
        ("run", [0, 1]),
        ("runs", []),
        ("runs", [[0, "a"], [0]]),
        ("runs", [[0, "a"], [0, b"a"]]),
        ("runs", [[0, "a"], [1 << 62, "a"]]),
        ("runs", [[0, "a"], [0, "a" * (MAX_POLICY_TEXT + 1)]]),
    ],
)
def test_records_with_invalid_fields_are_refused(field: str, value: object) -> None:
    name, data = record(FIELDS)
    decode_record(data, name)
    name, data = record(FIELDS | {field: value})
    with pytest.raises(IntegrityError, match="expired/"):
        decode_record(data, name)
    name, data = record({key: value for key, value in FIELDS.items() if key != field})
    with pytest.raises(IntegrityError, match="expired/"):
        decode_record(data, name)


def test_a_record_with_another_name_is_refused() -> None:
    name, data = record(FIELDS)
    with pytest.raises(IntegrityError, match="another ID"):
        decode_record(data, f"expired/{'0' * 64}")
    for bad in (name.upper(), name + "0", "expired/", "expired/x"):
        with pytest.raises(IntegrityError, match="not that of a record"):
            parse_record_name(bad)


def test_a_huge_record_is_refused_before_it_is_parsed() -> None:
    data = bytes(MAX_RECORD + 1)
    with pytest.raises(IntegrityError, match="more than"):
        decode_record(data, f"expired/{blake3_256(data).hex()}")
