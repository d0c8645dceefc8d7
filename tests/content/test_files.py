"""Files: which files of a directory a commit contains, and which it refuses."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch

import casweights
from casweights.errors import ErrorCode, InvalidInputError
from casweights.testing.trees import Link, read_tree, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.format.manifest import Snapshot

SAFETENSORS = safetensors.torch.save({"w": torch.arange(4)})


def paths(snapshot: Snapshot) -> list[str]:
    return [file.path for file in snapshot.files]


def test_a_directory_is_committed_with_all_its_files(repo: Repository, tmp_path: Path) -> None:
    write_tree(
        {"b/c/d": b"1", "a": b"", ".hidden": b"2", "model.safetensors": SAFETENSORS}, tmp_path
    )
    (tmp_path / "empty folder").mkdir()
    snapshot = repo.commit(tmp_path)
    assert paths(snapshot) == [".hidden", "a", "b/c/d", "model.safetensors"]
    assert [file.header is not None for file in snapshot.files] == [False, False, False, True]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "größe"])
def test_a_single_file_is_committed_under_its_name(
    repo: Repository, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(SAFETENSORS)
    snapshot = repo.commit(tmp_path / name)
    assert paths(snapshot) == [name]
    repo.checkout(snapshot, tmp_path / "out")
    assert read_tree(tmp_path / "out") == {name: SAFETENSORS}


def test_paths_may_be_strings(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree({"in/a": b"1"}, tmp_path)
    monkeypatch.chdir(tmp_path)
    first = repo.commit("in")
    assert first.files == repo.commit("./in/").files == repo.commit(str(tmp_path / "in")).files
    repo.checkout(first, "out")
    assert read_tree(tmp_path / "out") == {"a": b"1"}


def test_the_current_directory_can_be_committed(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree({"a": b"1"}, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert paths(repo.commit(".")) == ["a"]


def test_links_are_followed(repo: Repository, tmp_path: Path) -> None:
    write_tree(
        {"blobs/x": b"x", "model/link": Link("blobs/x"), "model/again": Link("model/link")},
        tmp_path,
    )
    (tmp_path / "model/folder").symlink_to(tmp_path / "blobs")
    snapshot = repo.commit(tmp_path / "model")
    assert paths(snapshot) == ["again", "folder/x", "link"]
    (tmp_path / "to model").symlink_to(tmp_path / "model")
    assert repo.commit(tmp_path / "to model").files == snapshot.files
    repo.checkout(snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("link", "target"), [("loop", "loop"), ("a/b/up", ".."), ("a/self", "."), ("a/b/root", "../..")]
)
def test_links_that_form_a_circle_are_refused(
    repo: Repository, tmp_path: Path, link: str, target: str
) -> None:
    write_tree({"a/b/file": b"x"}, tmp_path)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(InvalidInputError, match="symbolic links") as caught:
        repo.commit(tmp_path)
    assert caught.value.code is ErrorCode.SOURCE_UNREADABLE


def test_two_links_to_the_same_folder_are_both_followed(repo: Repository, tmp_path: Path) -> None:
    write_tree({"blobs/x": b"x", "model/a": b"y"}, tmp_path)
    for name in ("one", "two"):
        (tmp_path / "model" / name).symlink_to(tmp_path / "blobs")
    assert paths(repo.commit(tmp_path / "model")) == ["a", "one/x", "two/x"]


def test_a_broken_link_is_refused(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(InvalidInputError, match="link: No such file"):
        repo.commit(tmp_path)


def test_repositories_caches_and_drafts_are_left_out(repo: Repository, tmp_path: Path) -> None:
    write_tree(
        {
            "model": b"1",
            ".git/config": b"x",
            "sub/.git/config": b"x",
            ".cache/huggingface/x": b"x",
            ".casweights-tmp-0/draft": b"x",
            ".gitattributes": b"2",
            "sub/file": b"3",
        },
        tmp_path,
    )
    assert paths(repo.commit(tmp_path)) == [".gitattributes", "model", "sub/file"]


def test_stores_inside_are_left_out(repo: Repository, tmp_path: Path) -> None:
    write_tree({"model": b"1"}, tmp_path)
    with casweights.open(tmp_path / ".casweights", create=True) as inner:
        inner.commit(tmp_path)
        assert paths(inner.commit(tmp_path)) == ["model"]
    assert paths(repo.commit(tmp_path)) == ["model"]


def test_committing_a_store_is_refused(repo: Repository, tmp_path: Path) -> None:
    with casweights.open(tmp_path / "store", create=True) as inner:
        with pytest.raises(InvalidInputError, match="it is a casweights store"):
            inner.commit(tmp_path / "store")
        with pytest.raises(InvalidInputError, match="it is a casweights store"):
            repo.commit(tmp_path / "store")


def test_files_and_folders_that_match_exclude_are_left_out(
    repo: Repository, tmp_path: Path
) -> None:
    write_tree({"model": b"1", "logs/a": b"x", "sub/logs/a": b"2", "a.tmp": b"x"}, tmp_path)
    snapshot = repo.commit(tmp_path, exclude=["logs", "*.tmp"])
    assert paths(snapshot) == ["model", "sub/logs/a"]


def test_missing_paths_and_empty_directories_are_refused(repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="No such file or directory"):
        repo.commit(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="no file to commit"):
        repo.commit(tmp_path)
    assert repo.branches() == {}


def test_invalid_safetensors_files_are_refused_unless_opaque(
    repo: Repository, tmp_path: Path
) -> None:
    write_tree({"bad.safetensors": b"no header", "good.safetensors": SAFETENSORS}, tmp_path)
    with pytest.raises(InvalidInputError, match=r"bad\.safetensors.*opaque") as caught:
        repo.commit(tmp_path)
    assert caught.value.code is ErrorCode.BAD_SAFETENSORS
    snapshot = repo.commit(tmp_path, opaque=["bad*"])
    assert [file.header is None for file in snapshot.files] == [True, False]
    repo.checkout(snapshot, tmp_path / "out")
    assert (tmp_path / "out/bad.safetensors").read_bytes() == b"no header"


@pytest.mark.parametrize("name", [b"back\\slash", b"line\nbreak", b"\xff\xfe"])
def test_names_that_some_systems_cannot_hold_are_refused(
    repo: Repository, tmp_path: Path, name: bytes
) -> None:
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    with pytest.raises(InvalidInputError, match="file name") as caught:
        repo.commit(tmp_path)
    assert caught.value.code is ErrorCode.BAD_PATH


def test_names_that_differ_only_in_case_are_refused(repo: Repository, tmp_path: Path) -> None:
    write_tree({"README": b"1", "readme": b"2"}, tmp_path)
    if len(read_tree(tmp_path)) == 1:
        pytest.skip("the file system ignores case")
    with pytest.raises(InvalidInputError, match="same file on some systems") as caught:
        repo.commit(tmp_path)
    assert caught.value.message.lower().count("rename") == 1


@pytest.mark.parametrize("name", ["x:y", "run 12:30.log", "what?", "nul.txt", "dot.", "space "])
def test_names_that_windows_cannot_hold_are_refused_and_can_be_excluded(
    repo: Repository, tmp_path: Path, name: str
) -> None:
    write_tree({f"logs/{name}": b"1", "a": b"2"}, tmp_path)
    with pytest.raises(InvalidInputError, match="Windows") as caught:
        repo.commit(tmp_path)
    assert caught.value.code is ErrorCode.BAD_PATH
    assert name in caught.value.message
    assert caught.value.message.lower().count("rename") == 1
    assert [file.path for file in repo.commit(tmp_path, exclude=["logs"]).files] == ["a"]


def test_versions_with_names_that_windows_cannot_hold_can_be_checked_out(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier releases accepted these names."""
    write_tree({"logs/12:30": b"1", "aux": b"2"}, tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr("casweights.content.files.check_new_path", lambda path: None)
        version = repo.commit(tmp_path / "old")
    repo.checkout(version, tmp_path / "out")
    assert read_tree(tmp_path / "out") == {"logs/12:30": b"1", "aux": b"2"}


def test_special_files_are_refused(repo: Repository, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="neither a file nor a folder"):
        repo.commit(tmp_path)
    with pytest.raises(InvalidInputError, match="pipe"):
        repo.commit(tmp_path / "pipe")
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(InvalidInputError, match="neither a file nor a folder"):
            repo.commit(tmp_path)


@pytest.mark.parametrize("source", [None, 5, b"bytes", [1], torch.nn.Linear(1, 1), torch.ones(1)])
def test_sources_of_other_types_are_refused(repo: Repository, source: object) -> None:
    with pytest.raises(InvalidInputError, match="must be a path or a state dict"):
        repo.commit(source)  # type: ignore[arg-type]
