"""The weights of sums are found from samples, where a sum explains more than one version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from casweights.format.dtypes import DTYPES
from casweights.format.sampling import Grid, count
from casweights.format.signature import Signature
from casweights.operations.merges import sum_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

GRIDS = tuple(Grid(256, 384, DTYPES["BF16"]) for _ in range(20))


def signature(values: torch.Tensor) -> Signature:
    return Signature(GRIDS, values.bfloat16().view(torch.int16).numpy().view(np.uint16))


def weights(new: torch.Tensor, *others: torch.Tensor) -> Sequence[float] | None:
    same = list(range(len(GRIDS)))
    return sum_weights(signature(new), [(signature(other), same) for other in others])


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """The samples of two relatives, half of which differ by a few steps."""
    generator = torch.Generator().manual_seed(3)
    one = (0.05 * torch.randn(sum(map(count, GRIDS)), generator=generator)).bfloat16()
    moved = torch.rand(one.shape, generator=generator) < 0.5
    return one.float(), torch.where(moved, 1.05 * one.float(), one.float()).bfloat16().float()


@pytest.mark.parametrize("share", [0.5, 0.3, 0.85, 1 / 3])
def test_the_weights_of_a_sum_are_found(
    pair: tuple[torch.Tensor, torch.Tensor], share: float
) -> None:
    one, other = pair
    found = weights((1 - share) * one + share * other, one, other)
    assert found == pytest.approx((1 - share, share), abs=0.06)


def test_a_version_near_one_of_two_is_no_sum(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, other = pair
    bits = other.bfloat16().view(torch.int16)
    bits[::50] += 1
    assert weights(bits.view(torch.bfloat16).float(), one, other) is None
    assert weights(other, one, other) is None
    assert weights(one, one, one) is None


def test_the_step_after_one_of_two_neighbours_is_no_sum(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Where two versions are a step apart, a sum that leans to one of them is rounded to it."""
    bits = pair[0].bfloat16().view(torch.int16).clone()
    bits[::2] += 1
    other = bits.view(torch.bfloat16).float()
    bits[::50] += 1
    assert weights(bits.view(torch.bfloat16).float(), pair[0], other) is None


def test_a_stranger_is_no_sum(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(4)
    assert weights(0.05 * torch.randn(pair[0].shape, generator=generator), *pair) is None
