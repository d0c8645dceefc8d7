"""Planners and states that torch.distributed.checkpoint may pass, and the order of their keys."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

import casweights
from casweights.errors import CasweightsError, InvalidInputError, UnsupportedError
from casweights.integrations.dcp import CasweightsReader, CasweightsWriter
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.integrations.dcp_verbs import cause, load, save
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch.distributed.checkpoint.planner import WriteItem

    from casweights import Repository

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.parametrize(
    ("planned", "error"),
    [
        (torch.ones(4), InvalidInputError),
        (torch.ones(3, dtype=torch.float64), InvalidInputError),
        (torch.ones(3).to_sparse(), UnsupportedError),
        ("text", InvalidInputError),
    ],
)
def test_data_that_differs_from_the_plan_is_refused(
    repo: Repository, planned: Any, error: type[CasweightsError]
) -> None:
    class Lying(DefaultSavePlanner):
        def resolve_data(self, write_item: WriteItem) -> Any:
            return planned

    with pytest.raises(CheckpointException) as raised:
        save({"w": torch.ones(3)}, CasweightsWriter(repo), planner=Lying())
    assert isinstance(cause(raised), error)
    assert repo.branches() == {}


def test_unknown_planner_data_is_refused(repo: Repository) -> None:
    class Odd(DefaultSavePlanner):
        def create_global_plan(self, all_plans: Any) -> Any:
            plans, metadata = super().create_global_plan(all_plans)
            metadata.planner_data = {"w": object()}
            return plans, metadata

    with pytest.raises(CheckpointException) as error:
        save({"w": torch.ones(3)}, CasweightsWriter(repo), planner=Odd())
    assert isinstance(cause(error), UnsupportedError)
    assert repo.branches() == {}


class Opaque:
    """An object that torch does not load without trust."""


def test_objects_that_need_trust_load_only_with_trust(repo: Repository) -> None:
    save({"object": Opaque()}, CasweightsWriter(repo))
    with pytest.raises(CheckpointException) as error:
        load({"object": None}, CasweightsReader(repo))
    assert isinstance(cause(error), UnsupportedError)
    loaded = load({"object": None}, CasweightsReader(repo, weights_only=False))
    assert isinstance(loaded["object"], Opaque)


def keys(node: Any) -> Any:
    """The keys of nested dicts, in order."""
    return [(key, keys(value)) for key, value in node.items()] if isinstance(node, dict) else None


@pytest.mark.parametrize("flatten", [True, False])
@given(data=st.data())
@settings(max_examples=examples(8))
def test_keys_have_the_order_of_the_saved_state(flatten: bool, data: st.DataObject) -> None:
    names = data.draw(st.permutations(["b", "a", "10", "2", "c.d", "Z"]))
    leaves = st.sampled_from([1, "text", torch.ones(2), torch.ones(()), io.BytesIO(b"x")])
    state: dict[str, Any] = {name: data.draw(leaves) for name in names}
    if flatten:
        state["m"] = {name: data.draw(leaves) for name in data.draw(st.permutations(names))}
        state["A"] = 1
    with casweights.open(MemoryStore(), create=True, workers=1) as repo:
        planner = DefaultSavePlanner(flatten_state_dict=flatten)
        saved = save(state, CasweightsWriter(repo), planner=planner)
        found = CasweightsReader(repo).read_metadata()
        assert [*found.state_dict_metadata] == [*saved.state_dict_metadata]
        loaded: dict[str, Any] = {}
        _load_state_dict(
            loaded,
            storage_reader=CasweightsReader(repo),
            planner=cast("Any", _EmptyStateDictLoadPlanner)(),
            no_dist=True,
        )
    assert keys(loaded) == keys(state)


TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    **{
        kind: partial(torch.quantize_per_tensor, torch.ones(2), 0.1, 0, getattr(torch, kind))
        for kind in ("qint8", "quint8", "qint32")
    },
    "per channel": lambda: torch.quantize_per_channel(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8
    ),
    "sparse": lambda: torch.ones(2, 2).to_sparse(),
    "meta": lambda: torch.ones(2, device="meta"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_without_bytes_raise_the_error_of_commit(repo: Repository, kind: str) -> None:
    tensor = TENSORS[kind]()
    with pytest.raises(UnsupportedError) as expected:
        repo.commit({"q": tensor})
    with pytest.raises(CheckpointException) as caught:
        save({"w": torch.ones(2), "q": tensor}, CasweightsWriter(repo))
    assert isinstance(cause(caught), UnsupportedError)
    assert str(cause(caught)) == str(expected.value)
    assert repo.branches() == {}


@pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")
@pytest.mark.parametrize("ours_first", [True, False])
def test_plans_cached_by_another_kind_of_writer_can_be_used(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours_first: bool
) -> None:
    for cache in ("save_plan", "all_plans", "global_plan", "metadata", "final_save_plan"):
        monkeypatch.setattr(SavePlanner, f"_cached_{cache}", {})
    writers = [CasweightsWriter(repo), FileSystemWriter(tmp_path / "files")]
    state = {"w": torch.arange(4.0), "n": 3}
    for writer in (writers if ours_first else writers[::-1]) * 2:
        planner = DefaultSavePlanner(enable_plan_caching=True)
        save(state, cast("CasweightsWriter", writer), planner=planner)
    for reader in (CasweightsReader(repo), FileSystemReader(tmp_path / "files")):
        loaded = load({"w": torch.zeros(4), "n": 0}, cast("CasweightsReader", reader))
        assert_same_state(loaded, state)
