"""Pairing: tensors of two versions whose names, files or order differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from casweights.operations.pairing import Member, pair

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMS = st.sampled_from(["BF16 [8, 8]", "BF16 [8, 2]", "F32 [8]"])
MEMBERS = st.builds(
    Member,
    file=st.sampled_from(["a", "b"]),
    name=st.from_regex(r"(h|layers)\.[0-9]{1,2}\.(q|k|norm)", fullmatch=True),
    form=FORMS,
    content=st.none() | st.integers(0, 3),
)
BLOCK = {"attn.q_proj": "[4, 4]", "attn.k_proj": "[4, 4]", "norm": "[4]", "mlp.up": "[8, 4]"}


def layers(numbers: Sequence[int], prefix: str = "layers") -> list[Member]:
    return [
        Member("model.safetensors", f"{prefix}.{n}.{name}", form)
        for n in numbers
        for name, form in BLOCK.items()
    ]


@given(st.lists(MEMBERS, max_size=12), st.lists(MEMBERS, max_size=12))
def test_pairs_are_one_to_one_and_share_a_form_or_a_content(
    old: list[Member], new: list[Member]
) -> None:
    pairs = pair(old, new)
    assert pairs == sorted(pairs)
    assert len({found.new for found in pairs}) == len({found.old for found in pairs}) == len(pairs)
    for found in pairs:
        one, other = old[found.old], new[found.new]
        same = one.content is not None and one.content == other.content
        assert same or one.form == other.form
        assert found.is_guess is not (same or one.name == other.name)
    left_old = {o.form for n, o in enumerate(old) if n not in {found.old for found in pairs}}
    left_new = {o.form for n, o in enumerate(new) if n not in {found.new for found in pairs}}
    assert not left_old & left_new  # nothing that could be paired is left


@given(st.permutations(range(40)))
def test_layers_in_another_order_and_under_a_prefix_meet_their_own(order: list[int]) -> None:
    old, new = layers(range(40)), layers(order, "base.model.encoder.layers")
    for found in pair(old, new):
        assert new[found.new].name == f"base.model.encoder.{old[found.old].name}"
    assert len(pair(old, new)) == len(old)


def test_content_comes_before_names_that_are_alike() -> None:
    old = [Member("f", "q", "[4]", content=1), Member("f", "k", "[4]", content=2)]
    new = [Member("f", "k.new", "[4]", content=1), Member("f", "q.new", "[4]", content=2)]
    assert [(found.new, found.old, found.is_guess) for found in pair(old, new)] == [
        (0, 0, False),
        (1, 1, False),
    ]


def test_long_lists_without_numbers_in_common_are_paired_in_natural_order() -> None:
    old = [Member("f", f"expert_{n}", "[4]") for n in range(100)]
    new = [Member("f", f"w.{n + 1000}", "[4]") for n in reversed(range(100))]
    found = {new[match.new].name: old[match.old].name for match in pair(old, new)}
    assert found == {f"w.{n + 1000}": f"expert_{n}" for n in range(100)}
    assert pair(old[1:], new) == []  # which one is missing cannot be told
