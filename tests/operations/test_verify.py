"""Verify and stats: what is damaged, missing or foreign is reported, and contents are counted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.errors import ErrorCode, IntegrityError
from casweights.stores.wrapper import WrapperStore
from casweights.testing.faults import flip_bit
from casweights.testing.trees import write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.stores.base import ObjectInfo
    from casweights.testing import CountingStore

CHUNK = 64 * KiB


def noise(chunks: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (chunks * CHUNK,), dtype=torch.uint8, generator=generator)


@pytest.fixture
def filled(repo: Repository) -> Repository:
    repo.commit({"a": noise(3, 0), "b": noise(2, 1)})
    repo.commit({"a": noise(3, 0), "b": noise(4, 2), "zero": torch.zeros(CHUNK)})
    repo.commit({"a": noise(3, 0)}, branch="other")
    repo.tag("v1", "main~1")
    return repo


def test_a_sound_store_has_no_problems(filled: Repository) -> None:
    for quick in (False, True):
        found = filled.verify(quick=quick)
        assert found.problems == ()
        assert (found.snapshots, found.packs, found.frames) == (
            3,
            3,
            (3 + 2 + 4 + 1) + 3 * 2,  # and a header and a list of chunks for each version
        )
        stats = filled.stats()
        assert found.nbytes == stats.pack_bytes + stats.snapshot_bytes


def test_an_empty_store_has_no_problems(repo: Repository) -> None:
    found = repo.verify()
    assert found.problems == ()
    assert (found.snapshots, found.packs, found.frames, found.nbytes) == (0, 0, 0, 0)
    assert repo.stats().versions == ()
    assert repo.stats().version_bytes == 0


def test_stats_count_chunks_encodings_and_versions(filled: Repository) -> None:
    found = filled.stats()
    assert (found.packs, found.chunks) == (3, 10)
    assert found.chunk_bytes == 9 * CHUNK + 4 * CHUNK - 3 * CHUNK
    assert found.encodings == {"raw": 9, "zstd": 1}
    assert [version.id for version in found.versions] == [
        filled.resolve("main~1"),
        filled.resolve("main"),
        filled.resolve("other"),
    ]
    assert [version.new_bytes for version in found.versions] == [5 * CHUNK, 5 * CHUNK, 0]
    assert [version.nbytes for version in found.versions] == [
        filled.snapshot(version.id).size for version in found.versions
    ]
    assert found.version_bytes == sum(version.nbytes for version in found.versions)
    assert 9 * CHUNK < sum(v.stored_bytes for v in found.versions) < found.pack_bytes


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("prefix", ["packs/", "snapshots/", "refs/heads/", "refs/tags/"])
@pytest.mark.parametrize("place", [0, 5, 20, -20, -1])
def test_a_flipped_bit_is_found_in_any_object(
    filled: Repository, objects: CountingStore, prefix: str, place: int
) -> None:
    info = next(objects.list(prefix))
    data = bytearray(objects.get(info.name))
    data[place] ^= 4
    objects.delete(info.name)
    objects.put(info.name, [data])
    problems = filled.verify().problems
    assert any(info.name in str(problem) for problem in problems)


@pytest.mark.usefixtures("packs_apart")
def test_missing_objects_are_reported(filled: Repository, objects: CountingStore) -> None:
    for info in list(objects.list("packs/")):
        objects.delete(info.name)
    gone = filled.resolve("main~1")
    objects.delete(f"snapshots/{gone}")
    problems = [str(problem) for problem in filled.verify().problems]
    assert any(f"its parent {gone} is not in the store" in problem for problem in problems)
    assert any(f"v1/000000000001 points to {gone}" in problem for problem in problems)
    lost = [problem for problem in problems if "no sound frame holds" in problem]
    assert len(lost) == 2
    assert all(problem.startswith("snapshots/") for problem in lost)
    assert all("2 of its headers and lists of chunks" in problem for problem in lost)
    assert {problem.code for problem in filled.verify().problems} == {ErrorCode.MISSING_CHUNK}


def test_foreign_objects_are_reported(filled: Repository, objects: CountingStore) -> None:
    objects.put("stranger", [b"x"])
    objects.put("packs/not-a-pack", [b"x" * 100])
    problems = [str(problem) for problem in filled.verify().problems]
    assert any("stranger" in problem for problem in problems)
    assert any("packs/not-a-pack" in problem for problem in problems)


@pytest.mark.usefixtures("packs_apart")
def test_a_damaged_frame_is_read_from_another_pack(objects: CountingStore, tmp_path: Path) -> None:
    """Two writers that did not see each other's packs have stored the same chunks."""
    config = StoreConfig(chunk_size=CHUNK)
    with (
        casweights.open(objects, create=True, config=config) as one,
        casweights.open(OldListing(objects)) as two,
    ):
        first = one.commit({"a": noise(3, 0)})
        write_tree({"more": noise(1, 1).numpy().tobytes()}, tmp_path)
        one.checkout(first, tmp_path / "out")
        shutil.move(tmp_path / "out" / "model.safetensors", tmp_path / "model.safetensors")
        (tmp_path / "out").rmdir()
        two.commit(tmp_path, branch="two")
    packs = [info.name for info in objects.list("packs/")]
    assert len(packs) == 2
    for name in packs:
        data = objects.get(name)
        for damaged in (None, data[:8] + bytes(2 * CHUNK) + data[8 + 2 * CHUNK :]):
            objects.delete(name)
            if damaged is not None:
                objects.put(name, [damaged])
            with casweights.open(objects) as repo:
                assert repo.load(first)["a"].equal(noise(3, 0))
                assert repo.load("two", include=["a"])["a"].equal(noise(3, 0))
            objects.delete(name)
        objects.put(name, [data])


