"""Diff: lists what differs between two versions, from their manifests alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from casweights.config import KiB
from casweights.testing.trees import write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.testing import CountingStore

CHUNK = 64 * KiB


def rows(*values: int) -> torch.Tensor:
    """Return a tensor with one chunk for each value."""
    return torch.tensor(values, dtype=torch.uint8).repeat_interleave(CHUNK).reshape(-1, CHUNK)


def test_equal_versions_have_no_changes(repo: Repository) -> None:
    first = repo.commit({"a": rows(1), "b": rows(2)})
    second = repo.commit({"a": rows(1), "b": rows(2)})
    found = repo.diff(first, second)
    assert (found.old, found.new) == (first.id, second.id)
    assert found.changes == ()
    assert found.unchanged == 3  # two tensors, and the file's metadata
    assert found.nbytes == 0


def test_tensors_are_listed_as_added_removed_or_changed(
    repo: Repository, objects: CountingStore
) -> None:
    first = repo.commit({"same": rows(1), "grown": rows(2, 3), "gone": rows(4), "cast": rows(5)})
    second = repo.commit(
        {
            "same": rows(1),
            "grown": rows(2, 3, 6),
            "new": rows(7, 7, 1),
            "cast": rows(5).view(torch.int8),
        }
    )
    objects.reset()
    found = repo.diff("main~1", "main")
    assert objects.read_bytes("packs/", "snapshots/") == 0
    file = "model.safetensors"
    assert [(c.kind, c.file, c.tensor, c.old, c.new, c.nbytes) for c in found.changes] == [
        ("changed", file, "cast", "U8 [1, 65536]", "I8 [1, 65536]", 0),
        ("removed", file, "gone", "U8 [1, 65536]", None, 0),
        ("changed", file, "grown", "U8 [2, 65536]", "U8 [3, 65536]", CHUNK),
        ("added", file, "new", None, "U8 [3, 65536]", CHUNK),
    ]
    assert found.unchanged == 2
    assert found.nbytes == 2 * CHUNK
    assert repo.diff(second, first).nbytes == CHUNK


def test_files_are_listed_as_added_removed_or_changed(repo: Repository, tmp_path: Path) -> None:
    write_tree({"same": b"1", "edited": b"22", "gone": b"333", "empty": b""}, tmp_path)
    repo.commit(tmp_path)
    (tmp_path / "gone").unlink()
    write_tree({"edited": b"24", "new": b"55555"}, tmp_path)
    repo.commit(tmp_path)
    found = repo.diff("main~1", "main")
    assert [(c.kind, c.file, c.tensor, c.old, c.new, c.nbytes) for c in found.changes] == [
        ("changed", "edited", None, "2 bytes", "2 bytes", 2),
        ("removed", "gone", None, "3 bytes", None, 0),
        ("added", "new", None, None, "5 bytes", 5),
    ]
    assert (found.unchanged, found.nbytes) == (2, 7)


def test_a_renamed_file_costs_nothing(repo: Repository, tmp_path: Path) -> None:
    write_tree({"old": b"content"}, tmp_path)
    repo.commit(tmp_path)
    (tmp_path / "old").rename(tmp_path / "new")
    repo.commit(tmp_path)
    found = repo.diff("main~1", "main")
    assert [(c.kind, c.file) for c in found.changes] == [("added", "new"), ("removed", "old")]
    assert found.nbytes == 0


def test_a_change_of_metadata_alone_is_listed_by_file(repo: Repository) -> None:
    """The tensors are equal; the tree in the metadata differs."""
    weights = rows(1)
    first = repo.commit({"a": weights, "b": weights.clone()})
    second = repo.commit({"a": weights, "b": weights.clone(), "step": 1})
    found = repo.diff(first, second)
    assert [(c.kind, c.tensor) for c in found.changes] == [("changed", None)]
    assert found.nbytes == 0
