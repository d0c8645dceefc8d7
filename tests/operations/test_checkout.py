"""Checkout: writes versions to directories, and changes only what differs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.torch
import torch

import casweights
from casweights.config import KiB
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.system import staging
from casweights.system.folders import Folder
from casweights.testing.trees import Link, read_tree, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.testing import CountingStore

CHUNK = 64 * KiB
NOISE = np.random.default_rng(0).bytes(5 * CHUNK)
TREE = {
    "config.json": b'{"layers": 2}',
    "weights/model.safetensors": safetensors.torch.save({"w": torch.arange(4), "v": torch.ones(3)}),
    "weights/optimizer.pt": NOISE,
    "empty": b"",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tree(TREE, tmp_path / "model")
    return tmp_path / "model"


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and modification time of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_checkout_creates_missing_folders(repo: Repository, model: Path, tmp_path: Path) -> None:
    snapshot = repo.commit(model)
    assert repo.checkout("main", tmp_path / "a/new/folder") == snapshot
    assert read_tree(tmp_path / "a/new/folder") == TREE


def test_equal_files_are_left_alone(repo: Repository, objects: CountingStore, model: Path) -> None:
    repo.commit(model)
    before = state_of(model)
    objects.reset()
    repo.checkout("main", model)
    assert state_of(model) == before
    assert objects.read_bytes("packs/", "snapshots/") == 0


@pytest.mark.usefixtures("packs_apart")
def test_only_chunks_that_differ_are_read(
    repo: Repository, objects: CountingStore, model: Path
) -> None:
    repo.commit(model, compression="fast")
    before = state_of(model)
    changed = bytearray(NOISE)
    changed[3 * CHUNK + 5] ^= 1
    (model / "weights/optimizer.pt").write_bytes(changed)
    objects.reset()
    repo.checkout("main", model, overwrite=True)
    assert read_tree(model) == TREE
    assert objects.read_bytes("packs/") == CHUNK
    after = state_of(model)
    touched = {path for path in after if after[path] != before[path]}
    assert touched == {str(model / "weights/optimizer.pt")}


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize(
    "length", [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK - 1, 5 * CHUNK + 1, 9 * CHUNK]
)
def test_files_of_another_size_fetch_only_missing_chunks(
    repo: Repository, objects: CountingStore, model: Path, length: int
) -> None:
    repo.commit(model, compression="fast")
    (model / "weights/optimizer.pt").write_bytes((NOISE * 2)[:length])
    objects.reset()
    repo.checkout("main", model, overwrite=True)
    assert read_tree(model) == TREE
    assert objects.read_bytes("packs/") == 5 * CHUNK - min(length // CHUNK, 5) * CHUNK


@pytest.mark.parametrize("step", ["2", "20000000000"])
def test_a_new_header_over_the_same_tensors_fetches_nothing(
    repo: Repository, objects: CountingStore, tmp_path: Path, step: str
) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {"w": torch.from_numpy(np.frombuffer(NOISE, np.uint8).copy())}
    safetensors.torch.save_file(tensors, file, {"step": "1"})
    snapshot = repo.commit(file, compression="fast")
    expected = file.read_bytes()
    safetensors.torch.save_file(tensors, file, {"step": step})
    objects.reset()
    repo.checkout(snapshot, tmp_path, overwrite=True)
    assert file.read_bytes() == expected
    assert objects.read_bytes("packs/") == 0


@pytest.mark.usefixtures("packs_apart")
def test_an_update_fetches_only_the_changed_tensor(
    repo: Repository, objects: CountingStore, tmp_path: Path
) -> None:
    state = {f"layers.{n}": torch.full((CHUNK,), n, dtype=torch.uint8) for n in range(10)}
    first = repo.commit(state)
    state["layers.3"] = torch.from_numpy(np.frombuffer(NOISE[:CHUNK], np.uint8).copy())
    second = repo.commit(state)
    repo.checkout(first, tmp_path)
    objects.reset()
    repo.checkout(second, tmp_path)
    assert objects.read_bytes("packs/") == CHUNK
    repo.checkout(first, tmp_path)
    assert safetensors.torch.load_file(tmp_path / "model.safetensors")["layers.3"][0] == 3


@pytest.mark.usefixtures("packs_apart")
def test_tensors_that_moved_inside_the_file_are_not_fetched(
    repo: Repository, objects: CountingStore, tmp_path: Path
) -> None:
    tensor = torch.from_numpy(np.frombuffer(NOISE, np.uint8).copy())
    first = repo.commit({"a": tensor}, compression="fast")
    second = repo.commit({"new": tensor[:CHUNK].flip(0), "z": tensor}, compression="fast")
    repo.checkout(first, tmp_path)
    objects.reset()
    repo.checkout(second, tmp_path)
    assert objects.read_bytes("packs/") == CHUNK
    objects.reset()
    repo.checkout(first, tmp_path)
    assert objects.read_bytes("packs/") == 0
    assert (tmp_path / "model.safetensors").read_bytes() == b"".join(
        repo.read(first, "model.safetensors")
    )


def test_extra_files_are_kept(repo: Repository, model: Path) -> None:
    repo.commit(model)
    extra = {"notes.txt": b"mine", "weights/more.bin": b"mine", "own/folder/x": b"mine"}
    write_tree(extra, model)
    repo.checkout("main", model)
    assert read_tree(model) == TREE | extra


def test_delete_removes_extra_files_and_empty_folders(repo: Repository, model: Path) -> None:
    repo.commit(model)
    write_tree({"notes.txt": b"", "own/folder/x": b"", "weights/link": Link("empty")}, model)
    (model / "folder link").symlink_to(model / "weights")
    (model / "broken link").symlink_to("nowhere")
    before = state_of(model / "weights")
    repo.checkout("main", model, delete=True)
    assert read_tree(model) == TREE
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "empty", "weights"]
    assert state_of(model / "weights").items() <= before.items()


def test_delete_keeps_files_that_a_commit_leaves_out(repo: Repository, model: Path) -> None:
    repo.commit(model)
    spared = {
        ".git/config": b"x",
        "weights/.git/HEAD": b"x",
        ".cache/huggingface/x": b"x",
        "store/casweights.json": b"{}",
        "store/packs/x": b"x",
    }
    write_tree(spared, model)
    repo.checkout("main", model, delete=True)
    assert read_tree(model) == TREE | spared


def test_delete_does_not_follow_links(repo: Repository, model: Path, tmp_path: Path) -> None:
    repo.commit(model)
    write_tree({"elsewhere/precious": b"x"}, tmp_path)
    (model / "link").symlink_to(tmp_path / "elsewhere")
    repo.checkout("main", model, delete=True)
    assert not (model / "link").exists()
    assert (tmp_path / "elsewhere/precious").read_bytes() == b"x"


def test_a_link_at_the_path_of_a_file_is_replaced(
    repo: Repository, model: Path, tmp_path: Path
) -> None:
    repo.commit(model)
    (tmp_path / "cache").write_bytes(TREE["config.json"])
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(tmp_path / "cache")
    repo.checkout("main", model)
    assert not (model / "config.json").is_symlink()
    assert read_tree(model) == TREE
    assert (tmp_path / "cache").read_bytes() == TREE["config.json"]


def test_a_hard_link_elsewhere_is_not_written_through(
    repo: Repository, model: Path, tmp_path: Path
) -> None:
    repo.commit(model)
    (model / "config.json").write_bytes(b"changed")
    os.link(model / "config.json", tmp_path / "theirs")
    repo.checkout("main", model, overwrite=True)
    assert (tmp_path / "theirs").read_bytes() == b"changed"


def test_obstacles_in_the_directory_are_refused(
    repo: Repository, model: Path, tmp_path: Path
) -> None:
    repo.commit(model)
    out = tmp_path / "out"
    for obstacle in ("weights", "config.json", "link"):
        write_tree({"old": b"x"}, out)
        if obstacle == "weights":
            (out / "weights").write_bytes(b"a file")
        elif obstacle == "config.json":
            (out / "config.json").mkdir()
        else:
            (out / "weights").unlink()
            (out / "config.json").rmdir()
            (tmp_path / "elsewhere").mkdir()
            (out / "weights").symlink_to(tmp_path / "elsewhere")
        before = read_tree(out)
        with pytest.raises(InvalidInputError, match="is in the way") as caught:
            repo.checkout("main", out)
        assert caught.value.code is ErrorCode.BAD_PATH
        assert read_tree(out) == before
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_as_target_is_refused(repo: Repository, model: Path) -> None:
    repo.commit(model)
    before = read_tree(model)
    with pytest.raises(InvalidInputError, match="is in the way"):
        repo.checkout("main", model / "config.json")
    assert read_tree(model) == before


@pytest.mark.parametrize("place", ["", "packs", "packs/deeper", "new/folder"])
@pytest.mark.parametrize("delete", [False, True])
def test_a_target_inside_a_store_is_refused(
    repo: Repository, model: Path, tmp_path: Path, place: str, delete: bool
) -> None:
    repo.commit(model)
    with casweights.open(tmp_path / "store", create=True) as other:
        other.commit(model)
        before = read_tree(tmp_path / "store")
        (tmp_path / "link").symlink_to("store")
        for store in ("store", "link"):
            with pytest.raises(InvalidInputError, match="store is a casweights store"):
                repo.checkout("main", tmp_path / store / place, delete=delete)
        assert read_tree(tmp_path / "store") == before
        assert not other.verify().problems


def test_a_link_to_a_folder_as_target_is_followed(
    repo: Repository, model: Path, tmp_path: Path
) -> None:
    """The user chose the link, so the folder that it points to is the target."""
    repo.commit(model)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    repo.checkout("main", tmp_path / "link")
    assert read_tree(tmp_path / "real") == TREE


def test_include_selects_files_by_path(repo: Repository, model: Path, tmp_path: Path) -> None:
    repo.commit(model)
    repo.checkout("main", tmp_path / "out", include=["*.json", "weights/opt*"])
    assert read_tree(tmp_path / "out").keys() == {"config.json", "weights/optimizer.pt"}


def test_include_selects_tensors_by_name(
    repo: Repository, objects: CountingStore, tmp_path: Path
) -> None:
    names = [f"model.layers.{n}.w" for n in range(12)]
    state = {name: torch.full((CHUNK,), n, dtype=torch.uint8) for n, name in enumerate(names)}
    safetensors.torch.save_file(state, tmp_path / "m.safetensors", {"format": "pt"})
    repo.commit(tmp_path / "m.safetensors", compression="fast")
    objects.reset()
    repo.checkout("main", tmp_path / "out", include=["model.layers.1.*", "model.layers.10.*"])
    part = (tmp_path / "out/m.safetensors").read_bytes()
    chosen = {name: state[name] for name in ("model.layers.1.w", "model.layers.10.w")}
    assert part == safetensors.torch.save(chosen, {"format": "pt"})
    assert objects.read_bytes("packs/", "snapshots/") <= 2 * CHUNK


def test_a_part_of_a_nested_state_has_no_tree(repo: Repository, tmp_path: Path) -> None:
    """The tree describes the whole state and would not fit a part of it."""
    state = {"model": {"a": torch.ones(2), "b": torch.zeros(2)}, "step": 5}
    snapshot = repo.commit(state)
    repo.checkout(snapshot, tmp_path, include=["model.a"])
    assert repo.load(repo.commit(tmp_path, branch="part")).keys() == {"model.a"}
    assert repo.load(snapshot, include=["model.a"]).keys() == {"model.a"}


def test_an_include_without_matches_is_refused(
    repo: Repository, model: Path, tmp_path: Path
) -> None:
    repo.commit(model)
    for include in (["nothing*"], []):
        with pytest.raises(NotFoundError) as caught:
            repo.checkout("main", tmp_path / "out", include=include)
        assert caught.value.code is ErrorCode.FILE_NOT_FOUND
    assert not (tmp_path / "out").exists()


def test_a_single_string_is_one_pattern(repo: Repository, model: Path, tmp_path: Path) -> None:
    repo.commit(model)
    repo.checkout("main", tmp_path / "out", include="*.json")
    assert read_tree(tmp_path / "out").keys() == {"config.json"}
    assert repo.load("main", include="v").keys() == {"v"}
    assert len(repo.commit(model, exclude="*.pt").files) == 3
    headers = [file.header for file in repo.commit(model, opaque="*.safetensors").files]
    assert headers == [None] * 4
    with pytest.raises(NotFoundError, match=r"matches '\*\.txt'"):
        repo.load("main", include="*.txt")


def test_an_empty_path_is_not_the_current_directory(
    repo: Repository, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    with pytest.raises(InvalidInputError, match="the path is empty"):
        repo.commit("")
    repo.commit(".")
    (model / "extra").touch()
    with pytest.raises(InvalidInputError, match="the path is empty"):
        repo.checkout("main", "", delete=True)
    assert (model / "extra").exists()


def test_include_with_delete_is_refused(repo: Repository, model: Path) -> None:
    repo.commit(model)
    with pytest.raises(InvalidInputError, match="partial checkout cannot delete"):
        repo.checkout("main", model, include=["*.json"], delete=True)
    assert read_tree(model) == TREE


def test_drafts_of_a_killed_checkout_are_removed(
    repo: Repository, model: Path, tmp_path: Path
) -> None:
    repo.commit(model)
    (tmp_path / "out" / f"{staging.PREFIX}dead").mkdir(parents=True)
    (tmp_path / "out" / f"{staging.PREFIX}dead" / "0").write_bytes(b"half")
    repo.checkout("main", tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("*")}
    assert found == {"config.json", "empty", "weights"}


@pytest.mark.usefixtures("packs_apart")
def test_a_damaged_chunk_touches_no_file(
    repo: Repository, objects: CountingStore, model: Path
) -> None:
    repo.commit(model)
    (model / "weights/optimizer.pt").write_bytes(b"old")
    (model / "config.json").write_bytes(b"old")
    before = read_tree(model)
    for info in list(objects.list("packs/")):
        data = bytearray(objects.get(info.name))
        data[1000] ^= 1
        objects.delete(info.name)
        objects.put(info.name, [data])
    with pytest.raises(IntegrityError) as caught:
        repo.checkout("main", model, overwrite=True)
    assert caught.value.code is ErrorCode.CORRUPT_OBJECT
    assert read_tree(model) == before


def test_read_returns_the_bytes_of_a_file(repo: Repository, model: Path) -> None:
    repo.commit(model)
    for path, content in TREE.items():
        assert b"".join(repo.read("main", path)) == content
    with pytest.raises(NotFoundError) as caught:
        repo.read("main", "nothing")
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND


def test_two_files_can_be_read_alternately(repo: Repository, tmp_path: Path) -> None:
    write_tree({"a": NOISE, "b": NOISE[::-1]}, tmp_path)
    repo.commit(tmp_path)
    pairs = list(zip(repo.read("main", "a"), repo.read("main", "b"), strict=True))
    assert b"".join(a for a, _ in pairs) == NOISE
    assert b"".join(b for _, b in pairs) == NOISE[::-1]


def test_repositories_are_not_written_to(repo: Repository, tmp_path: Path) -> None:
    """A version may contain such files, and git runs commands from its configuration."""
    write_tree({".git/config": b"[core]", "a": b"a"}, tmp_path / "model")
    repo.commit(tmp_path / "model", exclude=())
    with pytest.raises(InvalidInputError, match=r"\.git/config") as caught:
        repo.checkout("main", tmp_path / "out")
    assert caught.value.code is ErrorCode.BAD_PATH
    assert not (tmp_path / "out").exists()
    repo.checkout("main", tmp_path / "out", include=["a"])


def test_stores_inside_the_target_are_not_written_to(repo: Repository, tmp_path: Path) -> None:
    write_tree({".casweights/packs/x": b"theirs"}, tmp_path / "model")
    repo.commit(tmp_path / "model")
    with casweights.open(tmp_path / "out/.casweights", create=True):
        pass
    before = read_tree(tmp_path / "out")
    with pytest.raises(InvalidInputError, match="is a casweights store"):
        repo.checkout("main", tmp_path / "out")
    assert read_tree(tmp_path / "out") == before


def test_deep_folders_are_not_entered_from_the_top_for_each_level(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of folders entered grows with the depth, not with its square."""
    depth, count, entered = 90, 3, 0
    tree = {"/".join([f"{number}", *["a"] * depth]): b"deep" for number in range(count)}
    write_tree(tree, tmp_path / "model")
    repo.commit(tmp_path / "model")
    enter = Folder.enter

    def counted(folder: Folder, name: str) -> Folder:
        nonlocal entered
        entered += 1
        return enter(folder, name)

    monkeypatch.setattr(Folder, "enter", counted)
    for _ in range(2):
        repo.checkout("main", tmp_path / "out")
        (tmp_path / "out" / next(iter(tree))).unlink()
    assert count * depth < entered < 20 * count * depth