class OldListing(WrapperStore):
    """A store that lists no packs, branches and signatures, as if its listings lagged."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        lagging = ("packs/", "refs/", "signatures/")
        return iter(()) if prefix in lagging else super().list(prefix)


@pytest.mark.usefixtures("packs_apart")
def test_a_commit_stores_chunks_of_unreadable_packs_again(
    filled: Repository, objects: CountingStore
) -> None:
    """A pack whose index is unreadable counts as missing, so its chunks are stored again."""
    for info in list(objects.list("packs/")):
        data = objects.get(info.name)
        objects.delete(info.name)
        objects.put(info.name, [data[:-1]])
    assert filled.verify().problems
    with casweights.open(objects) as repo:
        repo.commit({"a": noise(3, 0), "b": noise(2, 1)}, branch="repair")
        repo.commit({"a": noise(3, 0)}, branch="repair")
        zero = torch.zeros(CHUNK)
        repo.commit({"a": noise(3, 0), "b": noise(4, 2), "zero": zero}, branch="repair")
        assert all("may be truncated" in str(problem) for problem in repo.verify().problems)
        for ref in ("main", "main~1", "other", "v1", "repair"):
            repo.load(ref)


@pytest.mark.usefixtures("packs_apart")
def test_a_commit_stores_chunks_of_damaged_frames_again(objects: CountingStore) -> None:
    """The index is sound and a frame is damaged: a read detects it, the next commit repairs it."""
    with casweights.open(objects, create=True) as repo:
        repo.commit({"a": noise(3, 7)})
        (info,) = objects.list("packs/")
        flip_bit(objects, info.name, 100)
        with pytest.raises(IntegrityError, match=info.name):
            repo.load("main")
        repo.commit({"a": noise(3, 7)})
    with casweights.open(objects) as repo:
        assert (repo.load("main~1")["a"] == noise(3, 7)).all()


@pytest.mark.usefixtures("packs_apart")
def test_a_commit_does_not_rely_on_deleted_packs(
    filled: Repository, objects: CountingStore
) -> None:
    filled.commit({"a": noise(3, 0)}, branch="again")
    for info in list(objects.list("packs/")):
        objects.delete(info.name)
    filled.commit({"a": noise(3, 0)}, branch="again")
    with casweights.open(objects) as repo:
        repo.load("again")
