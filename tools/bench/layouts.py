"""Layouts of one model: fused or not, cut for several ranks or not, in files, under other names.

The same change is committed in the layout of the version before, and in another one.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from casweights import Repository

    State = dict[str, torch.Tensor]
    Files = dict[str, State]

_HEADS, _GROUPS = 8, 2  # of queries, and of keys and values
_ENDS = ("o_proj.weight", "down_proj.weight", "wo.weight", "w2.weight")
SHARE = 0.01  # of the elements, which change from one version to the next
_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "model.layers": "layers",
    "self_attn.qkv_proj": "attention.wqkv",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_up_proj": "feed_forward.w13",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


class Size(NamedTuple):
    """The size of a model.

    Attributes:
        width: Elements of a hidden state.
        inner: Those inside of a layer.
        tokens: Rows of the embedding.
        layers: Number of layers.
    """

    width: int = 512
    inner: int = 1408
    tokens: int = 4000
    layers: int = 4


class Layout(NamedTuple):
    """How a model is laid out.

    Attributes:
        fused: Whether queries, keys and values are one tensor: end to end, or by groups of heads;
            and gate and up with them.
        renamed: Whether the names are those of another convention.
        ranks: The ranks that have some rows of each matrix and bias each.
        by_columns: Whether they have some columns of those matrices that end a block.
        files: The files that the tensors of a rank are in.
    """

    fused: str = ""
    renamed: bool = False
    ranks: int = 1
    files: int = 1
    by_columns: bool = False

    def of(self, state: State) -> Files:
        """Return the files of a model in this layout."""
        if self.fused:
            state = _fused(state, by_groups=self.fused == "groups")
        if self.renamed:
            state = {_renamed(name): tensor for name, tensor in state.items()}
        files = {}
        for rank in range(self.ranks):
            own = {name: self._of_rank(name, tensor, rank) for name, tensor in state.items()}
            for n, part in enumerate(_parts(own, self.files)):
                files[f"rank_{rank}/model-{n + 1:05}-of-{self.files:05}.safetensors"] = part
        return files

    def _of_rank(self, name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
        if self.ranks == 1:
            return tensor
        dimension = 1 if self.by_columns and name.endswith(_ENDS) else 0
        return tensor.chunk(self.ranks, dimension)[rank].contiguous()


def model(size: Size | None = None, seed: int = 0) -> State:
    """Return the weights of a model with grouped queries."""
    size = size or Size()
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(shape, generator=generator)).bfloat16()

    width, inner, keys = size.width, size.inner, size.width * _GROUPS // _HEADS
    state = {
        "model.embed_tokens.weight": weights(size.tokens, width),
        "model.norm.weight": 1 + weights(width),
    }
    for n in range(size.layers):
        own = {
            **{f"self_attn.{k}_proj.weight": weights(r, width) for k, r in _rows_of(width, keys)},
            **{f"self_attn.{k}_proj.bias": weights(r) for k, r in _rows_of(width, keys)},
            "self_attn.o_proj.weight": weights(width, width),
            "mlp.gate_proj.weight": weights(inner, width),
            "mlp.up_proj.weight": weights(inner, width),
            "mlp.down_proj.weight": weights(width, inner),
            "input_layernorm.weight": 1 + weights(width),
            "post_attention_layernorm.weight": torch.ones(width).bfloat16(),
        }
        state |= {f"model.layers.{n}.{name}": tensor for name, tensor in own.items()}
    return state


def _rows_of(width: int, keys: int) -> list[tuple[str, int]]:
    return [("q", width), ("k", keys), ("v", keys)]


def stepped(state: State, share: float = SHARE, seed: int = 1) -> State:
    """Return the state with a share of the elements moved by one step."""
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in state.items():
        changed[name] = tensor.clone()
        moved = torch.rand(tensor.shape, generator=generator) < share
        changed[name].view(torch.int16)[moved] += 1
    return changed


def _fused(state: State, *, by_groups: bool) -> State:
    fused = {}
    for name, tensor in state.items():
        if ".q_proj." in name:
            three = [state[name.replace("q_proj", f"{k}_proj")] for k in "qkv"]
            parts = [one.chunk(_GROUPS if by_groups else 1) for one in three]
            joined = [part for group in zip(*parts, strict=True) for part in group]
            fused[name.replace("q_proj", "qkv_proj")] = torch.cat(joined)
        elif ".gate_proj." in name:
            both = torch.cat([tensor, state[name.replace("gate_proj", "up_proj")]])
            fused[name.replace("gate_proj", "gate_up_proj")] = both
        elif not any(f".{part}_proj." in name for part in ("k", "v", "up")):
            fused[name] = tensor
    return fused


def _renamed(name: str) -> str:
    for old, new in _NAMES.items():
        name = name.replace(old, new)
    return name


def _parts(state: State, count: int) -> list[State]:
    names = list(state)
    borders = pairwise(n * len(names) // count for n in range(count + 1))
    return [{name: state[name] for name in names[start:end]} for start, end in borders]


def write(files: Mapping[str, State], folder: Path) -> Path:
    """Write the files of a model, and nothing else, to a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, state in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / path)
    return folder


def added(
    repo: Repository, old: Mapping[str, State], new: Mapping[str, State], folder: Path
) -> int:
    """Commit two versions, and return the bytes of the frames of the second one."""
    repo.commit(write(old, folder))
    before = repo.stats().pack_bytes
    repo.commit(write(new, folder))
    return repo.stats().pack_bytes - before
