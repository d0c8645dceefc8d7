"""Differences between versions: what they save, what reading them costs, how damage spreads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import StoreConfig
from casweights.errors import IntegrityError
from casweights.events import Reporter
from casweights.format import names
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, ELEMENTS, State, history, step, weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.database.chain import Chain
    from casweights.ids import ChunkId
    from casweights.results import CheckoutStats

CONFIG = StoreConfig(chunk_size=CHUNK)
WORST_READ = 1.5  # times the bytes of a whole version; promised for every version of a history


def commit_all(repo: Repository, states: Sequence[State]) -> list[SnapshotId]:
    return [repo.commit(state).id for state in states]


def encodings(repo: Repository) -> dict[str, int]:
    return repo.stats().encodings


def chains(repo: Repository, version: SnapshotId) -> list[Chain]:
    repo._db.index.load()
    found = [repo._db.index.chain(chunk) for chunk, _ in repo.snapshot(version).pieces()]
    return [chain for chain in found if chain is not None]


class Fetched(Reporter):
    """A reporter that collects the bytes that each checkout read."""

    def __init__(self) -> None:
        self.nbytes: list[int] = []

    def checked_out(self, stats: CheckoutStats) -> None:
        self.nbytes.append(stats.fetched_bytes)


@pytest.fixture(scope="module", params=[0.003, 0.01, 0.1, 0.5])
def density(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(scope="module")
def long_history(density: float) -> tuple[CountingStore, list[State], list[SnapshotId]]:
    """150 versions, committed one after the other."""
    objects = CountingStore(MemoryStore())
    states = list(history(150, density))
    with casweights.open(objects, create=True, config=CONFIG, cache_size=1 << 20) as repo:
        return objects, states, commit_all(repo, states)


Long = tuple[CountingStore, list[State], list["SnapshotId"]]


def test_every_version_loads_bit_for_bit(long_history: Long) -> None:
    objects, states, ids = long_history
    with casweights.open(objects) as repo:
        for n in (0, 1, 7, 8, 9, 63, 64, 65, 100, 148, 149):
            assert_same_state(repo.load(ids[n]), states[n])


def test_no_version_is_expensive_to_read(long_history: Long) -> None:
    objects, _, _ = long_history
    with casweights.open(objects) as repo:
        versions = repo.stats().versions
    whole = versions[0].read_bytes
    assert max(version.read_bytes for version in versions) <= WORST_READ * whole
    assert max(version.longest_chain for version in versions) <= 100


def test_a_checkout_reads_the_bytes_that_stats_report(long_history: Long, tmp_path: Path) -> None:
    objects, _, ids = long_history
    reporter = Fetched()
    with casweights.open(objects, reporter=reporter) as repo:
        by_id = {version.id: version for version in repo.stats().versions}
        for version in ids[::50]:
            repo.checkout(version, tmp_path / str(version))
            assert reporter.nbytes[-1] == by_id[version].read_bytes


def test_a_follower_reads_about_one_step_per_version(
    long_history: Long, tmp_path: Path, density: float
) -> None:
    """A reader that has the previous version reads about one step, in spite of shortcuts."""
    objects, states, ids = long_history
    reporter = Fetched()
    with casweights.open(objects, reporter=reporter) as repo:
        for version in ids:
            repo.checkout(version, tmp_path)
        first, *others = reporter.nbytes
        each = sum(others) / len(others)
        assert_same_state(repo.load(ids[-1]), states[-1])
        one_step = sum(chain.frames[-1].frame.size for chain in chains(repo, ids[1]))
    assert each <= (1.1 * one_step if density < 0.5 else 0.7 * first)


def test_a_step_is_stored_in_few_bytes(repo: Repository) -> None:
    first, second = history(2, 0.01, chunks=4)
    repo.commit(first)
    repo.commit(second)
    _, version = repo.stats().versions
    changed = int((first["w"].view(torch.int16) != second["w"].view(torch.int16)).sum())
    assert version.stored_bytes < 1.4 * changed  # bytes; positions in 7 bits, a sign, and headers
    assert encodings(repo) == {"planes": 4, "sparse": 4}


def test_versions_that_share_nothing_are_stored_whole(repo: Repository) -> None:
    repo.commit({"w": weights(2, seed=0)})
    repo.commit({"w": weights(2, seed=1)})
    assert encodings(repo) == {"planes": 4}
    assert repo.stats().versions[-1].longest_chain == 1


def test_a_base_is_found_in_another_file(repo: Repository, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    first, second = history(2, 0.01)
    for name, state in (("one", first), ("two", second)):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / f"{name}.safetensors")
    repo.commit(tmp_path / "one")
    repo.commit(tmp_path / "two")
    assert encodings(repo)["sparse"] == 2


@pytest.mark.parametrize("change", ["dtype", "size"])
def test_a_chunk_of_another_dtype_or_size_is_no_base(repo: Repository, change: str) -> None:
    (state,) = history(1, 0.01, chunks=1)
    repo.commit(state)
    other = state["w"].view(torch.float16) if change == "dtype" else state["w"][: ELEMENTS // 2]
    other = step(other.view(torch.bfloat16), 0.01, 5).view(other.dtype)
    version = repo.commit({"w": other})
    assert {len(chain.frames) for chain in chains(repo, version.id)} == {1}
    assert torch.equal(repo.load(version)["w"].view(torch.int16), other.view(torch.int16))


def test_opaque_files_are_stored_as_differences(repo: Repository, tmp_path: Path) -> None:
    data = bytearray(weights(2).view(torch.uint8).numpy().tobytes())
    (tmp_path / "optimizer.bin").write_bytes(data)
    repo.commit(tmp_path)
    data[1000:1010] = bytes(10)
    (tmp_path / "optimizer.bin").write_bytes(data)
    version = repo.commit(tmp_path)
    assert repo.stats().versions[-1].stored_bytes < 100
    assert b"".join(repo.read(version, "optimizer.bin")) == data


def test_empty_and_tiny_tensors_survive_changes(repo: Repository, tmp_path: Path) -> None:
    repo.commit({"a": torch.zeros(0), "b": torch.tensor(1.5), "c": torch.arange(3)})
    repo.commit({"a": torch.zeros(0), "b": torch.tensor(2.5), "c": torch.arange(3) + 1})
    repo.commit({"a": torch.zeros(1), "b": torch.tensor([2.5]), "c": torch.arange(4)})
    assert repo.load("main~1")["b"] == 2.5
    assert repo.verify().problems == ()


def test_a_variant_without_a_parent_finds_its_base(repo: Repository) -> None:
    """A version without a parent is stored as differences from the branch that it resembles."""
    base = {"w": weights(4)}
    repo.commit({"unrelated": weights(1, seed=3)}, branch="other")
    repo.commit(base)
    repo.commit({"w": step(base["w"], 0.02, 1)}, branch="variant")
    assert encodings(repo) == {"planes": 5, "sparse": 4}
    variant = repo.commit({"w": weights(4, seed=9)}, branch="stranger")
    assert {len(chain.frames) for chain in chains(repo, variant.id)} == {1}
    assert variant.parents == ()


@pytest.mark.usefixtures("packs_apart")
def test_a_commit_succeeds_if_the_base_is_damaged(repo: Repository, objects: CountingStore) -> None:
    first, second = history(2, 0.01)
    repo.commit(first)
    (pack,) = objects.list(names.PACKS)
    objects.delete(pack.name)
    with casweights.open(objects) as other:
        version = other.commit(second)
        assert_same_state(other.load(version), second)
        assert encodings(other) == {"planes": 2}


def test_damage_in_a_chain_affects_only_versions_that_need_it(
    repo: Repository, objects: CountingStore
) -> None:
    """The error names the damaged chunk, and only versions that need it are affected."""
    states = list(history(5, 0.01))  # the fourth version has a shortcut
    ids = commit_all(repo, states)
    middle = chains(repo, ids[1])[0].frames[-1]
    flip_bit(objects, names.pack_name(middle.pack), middle.frame.offset + 1)
    with casweights.open(objects) as other:
        for n in (0, 3, 4):
            assert_same_state(other.load(ids[n]), states[n])
        for n in (1, 2):
            with pytest.raises(IntegrityError, match=str(middle.frame.chunk)):
                other.load(ids[n])
        assert str(middle.frame.chunk) in str(other.verify().problems[0])
        version = other.commit(states[2])  # chunks that cannot be rebuilt are stored again
        assert_same_state(other.load(version), states[2])


def test_local_chunks_that_are_wrong_are_not_used(repo: Repository, objects: CountingStore) -> None:
    """If a local file changes during a checkout, the chunk is read from the store instead."""

    class Wrong:
        is_used = True

        def __contains__(self, chunk: object, /) -> bool:
            return True

        def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
            out[:] = bytes(len(out))
            return True

    ids = commit_all(repo, list(history(3, 0.01)))
    with casweights.open(objects) as other:
        reader = other._db.reader.with_local(Wrong())
        for chunk, piece in other.snapshot(ids[2]).pieces():
            out = memoryview(bytearray(piece.nbytes))
            assert reader.readinto(chunk, out) > 0
            assert other._db.hasher(out) == chunk


def test_a_second_chain_is_read_if_the_first_is_damaged(long_history: Long, density: float) -> None:
    """A step that was stored along with a shortcut replaces the shortcut."""
    original, states, ids = long_history
    if density >= 0.1:
        pytest.skip("shortcuts do not pay where chains are short")
    objects = CountingStore(MemoryStore())
    for info in original.list():
        objects.put(info.name, [original.get(info.name)])
    with casweights.open(objects) as repo:
        repo._db.index.load()
        index = repo._db.index
        doubled = next(chunk for chunk in index if len(index.frames(chunk)) > 1)
        chain = index.chain(doubled)
        assert chain is not None
        shortcut = chain.frames[-1]
        flip_bit(objects, names.pack_name(shortcut.pack), shortcut.frame.offset + 1)
    with casweights.open(objects) as repo:
        assert_same_state(repo.load(ids[-1]), states[-1])
