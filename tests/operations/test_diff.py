"""Diff: lists what differs between two versions, and pairs what has other names or places."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from casweights.config import KiB
from casweights.testing.trees import write_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights import Repository
    from casweights.results import Change
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
    assert [told(change) for change in found.changes] == [("renamed", "old", True)]
    assert found.nbytes == 0


def model(layers: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the weights of a few layers; tensors of one shape differ in content alone."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"attn.q.weight": (200, 256), "attn.k.weight": (200, 256), "mlp.weight": (300, 256)}
    return {
        f"layers.{n}.{name}": torch.randn(shape, generator=generator).bfloat16()
        for n in range(layers)
        for name, shape in shapes.items()
    }


def stepped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state with one element in a hundred changed by one unit in the last place."""
    changed = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in changed.values():
        tensor.view(torch.int16).view(-1)[::100] ^= 1
    return changed


def told(change: Change) -> tuple[str, str | None, bool]:
    """Return the kind of a change, the old name, and whether the content is the same."""
    return str(change.kind), change.old_tensor or change.old_file, change.has_same_content


def prefixed(name: str) -> str:
    return f"module.{name}"


def other_convention(name: str) -> str:
    number, _, rest = name.removeprefix("layers.").partition(".")
    words = {"attn.q.weight": "attention/query", "attn.k.weight": "attention/key"}
    return f"encoder/block_{number}/{words.get(rest, 'feed_forward')}"


@pytest.mark.parametrize("rename", [prefixed, other_convention])
@pytest.mark.parametrize("change", [dict, stepped])
def test_renamed_tensors_are_paired_with_the_old_ones(
    repo: Repository,
    rename: Callable[[str], str],
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    old = model(11)
    new = {rename(name): tensor for name, tensor in change(old).items()}
    found = repo.diff(repo.commit(old), repo.commit(new))
    assert {c.tensor: told(c) for c in found.changes} == {
        rename(name): ("renamed", name, change is dict) for name in old
    }
    assert not found.unchanged - 1  # the file's metadata
    assert (found.nbytes == 0) is (change is dict)


def test_unrelated_tensors_of_one_shape_are_not_paired(repo: Repository) -> None:
    old, new = model(4), {prefixed(name): tensor for name, tensor in model(4, seed=1).items()}
    found = repo.diff(repo.commit(old), repo.commit(new))
    kinds = Counter(str(change.kind) for change in found.changes)
    assert kinds == {"added": len(new), "removed": len(old)}


def test_a_guess_reads_a_few_chunks_however_many_tensors_there_are(
    repo: Repository, objects: CountingStore
) -> None:
    old = model(40)
    new = {prefixed(name): tensor for name, tensor in stepped(old).items()}
    versions = repo.commit(old), repo.commit(new)
    objects.reset()
    found = repo.diff(*versions)
    assert {str(change.kind) for change in found.changes} == {"renamed"}
    assert objects.read_bytes("packs/", "snapshots/") < sum(t.nbytes for t in old.values()) / 4


def test_tensors_that_moved_to_other_files_are_paired(repo: Repository, tmp_path: Path) -> None:
    old, new = model(2), stepped(model(2))
    names = list(old)
    save_file(old, tmp_path / "model.safetensors")
    repo.commit(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_file({name: new[name] for name in names[:4]}, tmp_path / "model-1-of-2.safetensors")
    save_file({name: old[name] for name in names[4:]}, tmp_path / "model-2-of-2.safetensors")
    repo.commit(tmp_path)
    found = {(c.file, c.tensor): c for c in repo.diff("main~1", "main").changes}
    for name in names[:4]:
        assert told(found["model-1-of-2.safetensors", name]) == ("moved", name, False)
    for name in names[4:]:
        assert told(found["model-2-of-2.safetensors", name]) == ("moved", name, True)
    assert told(found["model-1-of-2.safetensors", None]) == ("renamed", "model.safetensors", False)
    assert str(found["model-2-of-2.safetensors", None].kind) == "added"
    assert len(found) == len(names) + 2


def test_a_folder_named_after_the_step_is_paired_by_path(repo: Repository, tmp_path: Path) -> None:
    write_tree({"global_step100/rank_0.pt": b"a" * 999, "global_step100/rank_1.pt": b"b"}, tmp_path)
    repo.commit(tmp_path)
    shutil.rmtree(tmp_path / "global_step100")
    write_tree({"global_step200/rank_0.pt": b"a" * 998, "global_step200/rank_1.pt": b"c"}, tmp_path)
    repo.commit(tmp_path)
    assert [(c.file, *told(c)) for c in repo.diff("main~1", "main").changes] == [
        (f"global_step200/rank_{n}.pt", "moved", f"global_step100/rank_{n}.pt", False)
        for n in range(2)
    ]


def test_a_copy_of_what_is_still_there_is_told(repo: Repository, tmp_path: Path) -> None:
    old = model(1)
    copy = old | {"tied": old["layers.0.mlp.weight"].clone()}
    found = repo.diff(repo.commit(old), repo.commit(copy))
    assert [(c.tensor, *told(c)) for c in found.changes] == [
        ("tied", "copied", "layers.0.mlp.weight", True)
    ]
    write_tree({"one": b"content"}, tmp_path)
    repo.commit(tmp_path, branch="files")
    write_tree({"other": b"content"}, tmp_path)
    repo.commit(tmp_path, branch="files")
    changes = repo.diff("files~1", "files").changes
    assert [(c.file, *told(c)) for c in changes] == [("other", "copied", "one", True)]


def test_a_change_of_metadata_alone_is_listed_by_file(repo: Repository) -> None:
    """The tensors are equal; the tree in the metadata differs."""
    weights = rows(1)
    first = repo.commit({"a": weights, "b": weights.clone()})
    second = repo.commit({"a": weights, "b": weights.clone(), "step": 1})
    found = repo.diff(first, second)
    assert [(c.kind, c.tensor) for c in found.changes] == [("changed", None)]
    assert found.nbytes == 0
