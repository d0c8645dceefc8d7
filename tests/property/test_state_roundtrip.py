"""State dicts come back as they were: structure, dtypes, shapes, bits, ties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import safetensors.torch
from hypothesis import strategies as st

import casweights
from casweights.config import Compression, DigestName, KiB, StoreConfig
from casweights.testing.states import (
    assert_same_state,
    assert_same_tensor,
    tensor_bits,
)
from casweights.testing.strategies import from_bytes, state_dicts, tensors
from tests.lengths import examples

if TYPE_CHECKING:
    from pathlib import Path

    import torch

compressions = st.sampled_from(["auto", "fast", "small"])


def open_store(digest: DigestName = "blake3") -> casweights.Repository:
    config = StoreConfig(digest=digest, chunk_size=64 * KiB)
    return casweights.open("memory://", create=True, config=config, workers=2)


@pytest.mark.parametrize("digest", ["blake3", "xxh3-128"])
@hypothesis.settings(max_examples=examples(25))
@hypothesis.given(state=state_dicts(carried=True), compression=compressions)
def test_any_state_comes_back(
    digest: DigestName, state: dict[Any, Any], compression: Compression
) -> None:
    with open_store(digest) as repo:
        snapshot = repo.commit(state, compression=compression)
        assert_same_state(repo.load(snapshot), state)
        assert not repo.verify().problems


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor in memory of its own, as the reference library requires."""
    return from_bytes(tensor_bits(tensor), tensor.dtype, tuple(tensor.shape))


@hypothesis.settings(max_examples=examples(12))
@hypothesis.given(
    state=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
            lambda key: key != "__metadata__"
        ),
        tensors().map(plain),
        max_size=5,
    )
)
def test_a_flat_state_is_the_file_of_the_reference_library(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    reference = tmp_path / "reference.safetensors"
    safetensors.torch.save_file(state, reference, metadata={"format": "pt"})
    with open_store() as repo:
        snapshot = repo.commit(state)
        assert b"".join(repo.read(snapshot, "model.safetensors")) == reference.read_bytes()


@hypothesis.settings(max_examples=examples(12))
@hypothesis.given(tensor=tensors(), data=st.data())
def test_a_lazy_tensor_is_indexed_like_the_tensor(
    tensor: torch.Tensor, data: st.DataObject
) -> None:
    with open_store() as repo:
        lazy = repo.tensor(repo.commit({"name": tensor}), "name")
        assert_same_tensor(lazy.load(), tensor)
        if tensor.dim() == 0:
            assert_same_tensor(lazy[...], tensor)
            return
        rows = data.draw(st.slices(tensor.shape[0]).filter(lambda s: (s.step or 1) > 0))
        assert_same_tensor(lazy[rows], tensor[rows])
        assert_same_tensor(lazy[rows, ...], tensor[rows, ...])
        if tensor.shape[0]:
            row = data.draw(st.integers(-tensor.shape[0], tensor.shape[0] - 1))
            assert_same_tensor(lazy[row], tensor[row])
