"""Conditions on metadata: a small grammar that is never executed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from casweights.errors import InvalidInputError
from casweights.operations.conditions import MAX_CONDITION, parse_condition

VALUES: dict[str, Any] = {
    "eval": 0.8,
    "step": 500,
    "name": "sft",
    "best": True,
    "draft": False,
    "nothing": None,
    "zero": 0,
    "a.b": 1,
    "nested": {"loss": 2, "deep": {"x": "y"}},
    "eval/acc": 0.5,
    "list": [1],
}


@pytest.mark.parametrize(
    "text",
    [
        "eval >= 0.7",
        "eval >= 8e-1",
        "step == 500",
        "step == 500.0",
        "step != 501",
        "-1 < zero",
        "name == 'sft'",
        'name == "sft"',
        "'sft' == name",
        "name < 'z'",
        "best",
        "best == true",
        "draft == false",
        "nothing == null",
        "zero",
        "not draft",
        "not nothing",
        "not missing",
        "not missing == 1",
        "not missing != 1",
        "name != 3",
        "best != 1",
        "nested.loss == 2",
        "nested.deep.x == 'y'",
        "a.b == 1",
        "eval/acc <= 0.5",
        "eval >= 0.7 and step > 100 and not draft",
        "draft or best",
        "draft and draft or best",
        "best or draft and draft",
        "(best or draft) and not (draft)",
        "not not best",
        " ( eval>0.7 ) ",
        "list == list",
    ],
)
def test_conditions_that_are_met(text: str) -> None:
    assert parse_condition(text)(VALUES)
    assert not parse_condition(f"not ({text})")(VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "eval >= 0.9",
        "missing",
        "missing >= 0",
        "missing == missing",
        "missing != 1",
        "nothing",
        "draft",
        "name > 3",
        "name == 3",
        "best == 1",
        "zero == false",
        "best > false",
        "list < list",
        "nested > 1",
        "nested.loss.more == 2",
        "name.upper == 'SFT'",
        "(best or draft) and draft",
        "not best or draft",
    ],
)
def test_conditions_that_are_not_met(text: str) -> None:
    assert not parse_condition(text)(VALUES)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a name, a number or a string is expected, at its end"),
        ("eval >=", "at its end"),
        ("eval > 1 > 2", "'and', 'or' or the end is expected, at '> 2'"),
        ("(eval", r"'\)' is expected, at its end"),
        ("eval)", "at '\\)'"),
        ("eval = 1", "this is no name, number, string or comparison, at ' = 1'"),
        ("__import__('os')", "the end is expected"),
        ("eval and", "at its end"),
        ("and eval", "at 'and eval'"),
        ("not", "at its end"),
        ("'open", "this is no name"),
        ("1.", "this is no name"),
        ("1x", "this is no name"),
        ("eval ** 2", "this is no name"),
        ("x" * (MAX_CONDITION + 1), "more than 1000 characters"),
        ("(" * 100 + "x" + ")" * 100, "nested more than 64 deep"),
        ("not " * 100 + "x", "nested more than 64 deep"),
    ],
)
def test_other_texts_are_refused_with_the_place(text: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        parse_condition(text)
    assert "is not a condition" in str(caught.value)


tokens = st.sampled_from(
    ["eval", "(", ")", "and", "or", "not", "==", "<", "1", "0.5", "'a'", "null", "true", " ", "x.y"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
)


@hypothesis.given(
    st.lists(tokens, max_size=12).map(" ".join) | st.text(max_size=30),
    st.dictionaries(st.sampled_from(["eval", "x"]), values),
)
def test_any_text_is_a_condition_or_refused(text: str, metadata: dict[str, Any]) -> None:
    with suppress(InvalidInputError):
        assert parse_condition(text)(metadata) in (True, False)
