"""Owners: which relative each tensor comes from, where samples of several look alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from casweights.format.dtypes import DTYPES
from casweights.format.layout import Piece
from casweights.format.safetensors import TensorInfo
from casweights.operations.owners import chosen, owners_of

BF16 = DTYPES["BF16"]
SIZE = 1000  # bytes of a tensor
SHARING = 4  # tensors that share a chunk


class Relative:
    """A version of whose differences samples promise some bytes, and of which others are true."""

    def __init__(self, promised: list[float], true: int | list[int]) -> None:
        self.costs = np.array(promised)
        self.alike = [True] * len(promised)
        self.true = true
        self.tried: list[int] = []

    def size(self, db: object, new: object, number: int, piece: Piece, trial: object) -> int:
        self.tried.append(number)
        return self.true if isinstance(self.true, int) else self.true[number // SHARING]


def owners(*worth: Any) -> list[Any]:
    """Return the version of each tensor; four each share a chunk."""
    count = len(worth[0].costs)
    tensors = [TensorInfo(f"t{n}", BF16, (SIZE // 2,), n * SIZE, SIZE) for n in range(count)]
    new: Any = SimpleNamespace(
        tensors=[SimpleNamespace(path="f") for _ in tensors],
        signature=SimpleNamespace(grids=[SimpleNamespace(nbytes=SIZE) for _ in tensors]),
    )
    numbers = {("f", tensor.name): n for n, tensor in enumerate(tensors)}
    pieces = {
        n: Piece(n * SIZE, SHARING * SIZE, BF16, tensors=tuple(tensors[n : n + SHARING]))
        for n in range(0, count, SHARING)
    }
    trial: Any = SimpleNamespace(pieces=pieces, numbers=numbers)
    nothing: Any = None
    return chosen(nothing, new, trial, owners_of(worth, np.full(count, 700.0)))


@pytest.mark.parametrize("other", [[0.0, 600, 600, 600], [600.0, 0, 0, 0]])
def test_what_is_near_one_version_is_not_made_from_several(other: list[float]) -> None:
    """Of some tensors no sample differs from the other version, by chance."""
    step, cousin = Relative([5.0, 5, 5, 5], true=20), Relative(other, true=600)
    assert owners(step, cousin) == [step] * 4


def test_what_is_near_no_version_comes_from_several() -> None:
    one, other = Relative([5.0, 5, 600, 600], true=1200), Relative([600.0, 600, 5, 5], true=1200)
    assert owners(one, other) == [one, one, other, other]


def test_all_of_a_chunk_comes_from_another_version_only_if_that_is_nearer() -> None:
    one = Relative([50.0, 50, 50, 50], true=30)
    for true, owner in ((20, "other"), (30, "one"), (40, "one")):
        other = Relative([5.0, 5, 5, 5], true=true)
        expected = other if owner == "other" else one
        assert owners(one, other) == [expected] * 4
        assert (one.tried.pop(), other.tried.pop()) == (0, 0)


def test_chunks_that_are_not_made_from_several_versions_say_nothing_of_others() -> None:
    """A model is stitched of two; by chance, one tensor of each of many chunks looks nearer."""
    one = Relative([5.0] * 5 * SHARING + [600.0] * SHARING, true=[20] * 5 + [1200])
    other = Relative([0.0, 600, 600, 600] * 5 + [5.0] * SHARING, true=[1200] * 5 + [20])
    assert owners(one, other) == [one] * 5 * SHARING + [other] * SHARING
    assert len(one.tried) <= 4 + 1
