"""Outlines: reusing one for a state dict gives the same file as building a new one."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from casweights.content.states import StateFile
from casweights.errors import ErrorCode, InvalidInputError
from casweights.testing.strategies import TEXT
from tests.lengths import examples

# Some values are equal in Python but not in a file, and some look like a part of a tree.
VALUES = st.one_of(
    st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True, None, "", "null", '["value",null]', "\n"]),
    st.integers(),
    st.floats(),
    TEXT,
)
KEYS = st.sampled_from(["a", "value", '["value",null]', '\\"', 0, 1])


@st.composite
def shapes(draw: st.DrawFn) -> Any:
    """State dicts with None in the places of values."""
    leaves = st.sampled_from([None, None, *(torch.ones(n) for n in range(3))])
    return draw(
        st.dictionaries(
            KEYS,
            st.recursive(
                leaves,
                lambda inner: (
                    st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
                ),
                max_leaves=6,
            ),
            max_size=4,
        )
    )


def filled(node: Any, data: st.DataObject) -> Any:
    """Replace each None with a random value."""
    if isinstance(node, dict):
        return {key: filled(value, data) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, data) for value in node]
    return data.draw(VALUES) if node is None else node


@hypothesis.settings(max_examples=examples(100))
@hypothesis.given(shape=shapes(), data=st.data())
def test_a_reused_outline_with_other_values_gives_the_same_file_as_a_new_one(
    shape: Any, data: st.DataObject
) -> None:
    first = StateFile(filled(shape, data))
    state = filled(shape, data)
    again, fresh = StateFile(state, outline=first.outline), StateFile(state)
    assert again.raw_header == fresh.raw_header
    assert again.header == fresh.header
    assert (again.size, again.layout) == (fresh.size, fresh.layout)
    assert again.tensors.keys() == fresh.tensors.keys()
    assert all(tensor is fresh.tensors[name] for name, tensor in again.tensors.items())
    assert again.outline.header is not None
    assert again.outline.header.tensors is first.outline.header.tensors  # nothing is parsed again


@pytest.mark.parametrize("value", ["\ud800", 10**5000], ids=["surrogate", "digits"])
def test_invalid_values_are_refused_with_a_reused_outline(value: Any) -> None:
    outline = StateFile({"a": torch.ones(1), "b": 1}).outline
    with pytest.raises(InvalidInputError) as caught:
        StateFile({"a": torch.ones(1), "b": value}, outline=outline)
    assert caught.value.code == ErrorCode.BAD_STATE


def test_an_outline_is_not_reused_if_ties_differ() -> None:
    base = torch.arange(6.0)
    states: list[dict[str, torch.Tensor]] = [
        {"a": base, "b": base},
        {"a": base, "b": base[:3]},
        {"a": base[:3], "b": base[:3], "c": base.view(2, 3)},
        {"a": base[:0], "b": base[:0], "c": torch.empty(0)},
    ]
    for state in states:
        outline = StateFile(state).outline
        for other in states:
            assert StateFile(other, outline=outline).raw_header == StateFile(other).raw_header
