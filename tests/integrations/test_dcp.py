"""torch.distributed.checkpoint on one rank; `test_dcp_ranks.py` has several."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import SavePlanner

import casweights
from casweights.config import KiB, StoreConfig
from casweights.errors import (
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from casweights.events import Reporter
from casweights.integrations.dcp import CasweightsReader, CasweightsWriter
from casweights.integrations.dcp.layout import LAYOUT_FILE
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from casweights.testing.states import assert_same_state, assert_same_tensor
from tests.integrations.dcp_verbs import SHARDS, cause, load, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch.distributed.checkpoint.planner import WriteItem

    from casweights import Repository
    from casweights.results import CommitStats
    from casweights.testing import CountingStore

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def emptied(node: Any) -> Any:
    """The same structure with empty values, to load into."""
    if isinstance(node, dict):
        return {key: emptied(value) for key, value in node.items()}
    if isinstance(node, list):
        return [emptied(value) for value in node]
    return torch.zeros_like(node) if isinstance(node, torch.Tensor) else None


def small_state() -> dict[str, Any]:
    return {
        "model": {"w": torch.randn(100, 300), "b": torch.randn(7).bfloat16()},
        "optimizer": {"state": [{"step": torch.tensor(3.0)}], "lr": 0.1, "betas": (0.9, 0.99)},
        "name": "run",
        "none": None,
    }


class Stats(Reporter):
    def __init__(self) -> None:
        self.seen: list[CommitStats] = []

    def committed(self, stats: CommitStats) -> None:
        self.seen.append(stats)


def test_a_saved_state_is_loaded_unchanged(repo: Repository) -> None:
    state = small_state()
    writer = CasweightsWriter(repo, "run", message="m", author="a", metadata={"step": 7})
    saved = save(state, writer)

    assert saved.storage_meta is not None
    assert writer.snapshot is not None
    assert saved.storage_meta.checkpoint_id == str(writer.snapshot.id)
    snapshot = repo.snapshot("run")
    assert snapshot == writer.snapshot
    assert (snapshot.message, snapshot.author, snapshot.metadata) == ("m", "a", {"step": 7})
    assert [file.path for file in snapshot.files] == [LAYOUT_FILE, SHARDS]
    assert_same_state(load(emptied(state), CasweightsReader(repo, "run")), state)
    assert repo.verify().problems == ()


EVERY_DTYPE = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


def test_saves_are_numbered_from_their_parents(repo: Repository) -> None:
    repo.commit({"n": 0})
    second = CasweightsWriter(repo, "run", parent="main")
    for number in (2, 3):
        save(small_state(), second)
        assert second.snapshot is not None
        assert second.snapshot.number == number
    assert repo.verify().problems == ()


def test_every_dtype_and_shape_is_loaded_unchanged(repo: Repository) -> None:
    bits = torch.randint(0, 2, (6, 16), dtype=torch.uint8)
    state: dict[str, Any] = {str(dtype): bits.view(dtype) for dtype in EVERY_DTYPE}
    state["scalar"] = torch.tensor(-0.0)
    state["empty"] = torch.empty(0, 4)
    state["transposed"] = torch.randn(40, 50).T
    state["strided"] = torch.randn(100)[::3]
    state["conjugated"] = torch.randn(3, dtype=torch.complex64).conj()
    state["large"] = torch.randn(500, 333)
    target = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    save(state, CasweightsWriter(repo))
    load(target, CasweightsReader(repo))
    for name, tensor in state.items():
        assert_same_tensor(target[name], tensor, name)


def test_names_like_those_of_shards_and_unusual_names_are_kept(repo: Repository) -> None:
    state = {
        name: torch.randn(3) for name in ("", "tensor", "__metadata__", "w[0]", "ключ", "A", "a")
    }
    save(state, CasweightsWriter(repo))
    target = load(emptied(state), CasweightsReader(repo))
    assert_same_state(target, state)


def test_the_metadata_equals_that_of_torch(repo: Repository, tmp_path: Path) -> None:
    state = small_state()
    save(state, CasweightsWriter(repo))
    state_dict_saver.save(state, checkpoint_id=tmp_path)
    ours = CasweightsReader(repo).read_metadata()
    theirs = FileSystemReader(tmp_path).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data.keys() == theirs.storage_data.keys()


def test_layouts_are_not_pickled(repo: Repository) -> None:
    save(small_state(), CasweightsWriter(repo))
    layout = msgpack.unpackb(b"".join(repo.read("main", LAYOUT_FILE)))
    assert layout["tensors"]["model.w"] == [
        "float32",
        [100, 300],
        [[[0, 0], [100, 300], SHARDS, "model.w"]],
    ]
    assert layout["paths"]["optimizer.state.0.step"] == ["optimizer", "state", 0, "step"]


def test_states_of_a_planner_that_does_not_flatten_are_loaded(repo: Repository) -> None:
    state = {"w": torch.randn(4), "nested": {"a": 1, "b": [2]}}
    save(state, CasweightsWriter(repo), planner=DefaultSavePlanner(flatten_state_dict=False))
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    target = load({"w": torch.zeros(4), "nested": None}, CasweightsReader(repo), planner=planner)
    assert_same_state(target, state)


def test_a_planner_that_caches_its_plans_saves_every_state(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in ("save_plan", "all_plans", "global_plan", "metadata", "final_save_plan"):
        monkeypatch.setattr(SavePlanner, f"_cached_{cache}", {})
    writer = CasweightsWriter(repo)
    for step in (1, 2, 3):
        state = {"w": torch.randn(4), "step": step}
        save(state, writer, planner=DefaultSavePlanner(enable_plan_caching=True))
        target = load({"w": torch.zeros(4), "step": 0}, CasweightsReader(repo))
        assert_same_state(target, state)
    assert len([*repo.log()]) == 3


def test_chunks_are_shared_with_the_unsharded_model() -> None:
    stats = Stats()
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(MemoryStore(), create=True, config=config, reporter=stats) as repo:
        model = {"w": torch.randn(300, 500), "b": torch.randn(500)}
        repo.commit(model, branch="plain")
        save(model, CasweightsWriter(repo, "sharded"))
        layout = next(f for f in repo.snapshot("sharded").files if f.path == LAYOUT_FILE)
        assert stats.seen[-1].new_bytes == layout.size, "there are new weights"

        model["w"].view(-1)[::100] += 1
        save(model, CasweightsWriter(repo, "tuned", parent="plain"))
        assert 0 < stats.seen[-1].stored_bytes < 0.05 * model["w"].nbytes
        assert repo.snapshot("tuned").parents == (repo.resolve("plain"),)


def test_a_step_stores_only_its_changes(repo: Repository, objects: CountingStore) -> None:
    writer, weights = CasweightsWriter(repo), torch.randn(512, 512)
    state = {"w": weights, "step": 1}
    save(state, writer)
    first = sum(nbytes for _, nbytes in objects.writes)
    objects.reset()
    weights.view(-1)[torch.randperm(512 * 512)[:2621]] += 1e-3  # 1 %
    state["step"] = 2
    save(state, writer)
    assert sum(nbytes for _, nbytes in objects.writes) < 0.05 * first
    assert [s.id for s in repo.log()] == [repo.resolve("main"), repo.resolve("main~1")]
    target = load({"w": torch.zeros(512, 512), "step": 0}, CasweightsReader(repo))
    assert_same_state(target, state)


def test_a_pickled_writer_and_reader_open_the_store_by_its_url(tmp_path: Path) -> None:
    state = {"w": torch.randn(5)}
    with casweights.open(tmp_path, create=True) as repo:
        writer = CasweightsWriter(repo, message="m")
        save(state, writer)
        twin = pickle.loads(pickle.dumps(writer))
        save({"w": state["w"] + 1}, twin)
        reader = pickle.loads(pickle.dumps(CasweightsReader(repo, "main~1")))
    assert_same_state(load({"w": torch.zeros(5)}, reader), state)
    with casweights.open(tmp_path) as repo:
        assert [snapshot.message for snapshot in repo.log()] == ["m", "m"]


def test_a_checkpoint_id_is_a_tag_to_save_and_any_ref_to_load(repo: Repository) -> None:
    writer, reader = CasweightsWriter(repo, "run"), CasweightsReader(repo, "run")
    for step in (1, 2):
        save({"step": torch.tensor(step)}, writer, checkpoint_id=f"run-1/step-{step}")
    save({"step": torch.tensor(3)}, writer)
    assert set(repo.tags()) == {"run-1/step-1", "run-1/step-2"}
    assert [*repo.branches()] == ["run"]

    def loaded(**options: Any) -> int:
        return int(load({"step": torch.tensor(0)}, reader, **options)["step"])

    assert loaded() == 3
    assert loaded(checkpoint_id="run-1/step-1") == 1
    assert loaded(checkpoint_id="run~1") == 2
    assert loaded(checkpoint_id=str(repo.resolve("run"))) == 3


def test_an_invalid_or_existing_tag_is_refused_before_a_write(
    repo: Repository, objects: CountingStore
) -> None:
    assert CasweightsWriter.validate_checkpoint_id("step-1")
    assert not CasweightsWriter.validate_checkpoint_id("/tmp/step-1")
    writer = CasweightsWriter(repo)
    with pytest.raises(InvalidInputError):
        save({"w": torch.ones(1)}, writer, checkpoint_id="/tmp/step-1")
    save({"w": torch.ones(1)}, writer, checkpoint_id="taken")
    objects.reset()
    with pytest.raises(CheckpointException) as error:
        save({"w": torch.zeros(1)}, writer, checkpoint_id="taken")
    assert isinstance(cause(error), ConflictError)
    assert objects.writes == []


def test_saving_without_collectives_is_refused(repo: Repository) -> None:
    with pytest.raises(UnsupportedError, match="use_collectives"):
        CasweightsWriter(repo).set_up_storage_writer(True, rank=0, use_collectives=False)


class Meddling(DefaultSavePlanner):
    """Calls a function in the middle of a save."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__()
        self._meddle = meddle

    def resolve_data(self, write_item: WriteItem) -> Any:
        self._meddle()
        return super().resolve_data(write_item)


