"""Trains versions of a real model: consecutive RL steps, checkpoints, and a family.

The model is all-MiniLM-L6-v2 (`tools.models.variants`), trained by AdamW with fp32 masters on
English sentences of Python's own documentation. Each version is a safetensors file of the weights
rounded to bf16, as trainers send them to inference engines. Every function is seeded, and returns
at once if its directory is complete. Bits may differ between machines.

Usage: python -m tools.models.training DIR
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tools.models import variants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH = 16
WORKERS = 2  # processes of one thread each
TOKENS = 24  # of a sentence, which is cut after them
RANK = 8
CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a family.

    Attributes:
        name: Name of the version.
        path: File of the version.
        parent: Name of the version that it was trained from; None for the base.
    """

    name: str
    path: Path
    parent: str | None


def sentences() -> list[str]:
    """Return English sentences of Python's documentation, without lines that look like code."""
    paragraphs = (" ".join(p.split()) for text in topics.values() for p in text.split("\n\n"))
    found = {s: None for p in paragraphs for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", p)}
    return [
        s for s in found if re.fullmatch(r"[A-Z][^][{}<>=|\\]{30,}[.!?:]", s) and s.count(" ") > 4
    ]


def rl_steps(directory: Path, *, rate: float, warm_up: int = 100, steps: int = 11) -> list[Path]:
    """Record consecutive steps of policy gradient training.

    Args:
        directory: Directory for ``step_000.safetensors`` and so on.
        rate: The learning rate.
        warm_up: Number of steps before the first recorded one, in which the optimizer's moments
            settle.
        steps: Number of recorded steps.

    Returns:
        The files, in order.
    """
    paths = [directory / f"step_{n:03}.safetensors" for n in range(steps)]

    def make() -> None:
        encoder = variants.Encoder(variants.base_directory())
        for step in _train(encoder, _Bandit(), rate=rate, steps=warm_up + steps, seed=0):
            if step > warm_up:
                _save(encoder, paths[step - warm_up - 1])

    return _cached(directory, make, paths, rate=rate, warm_up=warm_up)


def fine_tune_checkpoints(
    directory: Path, *, rate: float = 3e-5, steps: int = 300, every: int = 100, seed: int = 0
) -> list[Path]:
    """Fine-tune the base with the contrastive loss; also write first and last version in fp32.

    Args:
        directory: Directory for ``step_000.safetensors``, which is the base, and so on.
        rate: The learning rate.
        steps: Number of steps.
        every: Number of steps between two checkpoints.
        seed: Seed of the order of the sentences and of the dropout.

    Returns:
        The bf16 files, in order.
    """
    recorded = range(0, steps + 1, every)
    paths = [directory / f"step_{n:03}.safetensors" for n in recorded]

    def make() -> None:
        encoder = variants.Encoder(variants.base_directory())
        _save(encoder, paths[0])
        _save(encoder, directory / "step_000_fp32.safetensors", torch.float32)
        for step in _train(encoder, _contrast, rate=rate, steps=steps, seed=seed):
            if step in recorded:
                _save(encoder, paths[step // every])
        _save(encoder, directory / f"step_{steps:03}_fp32.safetensors", torch.float32)

    return _cached(directory, make, paths, rate=rate, steps=steps, every=every, seed=seed)


def family(directory: Path) -> list[Version]:
    """Make a base, four checkpoints of a fine-tune, three variants and eleven consecutive RL steps.

    All are trained from the base, independently, two at a time. The first version of the RL steps
    is that after their warm-up.
    """
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        tuned = pool.submit(fine_tune_checkpoints, directory / "tuned", every=75)
        seed = pool.submit(fine_tune_checkpoints, directory / "seed", every=300, seed=1)
        layers = pool.submit(_last_layers, directory / "layers", rate=3e-5, steps=300, seed=2)
        adapter = pool.submit(_merged_adapter, directory / "adapter", rate=1e-3, steps=300, seed=3)
        steps = pool.submit(rl_steps, directory / "rl", rate=1e-6)
    base, *checkpoints = tuned.result()
    return [
        Version("base", base, None),
        *_chain("tuned", checkpoints),
        Version("seed", seed.result()[-1], "base"),
        Version("layers", layers.result()[-1], "base"),
        Version("adapter", adapter.result()[-1], "base"),
        *_chain("rl", steps.result()),
    ]


def _chain(name: str, paths: list[Path]) -> list[Version]:
    names = ["base", *(f"{name}-{n}" for n in range(1, len(paths) + 1))]
    return [Version(names[n + 1], path, names[n]) for n, path in enumerate(paths)]


def _last_layers(directory: Path, *, rate: float, steps: int, seed: int) -> list[Path]:
    """Train the last two layers of the encoder alone."""
    path = directory / "model.safetensors"

    def make() -> None:
        encoder = variants.Encoder(variants.base_directory())
        encoder.model.requires_grad_(False)
        encoder.model.encoder.layer[-2:].requires_grad_(True)
        for _ in _train(encoder, _contrast, rate=rate, steps=steps, seed=seed):
            pass
        _save(encoder, path)

    return _cached(directory, make, [path], rate=rate, steps=steps, seed=seed)


def _merged_adapter(directory: Path, *, rate: float, steps: int, seed: int) -> list[Path]:
    """Train a LoRA adapter of queries and values, and merge it into the weights."""
    path = directory / "model.safetensors"

    def make() -> None:
        torch.manual_seed(seed)
        encoder = variants.Encoder(variants.base_directory())
        encoder.model.requires_grad_(False)
        attentions = [layer.attention.self for layer in encoder.model.encoder.layer]
        for attention in attentions:
            attention.query = variants.LowRank(attention.query, RANK, scale=2.0)
            attention.value = variants.LowRank(attention.value, RANK, scale=2.0)
        for _ in _train(encoder, _contrast, rate=rate, steps=steps, seed=seed):
            pass
        for attention in attentions:
            attention.query = _merge(attention.query)
            attention.value = _merge(attention.value)
        _save(encoder, path)

    return _cached(directory, make, [path], rate=rate, steps=steps, seed=seed)


def _merge(adapted: variants.LowRank) -> torch.nn.Linear:
    product = adapted.lora_B.weight.data @ adapted.lora_A.weight.data
    adapted.layer.weight.data += adapted.scale * product
    return adapted.layer


def _cached(directory: Path, make: Callable[[], None], paths: list[Path], **how: Any) -> list[Path]:
    """Make files, unless they exist and were made with the same parameters; return their paths."""
    marker = directory / "complete"
    text = json.dumps({**how, "files": [path.name for path in paths]}) + "\n"
    if not marker.exists() or marker.read_text() != text:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        make()
        marker.write_text(text)
    return paths


def _train(
    encoder: variants.Encoder,
    loss: Callable[[torch.Tensor], torch.Tensor],
    *,
    rate: float,
    steps: int,
    seed: int,
) -> Iterator[int]:
    """Train the parameters that require gradients; yield after each step, counted from 1.

    Every sentence is encoded twice. Because of dropout, this yields a pair of different vectors.

    Args:
        encoder: The encoder to train in place.
        loss: Loss, given the cosines of all first vectors (rows) with all second ones (columns).
        rate: The learning rate.
        steps: Number of steps.
        seed: Seed of the order of the sentences and of the dropout.
    """
    torch.manual_seed(seed)
    parameters = [p for p in encoder.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
    text = _cut(encoder.tokenizer, sentences())
    encoder.model.train()
    for step in range(1, steps + 1):
        batch = [text[n] for n in torch.randperm(len(text))[:BATCH]]
        vectors = encoder([*batch, *batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss(vectors[:BATCH] @ vectors[BATCH:].T))
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        yield step
    encoder.model.eval()


def _cut(tokenizer: Any, text: list[str]) -> list[str]:
    rows = tokenizer(text, truncation=True, max_length=TOKENS).input_ids
    cut: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return cut


def _contrast(cosines: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(20 * cosines, torch.arange(len(cosines)))


class _Bandit:
    """A REINFORCE loss: each sentence draws a partner, and is rewarded for its own pair.

    Attributes:
        baseline: Running mean of the reward.
    """

    def __init__(self) -> None:
        self.baseline = 0.5

    def __call__(self, cosines: torch.Tensor) -> torch.Tensor:
        chances = functional.log_softmax(5 * cosines, dim=1)
        drawn = torch.multinomial(chances.detach().exp(), 1)
        reward = (drawn.squeeze(1) == torch.arange(len(cosines))).float()
        advantage = reward - self.baseline
        self.baseline = 0.9 * self.baseline + 0.1 * reward.mean().item()
        return -(advantage * chances.gather(1, drawn).squeeze(1)).mean()


def _save(encoder: variants.Encoder, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    state = encoder.model.state_dict()
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in state.items()}, path)


def density(base: Path, new: Path) -> float:
    """Return the share of elements whose bits differ."""
    left, right = load_file(base), load_file(new)
    pairs = [(left[name].view(torch.int16), right[name].view(torch.int16)) for name in left]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    root: Path = parser.parse_args().directory
    start = time.perf_counter()
    versions = family(root / "family")
    fast = rl_steps(root / "rl_3e-6", rate=3e-6)
    print(f"made in {time.perf_counter() - start:.0f} s")
    for a, b in pairwise(fast):
        print(f"rl_3e-6 {b.stem} from {a.stem}: {density(a, b):.3%}")
    files = {version.name: version.path for version in versions}
    for version in versions:
        if version.parent is not None:
            share = density(files[version.parent], version.path)
            print(f"family {version.name} from {version.parent}: {share:.3%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
