"""Torn tensors: versions can be read even if their tensors change while they are stored."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

import casweights
import casweights.content.states
from casweights.config import KiB, StoreConfig
from casweights.content.states import StateFile
from casweights.integrations.dcp import CasweightsWriter
from casweights.operations.commit import Description, commit_encoded
from casweights.operations.encode import encode_files
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.sync import devices
from casweights.system.buffers import copy
from casweights.testing.states import assert_same_tensor
from tests.integrations.dcp_verbs import save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights import Repository
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore
    from casweights.system.buffers import Buffer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

CHUNK = 64 * KiB
State = dict[str, torch.Tensor]


def state() -> State:
    """Return large and tiny tensors, dense and strided, compressible and not."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 15), 1 << 15, (5 * CHUNK // 2,), generator=generator)
    return {
        "noise": bits.to(torch.int16),
        "weights": torch.randn(2 * CHUNK // 2, generator=generator).bfloat16(),
        "zero": torch.zeros(CHUNK, dtype=torch.uint8),
        "strided": torch.randn(300, 200, generator=generator).T,
        "tiny": torch.randn(10, generator=generator),
        "tiny too": torch.randn(11, generator=generator),
    }


def write_to(tensors: State, only: str = "") -> None:
    """Change every element of all tensors, or of the one named `only`."""
    for name, tensor in tensors.items():
        if only in ("", name):
            bits = (
                tensor.view(torch.uint8) if tensor.is_contiguous() else tensor.T.view(torch.uint8)
            )
            bits.bitwise_xor_(0b10000001)


def commit(repo: Repository, tensors: State) -> None:
    repo.commit(tensors)


def commit_cast(repo: Repository, tensors: State) -> None:
    file = StateFile(tensors, lambda _, dtype: torch.float32 if dtype.is_floating_point else dtype)
    commit_file(repo, file)


def commit_part(repo: Repository, tensors: State) -> None:
    commit_file(repo, StateFile(tensors))


def commit_file(repo: Repository, file: StateFile) -> None:
    db = repo.database
    head = db.refs.head("main")
    parents = (head.snapshot,) if head else ()
    said = Description(parents=parents, time=datetime.now(UTC), author="", message="", metadata={})
    base = db.snapshots.load(parents[0], with_locations=True) if parents else None
    part = encode_files(db, [file], parent=base, compression="fast").durable(db)
    commit_encoded(db, part, said, "main", head)


def publish(compare: Any) -> Any:
    def entry(repo: Repository, tensors: State) -> None:
        with casweights.Publisher(repo, compare=compare) as publisher:
            publisher.publish(tensors)

    return entry


def save_sharded(repo: Repository, tensors: State) -> None:
    save(tensors, CasweightsWriter(repo, compression="fast"))


ENTRIES: dict[str, Any] = {
    "commit": commit,
    "parts": commit_part,
    "parts, cast": commit_cast,
    "publish, host": publish("host"),
    "publish, device": publish("device"),
    "publish, cache": publish("cache"),
    "dcp": save_sharded,
}


class Watched(WrapperStore):
    """A store that calls a function before it writes an object."""

    batch = MemoryStore.batch
    watcher: Callable[[], None] = staticmethod(lambda: None)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self.watcher()
        return super().put(name, parts)


@pytest.fixture
def watched() -> Iterator[Repository]:
    config = StoreConfig(chunk_size=CHUNK)
    with casweights.open(Watched(MemoryStore()), create=True, config=config, workers=2) as repo:
        yield repo


def assert_sound(store: ObjectStore) -> None:
    """Check that a new handle can read all versions."""
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
        versions = list(repo.log())
        for version in versions:
            for file in version.files:
                assert sum(map(len, repo.read(version.id, file.path))) == file.size
        assert versions


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_versions_of_tensors_that_change_between_hash_and_write_can_be_read(
    watched: Repository, entry: Any
) -> None:
    db, tensors, lock = watched.database, state(), threading.Lock()
    hasher, wrote = db.hasher, 0

    def disturb() -> None:
        nonlocal wrote
        with lock:
            wrote += 1
            write_to(tensors)

    def disturbing(data: Buffer) -> ChunkId:
        found = hasher(data)
        disturb()
        return found

    db.hasher = disturbing
    store = db.objects
    assert isinstance(store, Watched)
    store.watcher = disturb
    for _ in range(3):  # whole chunks, and differences
        entry(watched, tensors)
        disturb()
    assert wrote > 20
    db.hasher, store.watcher = hasher, Watched.watcher
    assert_sound(store)

    quiet = watched.commit({name: tensor.clone() for name, tensor in tensors.items()})
    assert_sound(store)
    with casweights.open(store) as repo:
        for name, tensor in repo.load(quiet).items():
            assert_same_tensor(tensor, tensors[name].contiguous(), name)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_versions_of_tensors_that_another_thread_writes_to_can_be_read(
    watched: Repository, entry: Any
) -> None:
    tensors, stop = state(), threading.Event()

    def write() -> None:
        while not stop.is_set():
            for name in tensors:
                write_to(tensors, name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            entry(watched, tensors)
    finally:
        stop.set()
        writer.join()
    watched.commit(tensors)
    assert_sound(watched.database.store)


def test_unchanged_tensors_are_hashed_without_a_copy(
    watched: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.randn(40 * CHUNK // 4)}
    copied: list[int] = []

    def counting(out: memoryview, data: memoryview) -> None:
        copied.append(len(data))
        copy(out, data)

    monkeypatch.setattr(casweights.content.states, "copy", counting)
    watched.commit(state)
    assert sum(copied) == 40 * CHUNK
    copied.clear()
    same = watched.commit(state)
    assert sum(copied) < 10 * CHUNK  # copied until the first chunks turn out to be known
    before = state["w"].clone()
    state["w"][-1] += 1
    copied.clear()
    other = watched.commit(state)
    assert 0 < sum(copied) < 10 * CHUNK
    assert watched.load(other)["w"].equal(state["w"])
    assert watched.load(same)["w"].equal(before)


def test_a_planner_resolves_each_tensor_once(watched: Repository) -> None:
    """A tensor with several chunks is resolved once, since a planner may compute it."""
    asked: list[str] = []

    class Planner(DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            asked.append(write_item.index.fqn)
            return super().resolve_data(write_item)

    save({"a": torch.randn(CHUNK)}, CasweightsWriter(watched), planner=Planner())
    assert asked == ["a"]


def test_a_shadow_matches_its_changes_although_the_tensor_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    live = torch.randint(0, 100, (1000,), dtype=torch.int16, generator=generator)
    shadow, mirror = live.clone(), live.clone()
    live[::3] += 1
    nonzero = torch.nonzero

    def then_changed(tensor: torch.Tensor) -> torch.Tensor:
        found = nonzero(tensor)
        live.add_(1)
        return found

    monkeypatch.setattr(torch, "nonzero", then_changed)
    for _ in range(2):
        memory = mirror.view(torch.uint8).numpy().data
        for number, change in devices.device_changes(live, shadow, 512, advance=True):
            change.exchange(memory[number * 512 : (number + 1) * 512])
        assert shadow.equal(mirror)
    monkeypatch.undo()
    for number, change in devices.device_changes(live, shadow, 512, advance=True):
        change.exchange(memory[number * 512 : (number + 1) * 512])
    assert mirror.equal(live)
