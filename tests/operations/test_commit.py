"""Commit: which objects it writes and reads, what it reports, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import torch

import casweights
import casweights.operations.commit
from casweights.config import KiB, StoreConfig
from casweights.content.states import StateFile
from casweights.database.packs import read_pack
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.operations.commit import Description, EncodedVersion, write_version
from casweights.operations.encode import encode_files
from casweights.stores.base import ObjectInfo
from casweights.stores.memory import MemoryStore
from casweights.testing.trees import write_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights import Repository
    from casweights.events import Stage
    from casweights.operations.encoded_files import EncodedFiles
    from casweights.results import CheckoutStats, CommitStats
    from casweights.testing import CountingStore

ROW = 16 * KiB  # bytes; four rows to a chunk


def rows(count: int, seed: int = 0) -> torch.Tensor:
    """Return a matrix whose chunks are all different and cannot be compressed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, ROW // 2)
    return torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=generator)


def packs(objects: CountingStore) -> list[int]:
    """Return the bytes of frames in each object with frames written since `objects.reset()`."""
    made = [
        ObjectInfo(*write)
        for write in objects.writes
        if write[0].startswith(("packs/", "snapshots/"))
    ]
    found = (read_pack(objects, info).locations for info in made)
    return [sum(at.frame.size for at in locations) for locations in found if locations]


def test_a_commit_writes_one_snapshot_with_its_frames_and_one_move(
    repo: Repository, objects: CountingStore
) -> None:
    objects.reset()
    repo.commit({"w": rows(8)})
    kinds = [name.split("/")[0] for name, _ in objects.writes]
    assert kinds == ["snapshots", "signatures", "refs"]
    assert 8 * ROW < packs(objects)[0] < 8 * ROW + 1000


def test_committing_the_same_state_writes_no_pack(repo: Repository, objects: CountingStore) -> None:
    first = repo.commit({"w": rows(8)})
    objects.reset()
    second = repo.commit({"w": rows(8)})
    assert packs(objects) == []
    assert second.files == first.files
    assert second.parents == (first.id,)
    assert second.id != first.id


def test_equal_time_parent_and_content_make_the_same_version(repo: Repository) -> None:
    options: dict[str, Any] = {"time": datetime(2026, 1, 1, tzinfo=UTC), "message": "same"}
    first = repo.commit({"w": rows(1)}, branch="a", **options)
    second = repo.commit({"w": rows(1)}, branch="b", **options)
    assert first == second
    assert repo.branches() == {"a": first.id, "b": first.id}


def test_another_process_writes_no_known_chunks(objects: CountingStore) -> None:
    with casweights.open(objects, create=True) as repo:
        repo.commit({"w": rows(8)})
    objects.reset()
    with casweights.open(objects) as repo:
        repo.commit({"w": rows(8)}, branch="other")
    assert packs(objects) == []


def test_a_commit_does_not_read_packs_it_wrote(repo: Repository, objects: CountingStore) -> None:
    repo.commit({"w": rows(8)})
    objects.reset()
    repo.commit({"v": rows(5, seed=1)})  # another shape, so the first tensor is not its base
    assert objects.read_bytes("packs/", "snapshots/") == 0


