"""A model with the difficult features of vLLM's: its weights are fused, sharded and padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tests.integrations.vllm_parts import default_weight_loader

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN, HEADS, VOCABULARY = 24, 8, 50
Weights = dict[str, torch.Tensor]


class Layer(nn.Module):
    """A parameter, and loaders for a checkpoint's tensors; vLLM's loaders call it `param`."""

    def __init__(self, weight: torch.Tensor, loader: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight.weight_loader = loader or default_weight_loader  # type: ignore[attr-defined]


class Model(nn.Module):
    """One rank's part of a model, with q, k and v in one tensor and a padded vocabulary.

    Attributes:
        fail: The name of a checkpoint tensor at which loading fails; "" for none.
    """

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.rank, self.ranks, self.fail = rank, ranks, ""
        rows = HEADS // ranks
        self.embed = Layer(torch.zeros(VOCABULARY + 14, HIDDEN).bfloat16(), self.load_padded)
        self.qkv = Layer(torch.zeros(3 * rows, HIDDEN).bfloat16(), self.load_shard)
        self.norm = Layer(torch.zeros(HIDDEN))
        self.steps = Layer(torch.zeros(2, dtype=torch.int64))

    @staticmethod
    def load_padded(param: torch.Tensor, loaded: torch.Tensor) -> None:
        param[: len(loaded)].data.copy_(loaded)
        param[len(loaded) :].data.fill_(0)

    def load_shard(self, param: torch.Tensor, loaded: torch.Tensor, shard: str) -> None:
        rows = HEADS // self.ranks
        target = param.data.narrow(0, "qkv".index(shard) * rows, rows)
        target.copy_(loaded.narrow(0, self.rank * rows, rows))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        parameters = dict(self.named_parameters())
        loaded = set()
        for name, tensor in weights:
            if name == self.fail:
                raise RuntimeError("out of memory")
            shard, _, _ = name.partition(".")
            fused = shard in ("q", "k", "v")
            key = "qkv.weight" if fused else name
            loader: Any = parameters[key].weight_loader  # type: ignore[attr-defined]
            loader(parameters[key], tensor, *([shard] if fused else []))
            loaded.add(key)
        return loaded


class Shuffled(Model):
    """A model whose kernel needs another order of rows, so they are reordered after loading."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        weights = list(weights)
        loaded = super().load_weights(weights)
        if len(weights) > 1:
            self.shuffle()
        return loaded

    def shuffle(self) -> None:
        self.qkv.weight.data = self.qkv.weight.data.flip(0).clone()


def checkpoint(step: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(7)
    weights = {
        "embed.weight": torch.randn(VOCABULARY, HIDDEN, generator=generator).bfloat16(),
        **{
            f"{name}.weight": torch.randn(HEADS, HIDDEN, generator=generator).bfloat16()
            for name in "qkv"
        },
        "norm.weight": torch.randn(HIDDEN, generator=generator),
        "steps.weight": torch.tensor([1, 2]),
    }
    for n in range(1, step + 1):
        weights["k.weight"].view(-1)[n::31] += n
        weights["norm.weight"][n] = -0.0
        weights["embed.weight"][n] *= 2
    return weights


def served(weights: Weights, rank: int = 0, ranks: int = 1) -> Weights:
    """The content of a model after loading `weights`."""
    model = Model(rank, ranks)
    model.load_weights(weights.items())
    return dict(model.state_dict())


def equal(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)) for name in ours
    )