def test_a_save_that_loses_the_branch_keeps_its_version(repo: Repository) -> None:
    theirs = []

    def commit() -> None:
        theirs.append(repo.commit({"theirs": torch.ones(3)}))

    state = {"w": torch.randn(5)}
    with pytest.raises(CheckpointException) as error:
        save(state, CasweightsWriter(repo), planner=Meddling(commit))
    conflict = cause(error)
    assert isinstance(conflict, ConflictError)
    assert conflict.snapshot is not None
    assert repo.resolve("main") == theirs[-1].id
    target = load({"w": torch.zeros(5)}, CasweightsReader(repo, conflict.snapshot))
    assert_same_state(target, state)


def test_two_writers_on_one_branch_get_a_conflict(repo: Repository) -> None:
    state = {"w": torch.randn(5)}
    save(state, CasweightsWriter(repo))
    one, other = CasweightsWriter(repo), CasweightsWriter(repo)
    save(state, one)  # continues from the head
    save(state, other)
    for writer in (one, one):
        with pytest.raises(CheckpointException) as error:
            save(state, writer)
        conflict = cause(error)
        assert isinstance(conflict, ConflictError)
        assert "separate branch" in str(conflict)
    save(state, other)
    assert other.snapshot is not None
    assert repo.resolve("main") == other.snapshot.id
    assert len(list(repo.log())) == 4


