"""Generated stores of several versions and encodings, and damage to them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file

import casweights
from casweights.config import StoreConfig
from casweights.database.packs import list_packs, read_pack_index
from casweights.errors import CasweightsError
from casweights.operations.archiving import archive_carrying
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, State, step, weights

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.ids import ChunkId, SnapshotId
    from casweights.stores.base import ObjectStore

CONFIG = StoreConfig(chunk_size=CHUNK)


class Made(NamedTuple):
    """A store, and the states of its versions in the order of their commits."""

    store: ObjectStore
    states: dict[SnapshotId, State]


def make(versions: int, *, repacked: bool = False, archived: bool = False) -> Made:
    """Make a store: whole frames, sparse and dense differences, zeros, small tensors, text."""
    store = MemoryStore()
    states: dict[SnapshotId, State] = {}
    large, small = weights(3, seed=1), weights(1, seed=2)[:1000]
    with casweights.open(store, create=True, config=CONFIG, workers=1) as repo:
        for number in range(versions):
            state = {
                "layers.0.w": large,
                "layers.1.w": weights(1, seed=90 + number // 2),
                "layers.1.bias": small,
                "zeros": torch.zeros(CHUNK // 4),
                "counts": torch.arange(5000 * (1 + number % 2)),
            }
            states[repo.commit(state, message=f"step {number}").id] = state
            large = step(large, 0.01 if number % 2 else 0.5, seed=number + 10)
            small = step(small, 0.2, seed=number + 50)
            if repacked and number == versions // 2:
                repo.repack(grace=timedelta(0))
    if archived:
        with casweights.open(store, workers=1) as repo:
            archive_carrying(repo.database)
            repo.maintain(grace=timedelta(0))
    return Made(store, states)


def copy_of(store: ObjectStore, kind: type[MemoryStore] = MemoryStore) -> MemoryStore:
    """Return a store in memory with the same objects, and their times."""
    made = kind()
    for info in store.list():
        made.put(info.name, [store.get(info.name)])
        made._created[info.name] = info.created
    return made


def content(store: ObjectStore) -> dict[str, bytes]:
    """Return all objects of a store."""
    return {info.name: store.get(info.name) for info in store.list()}


def overwrite(store: ObjectStore, name: str, data: bytes) -> None:
    """Put other bytes under the name of an object."""
    store.delete(name)
    store.put(name, [data])


def flip(store: ObjectStore, name: str, at: int, bit: int = 0) -> None:
    """Flip a bit of an object."""
    data = bytearray(store.get(name)) or bytearray(1)
    data[at % len(data)] ^= 1 << bit
    overwrite(store, name, bytes(data))


def save(folder: Path, state: State, name: str = "model.safetensors") -> None:
    """Write a state as a plain directory."""
    folder.mkdir(exist_ok=True)
    tensors = {key: value.contiguous() for key, value in state.items()}
    save_file(tensors, folder / name, metadata={"format": "pt"})


def loads(repo: Repository, version: SnapshotId, state: State) -> bool:
    """Whether a version can be loaded; if it can, it must be this state."""
    try:
        loaded = repo.load(version)
    except CasweightsError:
        return False
    assert_same_state(loaded, state)
    return True


def readable(store: ObjectStore, states: dict[SnapshotId, State]) -> set[SnapshotId]:
    """Return the versions that a new handle can load, which must be the right states."""
    kind = type(store) if isinstance(store, MemoryStore) else MemoryStore
    with casweights.open(copy_of(store, kind), workers=1) as repo:
        return {version for version, state in states.items() if loads(repo, version, state)}


def frames_of(store: ObjectStore) -> dict[ChunkId, list[tuple[str, int, int]]]:
    """Return the object, offset and size of each frame of each chunk."""
    found: dict[ChunkId, list[tuple[str, int, int]]] = {}
    for info in list_packs(store):
        for at in read_pack_index(store, info):
            place = info.name, at.frame.offset, at.frame.size
            found.setdefault(at.frame.chunk, []).append(place)
    return found
