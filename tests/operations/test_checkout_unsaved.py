"""A checkout loses no file whose content is only in the directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

import casweights
from casweights import ConflictError, ErrorCode
from casweights.format.snapshot import parse_snapshot
from casweights.testing.trees import read_tree, write_tree
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.format.snapshot import SnapshotIndex, StoredSnapshot
    from casweights.testing import CountingStore

WEIGHTS = safetensors.torch.save({"a": torch.arange(99), "b": torch.ones(9)}, {"format": "pt"})
FIRST = {"config.json": b"one", "sub/model.safetensors": WEIGHTS, "notes": b"first"}
SECOND = {"config.json": b"two", "sub/model.safetensors": WEIGHTS[:-1] + b"x"}
UNSAVED = b"three hours of edits"


@pytest.fixture
def target(repo: Repository, tmp_path: Path) -> Path:
    """A directory that holds the first version, while the branch has a second one."""
    for number, tree in enumerate((FIRST, SECOND)):
        write_tree(tree, tmp_path / f"model{number}")
        repo.commit(tmp_path / f"model{number}")
    repo.checkout("main~1", tmp_path / "target")
    return tmp_path / "target"


def assert_refused(
    repo: Repository, target: Path, *lost: str, delete: bool = False, ref: str = "main"
) -> None:
    before = {path: (path.lstat(), path.is_file() and path.read_bytes()) for path in all_of(target)}
    with pytest.raises(ConflictError) as caught:
        repo.checkout(ref, target, delete=delete)
    assert caught.value.code is ErrorCode.UNSAVED_FILES
    assert caught.value.files == lost
    assert all(path.split("/")[-1] in str(caught.value) for path in lost[:10])
    after = {path: (path.lstat(), path.is_file() and path.read_bytes()) for path in all_of(target)}
    assert {p: (s[0].st_ino, s[0].st_mtime_ns, s[1]) for p, s in after.items()} == {
        p: (s[0].st_ino, s[0].st_mtime_ns, s[1]) for p, s in before.items()
    }


def all_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_fifo()]


def test_an_edited_file_is_refused(repo: Repository, target: Path) -> None:
    (target / "config.json").write_bytes(UNSAVED)
    for delete in (False, True):
        assert_refused(repo, target, "config.json", delete=delete)
    repo.checkout("main", target, overwrite=True)
    assert read_tree(target) == SECOND | {"notes": b"first"}


def test_an_edited_tensor_is_refused(repo: Repository, target: Path) -> None:
    (target / "sub/model.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    assert_refused(repo, target, "sub/model.safetensors")


def test_an_unsaved_extra_file_is_refused_only_with_delete(repo: Repository, target: Path) -> None:
    write_tree({"mine": UNSAVED, "own/folder/x": UNSAVED, "empty": b""}, target)
    assert_refused(repo, target, "empty", "mine", "own/folder/x", delete=True)
    repo.checkout("main", target)
    assert (target / "mine").read_bytes() == UNSAVED
    repo.checkout("main", target, delete=True, overwrite=True)
    assert read_tree(target) == SECOND


def test_one_error_names_all_unsaved_files(repo: Repository, target: Path) -> None:
    names = [f"mine{n:02}" for n in range(30)]
    write_tree(dict.fromkeys(names, UNSAVED), target)
    assert_refused(repo, target, *names, delete=True)
    with pytest.raises(ConflictError, match=r"30 files are .* and 20 more"):
        repo.checkout("main", target, delete=True)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_hard_link(path: Path) -> None:
    other = path.parent.parent / "other"
    other.write_bytes(UNSAVED)
    path.hardlink_to(other)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300_000)


@pytest.mark.parametrize("make", [make_fifo, make_hard_link, make_sparse])
def test_unsaved_files_of_any_kind_but_links_are_refused(
    repo: Repository, target: Path, make: Callable[[Path], None]
) -> None:
    (target / "config.json").unlink()
    make(target / "config.json")
    assert_refused(repo, target, "config.json")
    repo.checkout("main", target, overwrite=True)
    assert (target / "config.json").read_bytes() == b"two"


def test_names_that_are_not_unicode_are_escaped_in_the_error(
    repo: Repository, target: Path
) -> None:
    name = os.fsdecode(b"\xff\xfe")
    (target / name).write_bytes(UNSAVED)
    with pytest.raises(ConflictError, match=r"\\udcff\\udcfe"):
        repo.checkout("main", target, delete=True)


def test_files_saved_under_another_name_or_layout_are_replaced(
    repo: Repository, target: Path
) -> None:
    extra = {"backup": b"one", "sub/weights.bak": WEIGHTS, "config.json": b"first"}
    write_tree(extra, target)
    repo.checkout("main", target, delete=True)
    assert read_tree(target) == SECOND
    repo.commit(target, opaque=["*"], branch="opaque")
    write_tree({"x.safetensors": SECOND["sub/model.safetensors"]}, target)
    repo.checkout("main~1", target, delete=True)
    assert read_tree(target) == FIRST


def test_a_part_of_a_version_counts_as_saved(
    repo: Repository, target: Path, tmp_path: Path
) -> None:
    """A checkout of some tensors writes a file that no version lists."""
    part = tmp_path / "part"
    for ref in ("main~1", "main", "main~1"):
        repo.checkout(ref, part, include=["b"])
    content = (part / "sub/model.safetensors").read_bytes()
    (part / "sub/model.safetensors").write_bytes(content[:-1] + b"!")
    with pytest.raises(ConflictError):
        repo.checkout("main", part, include=["b"])


def test_a_mixture_left_by_a_killed_checkout_is_replaced(repo: Repository, target: Path) -> None:
    """Some files are of the old version, some of the new one."""
    write_tree({"config.json": b"two"}, target)
    repo.checkout("main", target, delete=True)
    assert read_tree(target) == SECOND


@pytest.mark.parametrize("exclude", [".git/config", ".cache/huggingface/x"])
def test_files_that_a_commit_leaves_out_are_neither_refused_nor_removed(
    repo: Repository, target: Path, exclude: str
) -> None:
    write_tree({exclude: UNSAVED, f"old/{exclude}": UNSAVED, "old/notes": b"first"}, target)
    repo.checkout("main", target, delete=True)
    assert read_tree(target) == SECOND | {exclude: UNSAVED, f"old/{exclude}": UNSAVED}


@pytest.mark.usefixtures("packs_apart")
def test_files_of_a_deleted_version_are_refused(
    repo: Repository, objects: CountingStore, target: Path
) -> None:
    objects.delete(f"snapshots/{repo.resolve('main~1')}")
    with casweights.open(objects) as again:
        lost = ("config.json", "notes", "sub/model.safetensors")
        assert_refused(again, target, *lost, delete=True)


HISTORY = 100


@pytest.fixture
def long_history(objects: CountingStore, tmp_path: Path) -> CountingStore:
    with casweights.open(objects, create=True) as repo:
        for number in range(HISTORY):
            write_tree({"config.json": b"%d" % number}, tmp_path / "model")
            repo.commit(tmp_path / "model")
    return objects


@pytest.mark.parametrize(
    ("old", "new", "limit"),
    [
        ("main~1", "main", 2),  # an update by one
        ("main", "main~1", 4),  # one back
        ("main", "main~50", 8),  # far back
        ("main~3", "main", 5),
        ("main~50", "main", HISTORY),
    ],
)
def test_related_versions_are_read_first(
    long_history: CountingStore,
    decoded: list[SnapshotId],
    tmp_path: Path,
    old: str,
    new: str,
    limit: int,
) -> None:
    """Few versions of a long history are read if they contain all files of the directory."""
    with casweights.open(long_history) as repo:
        repo.checkout(old, tmp_path / "out")
        new_id = repo.resolve(new)
    with casweights.open(long_history) as repo:
        decoded.clear()
        repo.checkout(new_id, tmp_path / "out")
    assert len(set(decoded)) <= limit


def test_a_chunk_in_no_pack_ends_the_search_early(
    long_history: CountingStore, decoded: list[SnapshotId], tmp_path: Path
) -> None:
    with casweights.open(long_history) as repo:
        repo.checkout("main", tmp_path / "out")
    (tmp_path / "out/config.json").write_bytes(UNSAVED)
    with casweights.open(long_history) as repo:
        decoded.clear()
        assert_refused(repo, tmp_path / "out", "config.json")
    assert len(set(decoded)) <= 16


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[SnapshotId]:
    """The versions whose manifests are decoded during the test."""
    found: list[SnapshotId] = []

    def decode(index: SnapshotIndex, snapshot_id: SnapshotId, *rest: Any) -> StoredSnapshot:
        found.append(snapshot_id)
        return parse_snapshot(index, snapshot_id, *rest)

    monkeypatch.setattr("casweights.database.snapshots.parse_snapshot", decode)
    return found


CONTENTS = st.sampled_from([b"one", b"two", b"first", UNSAVED, b"", WEIGHTS, WEIGHTS[:-1] + b"!"])
PATHS = st.sampled_from(["config.json", "notes", "mine", "sub/model.safetensors", "sub/x.bin"])
IN_VERSIONS = {*FIRST.values(), *SECOND.values()}


@hypothesis.settings(max_examples=examples(25))
@hypothesis.given(there=st.dictionaries(PATHS, CONTENTS, max_size=5), delete=st.booleans())
def test_nothing_unsaved_is_lost(
    repo: Repository,
    tmp_path_factory: pytest.TempPathFactory,
    there: dict[str, bytes],
    delete: bool,
) -> None:
    folder = tmp_path_factory.mktemp("case")
    for number, tree in enumerate((FIRST, SECOND)):
        write_tree(tree, folder / f"model{number}")
        repo.commit(folder / f"model{number}")
    write_tree(there, folder / "out")
    lost = {
        path
        for path, content in there.items()
        if content not in IN_VERSIONS
        and (delete if path not in SECOND else SECOND[path] != content)
    }
    if lost:
        assert_refused(repo, folder / "out", *sorted(lost), delete=delete)
        assert read_tree(folder / "out") == there
    else:
        repo.checkout("main", folder / "out", delete=delete)
        assert read_tree(folder / "out") == (SECOND if delete else there | SECOND)
