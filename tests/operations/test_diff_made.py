"""Diff: tells what fused, split and cut tensors, and those of other layers, come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

import casweights

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.results import Change
    from casweights.testing import CountingStore

    State = dict[str, torch.Tensor]

_FILE = "model.safetensors"


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def stepped(state: State) -> State:
    """Return the state with one element in a hundred changed by one unit in the last place."""
    changed = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in changed.values():
        tensor.view(torch.int16).view(-1)[::100] ^= 1
    return changed


def told(change: Change) -> tuple[str, list[str | None], bool]:
    """Return the kind of a change, the names it comes from, and whether the content is the same."""
    names: list[str | None] = [name for _, name in change.sources]
    names = names or [change.old_tensor]
    return str(change.kind), names, change.has_same_content


def tensor_changes(repo: Repository, old: State, new: State) -> dict[str, Change]:
    found = repo.diff(repo.commit(old), repo.commit(new))
    return {change.tensor: change for change in found.changes if change.tensor is not None}


PARTS = {"q": weights(256, 128), "k": weights(64, 128, seed=1), "v": weights(64, 128, seed=2)}
FUSED = {"qkv": torch.cat(list(PARTS.values()))}


@pytest.mark.parametrize("is_same", [True, False])
def test_a_fused_tensor_names_those_it_is_made_of(repo: Repository, is_same: bool) -> None:
    new = FUSED if is_same else stepped(FUSED)
    found = tensor_changes(repo, PARTS, new)
    assert {name: told(c) for name, c in found.items()} == {
        "qkv": ("fused", ["q", "k", "v"], is_same)
    }
    change = found["qkv"]
    assert (change.old, change.new) == (None, "BF16 [384, 128]")
    assert (change.old_file, change.old_tensor) == (None, None)
    assert change.sources == ((_FILE, "q"), (_FILE, "k"), (_FILE, "v"))


@pytest.mark.parametrize("is_same", [True, False])
def test_a_split_tensor_is_named_by_its_parts(repo: Repository, is_same: bool) -> None:
    found = tensor_changes(repo, FUSED, PARTS if is_same else stepped(PARTS))
    assert {name: told(c) for name, c in found.items()} == {
        name: ("split", ["qkv"], is_same) for name in PARTS
    }
    assert found["q"].old == "BF16 [384, 128]"


@pytest.mark.parametrize("dimension", [0, 1])
def test_a_tensor_that_was_cut_for_ranks_is_split(
    repo: Repository, tmp_path: Path, dimension: int
) -> None:
    whole = weights(256, 256)
    halves = [half.contiguous() for half in whole.chunk(2, dimension)]
    save_file({"w": whole}, tmp_path / "rank_0.safetensors")
    repo.commit(tmp_path)
    for rank, half in enumerate(halves):
        save_file({"w": half}, tmp_path / f"rank_{rank}.safetensors")
    repo.commit(tmp_path)
    found = {c.file: c for c in repo.diff("main~1", "main").changes if c.tensor == "w"}
    assert {file: (*told(c), c.old_file) for file, c in found.items()} == {
        f"rank_{rank}.safetensors": ("split", ["w"], True, "rank_0.safetensors")
        for rank in range(2)
    }
    back = [c for c in repo.diff("main", "main~1").changes if c.tensor == "w"]
    assert [told(c) for c in back] == [("fused", ["w", "w"], True)]
    assert back[0].sources == (("rank_0.safetensors", "w"), ("rank_1.safetensors", "w"))


def layers(*numbers: int) -> State:
    """Return a model of these layers of another one."""
    return {
        f"layers.{at}.{name}": weights(128, 128, seed=2 * number + own)
        for at, number in enumerate(numbers)
        for own, name in enumerate(("up", "down"))
    }


@pytest.mark.parametrize("is_same", [True, False])
def test_layers_that_were_put_in_twice_are_copied(repo: Repository, is_same: bool) -> None:
    new = layers(0, 1, 2, 1, 2, 3)
    found = tensor_changes(repo, layers(0, 1, 2, 3), new if is_same else stepped(new))
    kept = {} if is_same else {f"layers.{n}.up": ("changed", [None], False) for n in range(3)}
    assert {name: told(c) for name, c in found.items() if name.endswith("up")} == kept | {
        "layers.3.up": ("copied", ["layers.1.up"], is_same),
        "layers.4.up": ("copied", ["layers.2.up"], is_same),
        "layers.5.up": ("renamed", ["layers.3.up"], is_same),
    }


def test_layers_that_were_left_out_are_removed(repo: Repository) -> None:
    found = repo.diff(repo.commit(layers(0, 1, 2)), repo.commit(layers(0, 2)))
    changes = [c for c in found.changes if c.tensor is not None and c.tensor.endswith("up")]
    assert sorted((c.tensor, *told(c)) for c in changes) == [
        ("layers.1.up", "removed", [None], False),
        ("layers.1.up", "renamed", ["layers.2.up"], True),
    ]


def test_short_runs_of_a_vector_are_no_origin(repo: Repository) -> None:
    """Scales of norms have few different elements, which are in all of them."""

    def scales(count: int, seed: int) -> list[torch.Tensor]:
        return [1 + 0.02 * weights(count, seed=seed + n) for n in range(8)]

    old = {f"old.{n}": tensor for n, tensor in enumerate(scales(512, 0))}
    new = {f"new.{n}": tensor for n, tensor in enumerate(scales(256, 90))}
    found = tensor_changes(repo, old, new)
    assert {str(found[name].kind) for name in new} == {"added"}


def test_tensors_that_nothing_is_left_for_are_not_read(
    repo: Repository, objects: CountingStore
) -> None:
    old = {"a": weights(256, 128), "b": weights(256, 128, seed=1)}
    new = old | {"c": weights(4096, 128, seed=2)}
    versions = repo.commit(old), repo.commit(new)
    with casweights.open(objects) as fresh:  # has no chunks in memory
        objects.reset()
        found = fresh.diff(*versions)
    assert [(c.kind, c.tensor) for c in found.changes] == [("added", "c")]
    assert objects.read_bytes("packs/", "snapshots/") < new["c"].nbytes / 2
