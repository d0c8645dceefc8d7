"""Repair from each kind of source, and what it does with each kind of damage."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.database.packs import list_packs
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from casweights.format import names
from casweights.format.pack import pack_id
from casweights.stores.cached import CachedStore
from casweights.stores.memory import MemoryStore
from casweights.testing.hub import LocalHub
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, step, weights
from tests.large_versions import packs_apart
from tests.operations.damage import (
    CONFIG,
    content,
    copy_of,
    flip,
    frames_of,
    make,
    overwrite,
    readable,
    save,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.results import RepairReport


def repaired(store: MemoryStore, *sources: object) -> RepairReport:
    with casweights.open(store, workers=1) as repo:
        report = repo.repair(sources, apply=True)  # type: ignore[arg-type]
        assert not report.lost
    with casweights.open(store, workers=1) as repo:
        assert repo.verify().problems == ()
    return report


def damage_all_frames(store: MemoryStore) -> int:
    """Flip a byte in the middle of each object with frames; return their number."""
    damaged = [info for info in list_packs(store) if info.size > CHUNK]
    for info in damaged:
        flip(store, info.name, 1000)
    return len(damaged)


@pytest.mark.usefixtures("both_forms")
def test_a_damaged_frame_is_replaced_by_another_frame_of_its_chunk() -> None:
    store, state = MemoryStore(), {"w": weights(3)}
    with casweights.open(store, create=True, config=CONFIG) as repo:
        version = repo.commit(state)
    damage_all_frames(store)
    with casweights.open(store) as repo:
        repo.verify()  # from now on, writers know of the damage
        again = repo.commit(state, branch="again")
    report = repaired(store)
    assert (report.damaged, report.missing, report.rebuilt, report.replaced) == (1, 0, {}, 1)
    assert readable(store, {version.id: state, again.id: state}) == {version.id, again.id}
    assert not list(store.list(names.DAMAGED)), "the findings are withdrawn"


def test_the_memory_of_the_handle_is_a_source() -> None:
    store, state = MemoryStore(), {"w": weights(3)}
    with casweights.open(store, create=True, config=CONFIG, cache_size=1 << 24) as repo:
        version = repo.commit(state)
        assert damage_all_frames(store) == 1
        report = repo.repair(apply=True)
        assert report.rebuilt == {"this machine": 1}
        assert_same_state(repo.load(version.id), state)
    assert readable(store, {version.id: state}) == {version.id}


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize("where", [1000, -20])
def test_the_disk_cache_of_this_machine_is_a_source(tmp_path: Path, where: int) -> None:
    made = make(3)
    inner = copy_of(made.store)
    store = CachedStore(inner, tmp_path / "cache", 1 << 28, "key")
    with casweights.open(store) as repo:
        for version in made.states:
            repo.load(version)
        for info in list(list_packs(inner)):
            store.read(info.name, 1 << 28)  # whole objects, as their writer keeps them
    for info in list(list_packs(inner)):
        flip(inner, info.name, where)
    assert not readable(inner, made.states)
    with casweights.open(store) as repo:
        assert repo.verify().problems, "verify looks past the cache"
        told = repo.repair()
        report = repo.repair(apply=True)
        assert told.rebuilt == report.rebuilt != {}
        assert set(report.rebuilt) <= {"this machine", "the store"}
    assert readable(inner, made.states) == made.states.keys()
    with casweights.open(inner) as repo:
        assert repo.verify().problems == ()


def test_a_copy_in_the_disk_cache_is_used_although_a_part_of_it_is_damaged(tmp_path: Path) -> None:
    """Each of two chunks is lost in the store; the cached copy of their pack has one of them."""
    inner, state = MemoryStore(), {"w": weights(3)}
    store = CachedStore(inner, tmp_path / "cache", 1 << 28, "key")
    with packs_apart(), casweights.open(store, create=True, config=CONFIG) as repo:
        version = repo.commit(state)
    [pack] = inner.list(names.PACKS)
    store.read(pack.name, 1 << 28)  # as a whole, as its writer keeps it
    sizes = sorted(at for places in frames_of(inner).values() for at in places)
    (_, first, _), (_, second, _) = [at for at in sizes if at[2] > CHUNK // 2][:2]
    (copy,) = (path for path in (tmp_path / "cache").rglob(f"0-{pack.size}*") if path.is_file())
    cached = bytearray(inner.get(pack.name))
    assert copy.read_bytes() == cached
    cached[first + 100] ^= 1
    copy.write_bytes(cached)
    for offset in (first, second):
        flip(inner, pack.name, offset + 200)
    with casweights.open(store) as repo:
        report = repo.repair(apply=True)
    assert (report.missing, report.rebuilt) == (2, {"this machine": 1})
    assert [(lost.snapshot, lost.chunks) for lost in report.lost] == [(version.id, 1)]


def test_a_chunk_comes_back_by_the_base_that_no_version_of_the_store_has(tmp_path: Path) -> None:
    """The first version went with its frames; a plain copy of it is left."""
    store, states = MemoryStore(), [{"w": weights(3)}]
    states.append({"w": step(states[0]["w"], 0.01, seed=1)})
    with casweights.open(store, create=True, config=CONFIG) as repo:
        first, second = (repo.commit(state) for state in states)
    save(tmp_path, states[0])
    store.delete(names.snapshot_name(first.id))
    assert not readable(store, {second.id: states[1]})
    with casweights.open(store, workers=1) as repo:
        report = repo.repair([tmp_path], apply=True)
        assert report.rebuilt.keys() == {str(tmp_path), "the store"}
        assert [lost.snapshot for lost in report.lost] == [first.id]
    assert readable(store, {second.id: states[1]}) == {second.id}


def test_a_version_that_was_deleted_comes_back_from_a_store_with_its_history() -> None:
    made = make(4)
    store = copy_of(made.store)
    for info in list(store.list(names.SNAPSHOTS))[:-1]:
        store.delete(info.name)
    report = repaired(store, made.store)
    assert len(report.restored) == 3
    assert readable(store, made.states) == made.states.keys()


def test_versions_come_back_although_their_archive_has_the_name_of_a_damaged_one() -> None:
    made = make(4, archived=True)
    store = copy_of(made.store)
    for info in store.list(names.ARCHIVES):
        store.delete(info.name)
    repaired(store, made.store)
    [archive] = store.list(names.ARCHIVES)
    flip(store, archive.name, archive.size - 1)  # a second repair writes the same one
    report = repaired(store, made.store)
    assert len(report.restored) == 4
    assert readable(store, made.states) == made.states.keys()


@pytest.mark.parametrize("damaged", [True, False])
def test_a_directory_may_have_other_files_and_damaged_ones(tmp_path: Path, damaged: bool) -> None:
    store, state = MemoryStore(), {"w": weights(3), "b": weights(1, seed=5)[:100]}
    save(tmp_path / "model", state)
    (tmp_path / "model" / "notes.txt").write_bytes(os.urandom(3 * CHUNK))
    with casweights.open(store, create=True, config=CONFIG) as repo:
        repo.commit(tmp_path / "model")
        repo.commit(tmp_path / "model", branch="plain", opaque=["*"])
    for info in list(list_packs(store)):
        data = store.get(info.name)
        half = len(data) // 2
        overwrite(store, info.name, data[:8] + bytes(half - 8) + data[half:])
    if damaged:  # the header alone: the bytes behind it are sound
        path = tmp_path / "model" / "model.safetensors"
        path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with casweights.open(store) as repo:
        report = repo.repair([tmp_path / "model"], apply=True)
    assert bool(report.lost) == damaged
    with casweights.open(store) as repo:
        assert bool(repo.verify().problems) == damaged
        repo.checkout("main", tmp_path / "out", include=["notes.txt"])
    assert (tmp_path / "out" / "notes.txt").read_bytes() == (
        tmp_path / "model" / "notes.txt"
    ).read_bytes()


def test_what_builds_on_a_rebuilt_chunk_is_readable_again(tmp_path: Path) -> None:
    """A directory of the oldest version mends the newest, which is a difference from it."""
    store = MemoryStore()
    first = {"w": weights(2)}
    second = {"w": step(first["w"], 0.01, 1)}
    with casweights.open(store, create=True, config=CONFIG) as repo:
        old, new = repo.commit(first), repo.commit(second)
    flip(store, names.snapshot_name(old.id), 100)
    assert readable(store, {old.id: first, new.id: second}) == set()
    save(tmp_path / "model", first)
    report = repaired(store, tmp_path / "model")
    assert report.rebuilt == {str(tmp_path / "model"): 1, "the store": 1}
    assert report.mended == tuple(sorted([old.id, new.id]))
    assert readable(store, {old.id: first, new.id: second}) == {old.id, new.id}


def test_a_pack_of_a_newer_format_stays() -> None:
    with packs_apart():
        made = make(2)
    store = copy_of(made.store)
    data = bytearray(store.get(next(iter(store.list(names.PACKS))).name))
    data[5] = 3
    size = int.from_bytes(data[-8:-4], "little")
    store.put(names.pack_name(pack_id(bytes(data[:8]), bytes(data[-8 - size : -8]))), [data])
    before = content(store)
    with casweights.open(store) as repo, pytest.raises(UnsupportedError, match="upgrade"):
        repo.repair(apply=True)
    assert content(store) == before


def test_a_source_must_exist_and_fit(repo: Repository, tmp_path: Path) -> None:
    other = MemoryStore()
    config = casweights.StoreConfig(chunk_size=128 * 1024)
    casweights.open(other, create=True, config=config).close()
    for source, word in ((other, "chunk"), (tmp_path / "gone", "gone"), ("hf://one", "hf://")):
        with pytest.raises(InvalidInputError, match=word):
            repo.repair([source])
    with pytest.raises(InvalidInputError, match="no casweights store"):
        repo.repair([MemoryStore()])


def test_a_record_of_a_loss_is_withdrawn_when_the_version_is_complete(tmp_path: Path) -> None:
    made = make(1)
    [(version, state)] = made.states.items()
    store = copy_of(made.store)
    damage_all_frames(store)
    with casweights.open(store) as repo:
        [lost] = repo.repair(apply=True).lost
        assert (lost.snapshot, lost.number, lost.message) == (version, 1, "step 0")
        [loss] = repo.database.losses.load(version)
        assert len(loss.chunks) == lost.chunks == 1
        found = repo.verify()
        assert found.lost == 1
        assert any("a known loss" in problem.message for problem in found.problems)
    save(tmp_path / "model", state)
    repaired(store, tmp_path / "model")
    assert not list(store.list(names.LOST))


def test_a_damaged_record_is_reported() -> None:
    made = make(1)
    store = copy_of(made.store)
    damage_all_frames(store)
    with casweights.open(store) as repo:
        repo.repair(apply=True)
        [record] = store.list(names.LOST)
        flip(store, record.name, 20)
        store.put("lost/" + "x" * 64, [b"x"])
        problems = [problem.message for problem in repo.verify().problems]
    assert any(record.name in problem for problem in problems)
    assert any("lost/xxxx" in problem for problem in problems)


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


def test_a_model_repository_of_the_hub_is_a_source(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    made = make(2)
    api = HfApi(endpoint=hub.url, token="any")
    api.create_repo("me/model")
    commits: list[str] = []
    for state in made.states.values():
        save(tmp_path / "model", state)
        done = api.upload_file(
            path_or_fileobj=tmp_path / "model" / "model.safetensors",
            path_in_repo="part/model.safetensors",
            repo_id="me/model",
        )
        commits.append(done.oid)
    store = copy_of(made.store)
    for info in list(list_packs(store)):
        flip(store, info.name, 1000)
    with casweights.open(store) as repo:
        report = repo.repair(["hf://me/model"], apply=True)
    old, new = made.states
    assert (report.mended, [lost.snapshot for lost in report.lost]) == ((new,), [old])
    assert report.rebuilt == {"hf://me/model": report.missing - 1}
    repaired(store, f"hf://models/me/model@{commits[0]}")
    assert readable(store, made.states) == made.states.keys()


def test_errors_of_the_hub_are_named(
    hub: LocalHub, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    with pytest.raises(NotFoundError, match=r"model repository me/none.*: check with `hf auth"):
        repo.repair(["hf://me/none"])


def test_a_store_that_cannot_be_written_is_an_error_and_stays(tmp_path: Path) -> None:
    class Full(MemoryStore):
        def put(self, name: str, parts: object) -> bool:
            raise StoreError(ErrorCode.NO_SPACE, "full")

    made = make(1)
    store = Full()
    for name, data in content(made.store).items():
        MemoryStore.put(store, name, [data])
    damage = bytearray(store.get(names.snapshot_name(next(iter(made.states)))))
    damage[1000] ^= 1
    store.delete(names.snapshot_name(next(iter(made.states))))
    MemoryStore.put(store, names.snapshot_name(next(iter(made.states))), [bytes(damage)])
    before = content(store)
    save(tmp_path / "model", next(iter(made.states.values())))
    with casweights.open(store) as repo, pytest.raises(StoreError):
        repo.repair([tmp_path / "model"], apply=True)
    assert content(store) == before


def test_an_onlooker_writes_nothing(repo: Repository) -> None:
    with repo.database.onlooker() as look:
        for call in (lambda: look.store.put("a", [b"a"]), lambda: look.store.delete("a")):
            with pytest.raises(UnsupportedError):
                call()


def test_the_bytes_of_zeros_are_no_match_for_a_forged_name(tmp_path: Path) -> None:
    """A source whose bytes have another digest adds nothing."""
    made = make(1)
    store = copy_of(made.store)
    damage_all_frames(store)
    [(version, state)] = made.states.items()
    wrong = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    save(tmp_path / "model", wrong)
    with casweights.open(store) as repo:
        report = repo.repair([tmp_path / "model"], apply=True)
        assert (report.rebuilt, [lost.snapshot for lost in report.lost]) == ({}, [version])
        with pytest.raises(IntegrityError):
            repo.load(version)