def test_a_tensor_that_moves_to_another_file_is_not_stored_again(
    repo: Repository, objects: CountingStore, tmp_path: Path
) -> None:
    state = {"small": torch.zeros(3), "w": rows(8)}
    repo.commit(state)
    objects.reset()
    repo.commit({"z": {"nested": state["w"]}, "more": torch.zeros(7)})
    assert sum(packs(objects)) < 1000
    snapshot = repo.snapshot("main~1")
    repo.checkout(snapshot, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    objects.reset()
    repo.commit(tmp_path)
    assert packs(objects) == []


def test_appended_rows_store_only_themselves(repo: Repository, objects: CountingStore) -> None:
    repo.commit({"embed": rows(8)})
    objects.reset()
    repo.commit({"embed": torch.cat([rows(8), rows(4, seed=1)])})
    assert 4 * ROW < sum(packs(objects)) < 4 * ROW + 1000


def test_equal_chunks_of_a_version_are_stored_once(
    repo: Repository, objects: CountingStore
) -> None:
    objects.reset()
    repo.commit({"a": rows(8), "b": rows(8).clone(), "c": torch.cat([rows(8), rows(8)])})
    assert 8 * ROW < sum(packs(objects)) < 8 * ROW + 1000


def test_opaque_files_share_chunks_with_tensors(
    repo: Repository, objects: CountingStore, tmp_path: Path
) -> None:
    data = rows(8).numpy().tobytes()
    write_tree({"optimizer.pt": data, "copy.pt": data, "longer.pt": data + b"tail"}, tmp_path)
    objects.reset()
    repo.commit(tmp_path)
    assert sum(packs(objects)) < 8 * ROW + 1000
    objects.reset()
    repo.commit({"w": rows(8)})
    assert sum(packs(objects)) < 300  # its header


def test_changing_one_tensor_of_a_thousand_stores_one(objects: CountingStore) -> None:
    state = {f"layers.{n}.w": rows(4, seed=n) for n in range(1000)}
    with casweights.open(objects, create=True) as repo:
        repo.commit(state)
        state["layers.500.w"] = rows(4, seed=5000)
        objects.reset()
        repo.commit(state)
    kinds = [name.split("/")[0] for name, _ in objects.writes]
    assert kinds == ["snapshots", "refs"]
    assert 4 * ROW < packs(objects)[0] < 4 * ROW + 500


def test_packs_have_about_their_target_size(objects: CountingStore) -> None:
    config = StoreConfig(chunk_size=4096 * KiB)
    with casweights.open(objects, create=True, config=config) as repo:
        objects.reset()
        repo.commit({"w": torch.arange(36 << 20, dtype=torch.int32)}, compression="fast")
    assert [nbytes >> 20 for nbytes in packs(objects)] == [60, 60, 24]


class Listener(casweights.Reporter):
    """A reporter that records all events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.done = 0

    def started(self, stage: Stage, total: int) -> None:
        self.events.append((f"{stage} started", total))
        self.done = 0

    def advanced(self, stage: Stage, nbytes: int) -> None:
        self.done += nbytes

    def finished(self, stage: Stage) -> None:
        self.events.append((f"{stage} finished", self.done))

    def committed(self, stats: CommitStats) -> None:
        self.events.append(("committed", stats))

    def checked_out(self, stats: CheckoutStats) -> None:
        self.events.append(("checked out", stats))


def test_commit_and_checkout_report_stats_and_progress(
    objects: CountingStore, tmp_path: Path
) -> None:
    listener = Listener()
    config = StoreConfig(chunk_size=64 * KiB)
    repo = casweights.open(objects, create=True, config=config, reporter=listener)
    write_tree({"a": rows(6).numpy().tobytes(), "b": rows(4).numpy().tobytes()}, tmp_path / "in")
    objects.reset()
    snapshot = repo.commit(tmp_path / "in")
    total = 10 * ROW
    assert [event for event, _ in listener.events] == [
        "commit started",
        "commit finished",
        "committed",
    ]
    assert [value for _, value in listener.events[:2]] == [total, total]
    stats = listener.events[2][1]
    assert stats.snapshot == snapshot.id
    assert stats.total_bytes == total
    assert (stats.chunks, stats.new_chunks) == (3, 2)  # the first chunks are the same
    assert stats.new_bytes == 6 * ROW
    assert stats.stored_bytes <= stats.new_bytes
    assert stats.packs == len(packs(objects)) == 1
    listener.events.clear()
    write_tree({"extra": b"x"}, tmp_path / "out")
    repo.checkout(snapshot, tmp_path / "out", delete=True, overwrite=True)
    assert [value for _, value in listener.events[:2]] == [total, total]
    done = listener.events[2][1]
    assert (done.files, done.written_files, done.deleted_files) == (2, 2, 1)
    assert done.total_bytes == done.fetched_bytes == total
    assert done.snapshot == snapshot.id
    repo.close()


def test_a_commit_without_changes_reports_zero_new_bytes(objects: CountingStore) -> None:
    listener = Listener()
    with casweights.open(objects, create=True, reporter=listener) as repo:
        repo.commit({"w": rows(8)})
        repo.commit({"w": rows(8)})
    stats = listener.events[-1][1]
    assert (stats.new_chunks, stats.new_bytes, stats.stored_bytes, stats.packs) == (0, 0, 0, 0)


def test_a_failed_commit_finishes_its_stage(
    repo: Repository, objects: CountingStore, tmp_path: Path
) -> None:
    (tmp_path / "changing").write_bytes(bytes(100))

    class Meddler(Listener):
        def started(self, stage: Stage, total: int) -> None:
            super().started(stage, total)
            (tmp_path / "changing").write_bytes(bytes(101))

    listener = Meddler()
    with casweights.open(objects, reporter=listener) as meddled:
        with pytest.raises(InvalidInputError, match="changed while it was read") as caught:
            meddled.commit(tmp_path)
        assert caught.value.code is ErrorCode.SOURCE_CHANGED
    assert [event for event, _ in listener.events] == ["commit started", "commit finished"]
    assert repo.branches() == {}
    assert list(objects.list("snapshots/")) == []


def test_a_version_keeps_its_description(repo: Repository) -> None:
    zone = timezone(timedelta(hours=2))
    snapshot = repo.commit(
        {"w": torch.zeros(2)},
        message="first\n\nbody",
        author="somebody <some@body>",
        metadata={"step": 3, "loss": 0.25, "tags": ["a"], "nested": {"deep": None}},
        time=datetime(2026, 8, 1, 14, 0, 0, 5, tzinfo=zone),
    )
    read = repo.snapshot("main")
    assert read == snapshot
    assert (read.message, read.author) == ("first\n\nbody", "somebody <some@body>")
    assert read.metadata == {"step": 3, "loss": 0.25, "tags": ["a"], "nested": {"deep": None}}
    assert read.time == datetime(2026, 8, 1, 12, 0, 0, 5, tzinfo=UTC)
    assert read.time.tzinfo is UTC
    assert read.parents == ()
    assert read.config == repo.config
    assert read.size == sum(file.size for file in read.files)


def test_the_default_time_is_now(repo: Repository) -> None:
    before = datetime.now(UTC)
    snapshot = repo.commit({"w": torch.zeros(2)})
    assert before <= snapshot.time <= datetime.now(UTC)


def test_invalid_arguments_are_refused(repo: Repository) -> None:
    state = {"w": torch.zeros(2)}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"time": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"metadata": {"a": object()}}, "metadata.a is object"),
        ({"metadata": {1: 2}}, "metadata is dict"),
        ({"message": "\ud800"}, "not valid Unicode"),
        ({"compression": "best"}, "compression must be one of auto, fast, small, got 'best'"),
        ({"branch": "no good"}, "not a valid name for a branch"),
        ({"branch": "-x"}, "not a valid name for a branch"),
    ]
    for options, why in wrong:
        with pytest.raises(InvalidInputError, match=why):
            repo.commit(state, **options)
    assert repo.branches() == {}


def test_a_new_branch_can_begin_at_any_version(repo: Repository) -> None:
    first = repo.commit({"w": torch.zeros(2)})
    tuned = repo.commit({"w": torch.ones(2)}, branch="tuned", parent=first)
    assert tuned.parents == (first.id,)
    assert repo.branches() == {"main": first.id, "tuned": tuned.id}
    with pytest.raises(InvalidInputError, match="its head is the parent"):
        repo.commit({"w": torch.ones(2)}, branch="tuned", parent=first)
    with pytest.raises(NotFoundError):
        repo.commit({"w": torch.ones(2)}, branch="new", parent="nothing")


def test_compression_is_not_part_of_a_version(repo: Repository) -> None:
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    versions = [
        repo.commit({"w": weights}, branch=compression, compression=compression).files
        for compression in ("fast", "auto", "small")
    ]
    assert versions[0] == versions[1] == versions[2]


def test_stronger_compression_makes_smaller_packs() -> None:
    sizes = {}
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for compression in ("fast", "auto", "small"):
        with casweights.open("memory://", create=True) as repo:
            repo.commit({"w": weights}, compression=compression)
            sizes[compression] = repo.stats().pack_bytes
    assert sizes["fast"] > weights.nbytes
    assert sizes["small"] <= sizes["auto"] < 0.9 * weights.nbytes


@pytest.fixture
def after_encoding(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Actions to run between encoding a version and writing it, each once."""
    actions: list[Callable[[], object]] = []
    encode = encode_files

    def encode_and_act(*args: Any, **options: Any) -> EncodedFiles:
        version = encode(*args, **options)
        if actions:
            actions.pop()()
        return version

    monkeypatch.setattr(casweights.operations.commit, "encode_files", encode_and_act)
    return actions


def test_a_version_is_written_although_the_index_forgot_its_chunks(repo: Repository) -> None:
    """Another thread that shares the handle may cause it to read all packs again."""
    first = repo.commit({"w": rows(8)})
    db, state = repo.database, {"w": rows(8), "more": rows(1, seed=1)}
    said = Description(parents=(first.id,), time=first.time, author="", message="", metadata={})
    encoded = encode_files(db, [StateFile(state)], parent=first, compression="auto")
    version = EncodedVersion.of(db, encoded, said)
    (pack,) = db.index.contents()
    once = IntegrityError(ErrorCode.CORRUPT_OBJECT, "only this once")
    db.index.distrust({pack.locations[0]: once})
    db.index.reconsider()
    write_version(db, version, "main", db.refs.head("main"))
    assert repo.load("main")["w"].equal(rows(8))


@pytest.mark.usefixtures("packs_apart")
def test_a_commit_stores_lost_chunks_again(
    repo: Repository, objects: CountingStore, after_encoding: list[Callable[[], object]]
) -> None:
    repo.commit({"w": rows(8)})

    def lose_packs() -> None:
        for info in list(objects.list("packs/")):
            objects.delete(info.name)
        repo.database.index.load()

    after_encoding.append(lose_packs)
    stored = repo.commit({"w": rows(8), "more": rows(1, seed=1)})
    with casweights.open(objects) as other:
        assert other.load(stored)["w"].equal(rows(8))
        assert other.load(stored)["more"].equal(rows(1, seed=1))


@pytest.mark.parametrize(
    "said",
    [
        {"metadata": {"a": [0] * (1 << 17)}},
        {"metadata": {"a": b"bytes"}},
        {"message": "\ud800"},
        {"author": "\ud800"},
    ],
    ids=["too much metadata", "bytes", "message", "author"],
)
def test_an_invalid_description_is_refused_before_anything_is_written(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    store = MemoryStore()
    (tmp_path / "weights").write_bytes(b"weights")
    with casweights.open(store, create=True) as repo:
        before = [info.name for info in store.list()]
        with pytest.raises(InvalidInputError) as caught:
            repo.commit(tmp_path, **said)
        assert caught.value.code is ErrorCode.BAD_ARGUMENT
        assert [info.name for info in store.list()] == before
