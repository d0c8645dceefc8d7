"""The names and bytes of findings."""

from __future__ import annotations

import hypothesis
import msgpack
import pytest
from hypothesis import strategies as st

from casweights.errors import CasweightsError, IntegrityError
from casweights.format.envelope import ObjectKind, seal
from casweights.format.finding import (
    MAX_FINDING,
    Finding,
    decode_finding,
    encode_finding,
    finding_name,
    parse_finding_name,
)
from casweights.ids import PackId, Suspect

PACK = PackId(bytes(range(32)))
FINDING = Finding(suspect=Suspect(PACK, 1000), why="bits have aged", time=1_700_000_000_000_000)
NAME = f"damaged/{PACK}-1000"

suspects = st.builds(
    Suspect,
    st.binary(min_size=32, max_size=32).map(PackId),
    st.none() | st.integers(0, (1 << 62) - 1),
)


def test_encode_writes_the_specified_bytes() -> None:
    expected = (
        "6361737764020000"  # casw, d, version 2
        "84a47061636bc420" + bytes(range(32)).hex() + "a66f6666736574cd03e8"
        "a3776879ae6269747320686176652061676564a474696d65cf00060a24181e4000"
    )
    data = encode_finding(FINDING)
    assert data[:-8].hex() == expected
    assert finding_name(FINDING.suspect) == NAME
    assert decode_finding(data, NAME) == FINDING


@hypothesis.given(suspect=suspects, why=st.text(), time=st.integers(-(1 << 63), (1 << 63) - 1))
def test_any_finding_comes_back(suspect: Suspect, why: str, time: int) -> None:
    finding = Finding(suspect=suspect, why=why.encode(errors="replace").decode(), time=time)
    data, name = encode_finding(finding), finding_name(suspect)
    assert len(data) <= MAX_FINDING
    found = decode_finding(data, name)
    assert (found.suspect, found.time) == (suspect, time)
    assert finding.why.startswith(found.why)
    assert parse_finding_name(name) == suspect


@hypothesis.given(data=st.binary(max_size=200))
def test_malformed_findings_are_refused(data: bytes) -> None:
    for damaged in (data, seal(ObjectKind.FINDING, data), seal(ObjectKind.REF, data)):
        with pytest.raises(CasweightsError):
            decode_finding(damaged, NAME)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pack", b"short"),
        ("pack", bytes(32)),
        ("pack", "text"),
        ("offset", 1001),
        ("offset", None),
        ("offset", True),
        ("why", b"bytes"),
        ("why", "x" * 501),
        ("time", "now"),
        ("time", 1 << 63),
    ],
)
def test_findings_with_invalid_fields_are_refused(field: str, value: object) -> None:
    fields = {"pack": PACK, "offset": 1000, "why": "", "time": 0}
    decode_finding(seal(ObjectKind.FINDING, msgpack.packb(fields)), NAME)
    with pytest.raises(IntegrityError, match="damaged/"):
        decode_finding(seal(ObjectKind.FINDING, msgpack.packb(fields | {field: value})), NAME)
    del fields[field]
    with pytest.raises(IntegrityError, match="damaged/"):
        decode_finding(seal(ObjectKind.FINDING, msgpack.packb(fields)), NAME)
