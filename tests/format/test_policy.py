"""The names and bytes of policies."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import hypothesis
import msgpack
import pytest
from hypothesis import strategies as st

from casweights import InvalidInputError, Keep
from casweights.config import KEEP_COUNTS
from casweights.errors import CasweightsError, IntegrityError
from casweights.format.envelope import ObjectKind, seal
from casweights.format.policy import (
    MAX_POLICY,
    MAX_TEXT,
    decode_policy,
    encode_policy,
    parse_policy_name,
    policy_name,
)

NAME = "policies/000000000001-00112233445566aa"
POLICY = (
    Keep(branches="run-*", last=100, every=50, where="eval >= 0.7"),
    Keep(within=timedelta(days=7), daily=30),
)
FIELDS: dict[str, Any] = {
    "time": 5,
    "keep": [
        {"branches": "run-*", "last": 100, "every": 50, "where": "eval >= 0.7"},
        {"branches": "*", "daily": 30, "within": 604_800_000_000},
    ],
}

counts = st.none() | st.integers(1, (1 << 63) - 1)
keeps = st.builds(
    Keep,
    branches=st.text(st.characters(codec="utf-8"), max_size=9),
    within=st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=3_652_059)),
    where=st.text(st.characters(codec="utf-8"), max_size=9),
    **dict.fromkeys(KEEP_COUNTS, counts),
)


def test_encode_writes_the_specified_bytes() -> None:
    data = encode_policy(POLICY, 5)
    assert data == seal(ObjectKind.POLICY, msgpack.packb(FIELDS))
    assert data[:8] == b"caswk\2\0\0"
    assert decode_policy(data, NAME) == POLICY


@hypothesis.given(st.lists(keeps, max_size=5).map(tuple))
def test_any_policy_comes_back(policy: tuple[Keep, ...]) -> None:
    assert decode_policy(encode_policy(policy, 0), NAME) == policy


def test_names_begin_with_the_position() -> None:
    assert policy_name(1, "00112233445566aa") == NAME
    assert parse_policy_name(NAME) == 1
    unnumbered = policy_name(0, "00112233445566aa")
    for bad in (unnumbered, "policies/1-00112233445566aa", NAME.upper(), NAME + "0", "policies/"):
        with pytest.raises(IntegrityError, match="not that of a policy"):
            parse_policy_name(bad)


@hypothesis.given(st.binary(max_size=200))
def test_malformed_policies_are_refused(data: bytes) -> None:
    for content in (data, seal(ObjectKind.POLICY, data), seal(ObjectKind.REF, data)):
        with pytest.raises(CasweightsError):
            decode_policy(content, NAME)


@pytest.mark.parametrize(
    "change",
    [
        {"last": 0},
        {"last": True},
        {"last": "3"},
        {"every": 1 << 63},
        {"within": 0},
        {"within": 1 << 62},
        {"branches": "x" * (MAX_TEXT + 1)},
        {"where": None},
        {"new_rule": 3},
    ],
)
def test_policies_with_invalid_or_unknown_rules_are_refused(change: dict[str, Any]) -> None:
    """An unknown rule would keep versions, so a reader may not pass over it."""
    first, second = FIELDS["keep"]
    decode_policy(seal(ObjectKind.POLICY, msgpack.packb(FIELDS)), NAME)
    data = seal(ObjectKind.POLICY, msgpack.packb(FIELDS | {"keep": [first | change, second]}))
    with pytest.raises(IntegrityError, match="policies/"):
        decode_policy(data, NAME)


def test_too_large_policies_are_refused_by_writers_and_readers() -> None:
    with pytest.raises(InvalidInputError, match="64 entries"):
        encode_policy([Keep(last=1)] * 65, 0)
    with pytest.raises(InvalidInputError, match="1000 characters"):
        encode_policy([Keep(where="x" * (MAX_TEXT + 1))], 0)
    with pytest.raises(IntegrityError, match="more than"):
        decode_policy(bytes(MAX_POLICY + 1), NAME)


@pytest.mark.parametrize(
    "rules", [{}, {"last": 0}, {"last": 1.5}, {"every": True}, {"within": timedelta(0)}]
)
def test_a_policy_that_keeps_nothing_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"must|whole number"):
        Keep(**rules)