def test_a_pickled_writer_continues_from_the_head(tmp_path: Path) -> None:
    casweights.open(tmp_path, create=True).close()
    writer, state = CasweightsWriter(tmp_path), {"w": torch.randn(5)}
    save(state, writer)
    for _ in range(2):  # as torch does for saves in another process
        save(state, pickle.loads(pickle.dumps(writer)))
    with pytest.raises(CheckpointException):
        save(state, writer)


def test_a_writer_that_lost_its_first_save_keeps_raising_the_conflict(repo: Repository) -> None:
    state = {"w": torch.randn(5)}
    writer = CasweightsWriter(repo)
    meddling = Meddling(lambda: repo.commit({"theirs": torch.ones(3)}))
    for planner in (meddling, None):
        with pytest.raises(CheckpointException) as error:
            save(state, writer, planner=planner)
        assert isinstance(cause(error), ConflictError)
    assert len(list(repo.log())) == 1


def test_a_save_continues_from_one_that_failed_after_moving_the_branch(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, writer, refs = {"w": torch.randn(5)}, CasweightsWriter(repo), repo.database.refs
    advance = refs.advance

    def fail_afterwards(*args: Any, ready: Any) -> Any:
        advance(*args, ready=ready)
        raise StoreError(ErrorCode.IO_FAILED, "the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(refs, "advance", fail_afterwards)
        with pytest.raises(CheckpointException):
            save(state, writer)
    save(state, writer)
    assert len(list(repo.log())) == 2


def test_a_failed_write_leaves_the_branch_unchanged() -> None:
    objects = MemoryStore()
    with casweights.open(objects, create=True) as repo:
        save({"w": torch.randn(5)}, CasweightsWriter(repo))
        before = repo.resolve("main")
    for call in (1, 2, 3):  # a pack of shards, the version, the branch
        faulty = FaultyStore(objects, [Fault(call=call, method="put")])
        with casweights.open(faulty) as repo, pytest.raises(CheckpointException) as error:
            save({"w": torch.randn(5)}, CasweightsWriter(repo))
        assert isinstance(cause(error), StoreError)
        with casweights.open(objects) as repo:
            assert repo.resolve("main") == before
    with casweights.open(objects) as repo:
        state = {"w": torch.randn(5)}
        save(state, CasweightsWriter(repo))
        assert_same_state(load({"w": torch.zeros(5)}, CasweightsReader(repo)), state)


def test_a_missing_parent_or_store_is_refused(repo: Repository, tmp_path: Path) -> None:
    for writer in (CasweightsWriter(repo, parent="nowhere"), CasweightsWriter(tmp_path / "no")):
        with pytest.raises(CheckpointException) as error:
            save({"w": torch.ones(3)}, writer)
        assert isinstance(cause(error), NotFoundError)


def test_missing_versions_and_versions_of_other_kinds_are_refused(repo: Repository) -> None:
    with pytest.raises(NotFoundError):
        CasweightsReader(repo, "nowhere").read_metadata()
    repo.commit({"w": torch.ones(3)})
    with pytest.raises(InvalidInputError, match=r"Repository\.load"):
        CasweightsReader(repo).read_metadata()
    with pytest.raises(CheckpointException, match="nowhere"):
        load({"w": torch.ones(3)}, CasweightsReader(repo, "nowhere"))


@pytest.mark.usefixtures("packs_apart")
def test_a_damaged_pack_is_an_integrity_error(objects: CountingStore) -> None:
    with casweights.open(objects, create=True) as repo:
        save({"w": torch.randn(100, 100)}, CasweightsWriter(repo))
    largest = max(objects.list("packs/"), key=lambda info: info.size)
    flip_bit(objects, largest.name, 5000)
    with casweights.open(objects) as repo, pytest.raises(CheckpointException) as error:
        load({"w": torch.zeros(100, 100)}, CasweightsReader(repo))
    assert isinstance(cause(error), IntegrityError)


def test_without_overwrite_an_existing_branch_is_refused(
    repo: Repository,
) -> None:
    save({"w": torch.ones(2)}, CasweightsWriter(repo, "run"))
    before = repo.branches()
    with pytest.raises(CheckpointException) as caught:
        save({"w": torch.zeros(2)}, CasweightsWriter(repo, "run", overwrite=False))
    error = cause(caught)
    assert isinstance(error, ConflictError)
    assert error.code is ErrorCode.ALREADY_EXISTS
    assert repo.branches() == before
    save({"w": torch.zeros(2)}, CasweightsWriter(repo, "run", overwrite=True))
    assert len([*repo.log("run")]) == 2


def test_without_overwrite_a_writer_continues_from_its_own_versions(repo: Repository) -> None:
    writer = CasweightsWriter(repo, "run", overwrite=False)
    for step in (1, 2, 3):
        save({"w": torch.full((2,), float(step))}, writer)
    assert len([*repo.log("run")]) == 3
