"""Parts of stored tensors, as plans with another sharding request them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

import casweights
from casweights.config import KiB, StoreConfig
from casweights.errors import ConflictError
from casweights.integrations.dcp import CasweightsReader, CasweightsWriter
from casweights.testing.states import assert_same_tensor
from tests.integrations.dcp_verbs import load, save

if TYPE_CHECKING:
    import io

    from casweights import Repository
    from casweights.testing import CountingStore

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Boxes(LoadPlanner):
    """A planner that receives boxes."""

    def __init__(self, *shape: int) -> None:
        self.box = torch.zeros(shape)

    def set_up_planner(self, *args: Any, **options: Any) -> None: ...
    def create_local_plan(self) -> LoadPlan:
        raise AssertionError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise AssertionError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise AssertionError

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return self.box

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        assert tensor is not None


def item(fqn: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> ReadItem:
    index = MetadataIndex(fqn, [0] * len(offsets))
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=index,
        dest_offsets=torch.Size(0 for _ in offsets),
        storage_index=index,
        storage_offsets=torch.Size(offsets),
        lengths=torch.Size(lengths),
    )


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [
        ((0, 0, 0), (40, 50, 60)),
        ((3, 0, 0), (1, 50, 60)),
        ((39, 49, 59), (1, 1, 1)),
        ((11, 7, 20), (9, 30, 3)),
        ((5, 0, 0), (0, 50, 60)),
        ((40, 50, 60), (0, 0, 0)),
    ],
)
def test_boxes_equal_slices_of_the_tensor(
    repo: Repository, offsets: tuple[int, ...], lengths: tuple[int, ...]
) -> None:
    tensor = torch.randn(40, 50, 60)
    save({"t": tensor}, CasweightsWriter(repo))
    reader, planner = CasweightsReader(repo), Boxes(*lengths)
    reader.read_metadata()
    (plan,) = reader.prepare_global_plan([LoadPlan([item("t", offsets, lengths)])])
    reader.read_data(plan, planner).wait()
    slices = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
    assert_same_tensor(planner.box, tensor[slices].contiguous())


def test_a_box_reads_only_its_chunks(objects: CountingStore) -> None:
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(objects, create=True, config=config) as repo:
        save({"t": torch.randn(1024, 256)}, CasweightsWriter(repo))  # 16 chunks
    with casweights.open(objects) as repo:
        reader, planner = CasweightsReader(repo), Boxes(64, 256)
        reader.read_metadata()
        (plan,) = reader.prepare_global_plan([LoadPlan([item("t", (512, 0), (64, 256))])])
        objects.reset()
        reader.read_data(plan, planner)
        assert 0 < objects.read_bytes("packs/", "snapshots/") < 2 * 64 * KiB


def test_a_ref_that_moved_between_the_ranks_is_a_conflict(repo: Repository) -> None:
    first, second = CasweightsReader(repo), CasweightsReader(repo)
    writer = CasweightsWriter(repo)
    save({"w": torch.ones(3)}, writer)
    first.read_metadata()
    save({"w": torch.zeros(3)}, writer)
    second.read_metadata()
    (plan,) = first.prepare_global_plan([LoadPlan([item("w", (0,), (3,))])])
    with pytest.raises(ConflictError, match="moved"):
        second.read_data(plan, Boxes(3))


@pytest.mark.usefixtures("frames_alone")
def test_small_tensors_in_one_chunk_are_read_together_in_any_order(objects: CountingStore) -> None:
    state = {f"layers.{n:02}.norm": torch.randn(4, 6) for n in range(40)}
    state["big"] = torch.randn(300, 80)
    with casweights.open(objects, create=True) as repo:
        save(state, CasweightsWriter(repo))
        for names in (sorted(state), ["layers.07.norm", "big", "layers.06.norm"]):
            loaded = {name: torch.zeros_like(state[name]) for name in names}
            objects.reset()
            load(loaded, CasweightsReader(repo))
            for name in names:
                assert_same_tensor(loaded[name], state[name])
            assert objects.read_bytes("packs/", "snapshots/") < sum(
                tensor.nbytes for tensor in state.values()
            )


@pytest.mark.parametrize("rows", [slice(0, 1), slice(2, 4), slice(3, 3), slice(0, 4)])
def test_a_box_of_a_small_tensor_is_cut_from_its_chunk(repo: Repository, rows: slice) -> None:
    state = {f"layers.{n:02}.norm": torch.randn(4, 6) for n in range(40)}
    save(state, CasweightsWriter(repo))
    reader, planner = CasweightsReader(repo), Boxes(rows.stop - rows.start, 6)
    reader.read_metadata()
    wanted = item("layers.07.norm", (rows.start, 0), (rows.stop - rows.start, 6))
    (plan,) = reader.prepare_global_plan([LoadPlan([wanted])])
    reader.read_data(plan, planner).wait()
    assert_same_tensor(planner.box, state["layers.07.norm"][rows].contiguous())
