"""Renamed tensors: a model under other names, in other files, costs what its changes cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

import casweights
from casweights.config import KiB, StoreConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights import Repository

State = dict[str, torch.Tensor]
NAMES = {
    "attn.q_proj": "attention.self.query",
    "attn.k_proj": "attention.self.key",
    "mlp.up": "intermediate.dense",
    "norm": "output.LayerNorm",
}


def model(layers: int = 6) -> State:
    """Return large and small tensors; several of one shape in each layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "attn.q_proj": (96, 256),
        "attn.k_proj": (96, 256),
        "mlp.up": (400, 96),
        "norm": (96,),
    }
    return {
        f"layers.{n}.{name}.weight": torch.randn(shape, generator=generator).bfloat16()
        for n in range(layers)
        for name, shape in shapes.items()
    }


def stepped(state: State) -> State:
    """Return the state with one element in a hundred changed."""
    changed = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in changed.values():
        tensor.view(torch.int16).view(-1)[::100] ^= 1
    return changed


def same(name: str) -> str:
    return name


def prefixed(name: str) -> str:
    return f"_orig_mod.{name}"


def converted(name: str) -> str:
    number, _, rest = name.removeprefix("layers.").partition(".")
    return f"bert.encoder.layer.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write(state: State, folder: Path, files: int) -> Path:
    """Write a state as a number of files."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    names = list(state)
    for n in range(files):
        part = names[n * len(names) // files : (n + 1) * len(names) // files]
        path = folder / f"model-{n + 1:05}-of-{files:05}.safetensors"
        save_file({name: state[name] for name in part}, path)
    return folder


def opened(path: Path) -> Repository:
    """Make a store in which the larger tensors have chunks of their own."""
    return casweights.open(path, create=True, config=StoreConfig(chunk_size=64 * KiB))


def cost(repo: Repository, folder: Path, rename: Callable[[str], str], files: int) -> int:
    """Return the bytes of frames that a step adds under other names, in a number of files."""
    old = model()
    new = {rename(name): tensor for name, tensor in stepped(old).items()}
    repo.commit(write(old, folder, 1))
    before = repo.stats().pack_bytes
    repo.commit(write(new, folder, files))
    return repo.stats().pack_bytes - before


@pytest.mark.parametrize("rename", [prefixed, converted])
@pytest.mark.parametrize("files", [1, 3])
def test_a_renamed_model_costs_what_its_changes_cost(
    tmp_path: Path, rename: Callable[[str], str], files: int
) -> None:
    costs = []
    for number, names in enumerate((same, rename)):
        with opened(tmp_path / f"store-{number}") as repo:
            costs.append(cost(repo, tmp_path / "model", names, files))
            assert not repo.verify().problems
    headers = 3 * 4096  # other names are new text
    assert costs[1] <= 1.05 * costs[0] + headers
    assert costs[1] < sum(tensor.nbytes for tensor in model().values()) / 8


def test_a_repack_keeps_the_differences_of_renamed_tensors(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as repo:
        cost(repo, tmp_path / "model", converted, 3)
        before = repo.stats().pack_bytes
        assert repo.repack().nbytes <= 1.02 * before


@pytest.mark.parametrize(
    "kept", [[0, 1, 3, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 2, 3, 4, 5]], ids=["some", "last", "twice"]
)
@pytest.mark.parametrize("chunk", [64, 4096], ids=["apart", "together"])
def test_layers_that_are_left_out_or_put_in_twice_cost_what_changes(
    tmp_path: Path, kept: list[int], chunk: int
) -> None:
    """Those behind them have the names that others had before."""
    old = model()
    changed = stepped(old)
    new = {
        f"layers.{n}.{name.split('.', 2)[2]}": tensor
        for n, origin in enumerate(kept)
        for name, tensor in changed.items()
        if name.startswith(f"layers.{origin}.")
    }
    costs = []
    for number, state in enumerate((changed, new)):
        config = StoreConfig(chunk_size=chunk * KiB)
        with casweights.open(tmp_path / f"{number}", create=True, config=config) as repo:
            repo.commit(old)
            before = repo.stats().pack_bytes
            repo.commit(state)
            costs.append(repo.stats().pack_bytes - before)
            assert not repo.verify().problems
    assert costs[1] <= 1.1 * max(1, len(kept) / 6) * costs[0] + 4096
