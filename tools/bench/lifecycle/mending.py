"""Damage a run, and repair it from a plain directory of its newest version."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

import casweights
from casweights.config import KiB
from casweights.database.packs import list_packs, read_pack_index
from casweights.stores.memory import MemoryStore
from tools.bench.harness import measured

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.ids import ChunkId
    from casweights.results import RepairReport
    from casweights.stores.base import ObjectStore
    from tools.bench.harness import Result

SHARE = 0.01  # of all chunks
STEPS = 8
CHUNK = 64 * KiB


def row_repair(work: Path, chunks: int = 1000) -> list[Result]:
    """Damage a share of the chunks, repair, and count what the directory has and is not back."""
    store = _make(chunks)
    with casweights.open(store) as repository:
        repository.checkout("main", work / "newest")
        held = set(repository.snapshot("main").stored_chunks())
    damaged = _damage(store, SHARE)
    start = time.perf_counter()
    with casweights.open(store) as repository:
        report = repository.repair([work / "newest"], apply=True)
    seconds = time.perf_counter() - start
    missing = sum(not _is_back(store, chunk) for chunk in damaged & held)
    what = (
        f"9 chunks that the directory has and that are not back, of {len(damaged):,} damaged ones"
    )
    note = f"the directory has {len(damaged & held):,} of them; {_told(report, seconds)}"
    return [measured(what, missing, "chunks", target=0, note=note)]


def _make(chunks: int) -> MemoryStore:
    """Return a store of several versions; each step changes elements of half of the chunks."""
    store, numbers = MemoryStore(), np.random.default_rng(0)
    tensors = {f"layers.{n}.w": _weights(numbers) for n in range(chunks)}
    config = casweights.StoreConfig(chunk_size=CHUNK)
    with casweights.open(store, create=True, config=config) as repository:
        for _ in range(STEPS):
            repository.commit(tensors)
            for name in numbers.permutation(list(tensors))[: chunks // 2]:
                tensors[name] = _stepped(tensors[name], numbers)
    return store


def _weights(numbers: np.random.Generator) -> torch.Tensor:
    values = numbers.standard_normal(CHUNK // 2, dtype=np.float32)
    return torch.from_numpy(values).to(torch.bfloat16)


def _stepped(tensor: torch.Tensor, numbers: np.random.Generator) -> torch.Tensor:
    bits = tensor.view(torch.int16).clone()
    bits[torch.from_numpy(numbers.integers(0, len(bits), len(bits) // 100))] += 1
    return bits.view(torch.bfloat16)


def _damage(store: MemoryStore, share: float) -> set[ChunkId]:
    """Flip a bit in every frame of a share of the chunks, and return these."""
    frames: dict[ChunkId, list[tuple[str, int]]] = {}
    for info in list_packs(store):
        for at in read_pack_index(store, info):
            place = info.name, at.frame.offset + at.frame.size // 2
            frames.setdefault(at.frame.chunk, []).append(place)
    chance = random.Random(0)
    chosen = set(chance.sample(sorted(frames), max(1, int(share * len(frames)))))
    for name, offset in (place for chunk in chosen for place in frames[chunk]):
        data = bytearray(store.get(name))
        data[offset] ^= 1
        store.delete(name)
        store.put(name, [data])
    return chosen


def _is_back(store: ObjectStore, chunk: ChunkId) -> bool:
    with casweights.open(store) as repository:
        index, reader = repository.database.index, repository.database.reader
        chain = index.find_chain(chunk)
        if chain is None:
            return False
        try:
            reader.readinto(chunk, memoryview(bytearray(next(chain.back()).frame.raw_size)))
        except casweights.IntegrityError:
            return False
        return True


def _told(report: RepairReport, seconds: float) -> str:
    regained = report.rebuilt.get("the store", 0)
    given = sum(report.rebuilt.values()) - regained
    lost = sum(version.chunks for version in report.lost)
    return (
        f"{report.missing:,} chunks could not be rebuilt, {given:,} came from the directory, and "
        f"{regained:,} build on those; "
        f"{len(report.mended):,} versions are complete again, {len(report.lost):,} of {STEPS} "
        f"lack {lost:,} chunks in all; {seconds:.1f} s"
    )
