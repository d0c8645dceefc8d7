"""Measures versions that are functions of others: exports of another type, and sums of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

import casweights
from casweights.stores.memory import MemoryStore
from tools.bench.harness import Result, compared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench.encodings.data import Data

    Tensors = dict[str, torch.Tensor]

_WHOLE = "the version alone"


def functions(data: Data) -> list[Result]:
    """Return the bytes of versions that are functions of stored ones."""
    full = load_file(data.masters[0])
    base, tuned = load_file(data.base), load_file(data.chain("tuned")[-1])
    mean = {n: ((base[n].float() + tuned[n].float()) / 2).bfloat16() for n in base}
    parts = {n: (0.7 * base[n].float() + 0.3 * tuned[n].float()).bfloat16() for n in base}
    cut = {n: _cut(tensor) for n, tensor in full.items()}
    half = {name: tensor.half() for name, tensor in full.items()}
    rows = [
        ("bf16 export of an fp32 model in the store", base, [full]),
        ("fp16 export of it", half, [full]),
        ("bf16 export with its lower half cut off", cut, [full]),
        ("mean of two bf16 models in the store", mean, [base, tuned]),
        ("seven and three tenths of them", parts, [base, tuned]),
    ]
    found = [
        compared(what, added(new, old), _raw(new), "bytes", target=0.001, note="raw bytes")
        for what, new, old in rows
    ]
    return [
        *found,
        compared(
            "fp32 model whose bf16 export is in the store",
            added(full, [base]),
            added(full, []),
            "bytes",
            note=_WHOLE,
        ),
        compared(
            "bf16 fine-tune where only the fp32 base is",
            added(tuned, [full]),
            added(tuned, [base]),
            "bytes",
            target=1.05,
            note="the same where the bf16 base is",
        ),
    ]


def added(new: Tensors, old: Sequence[Tensors]) -> int:
    """Return the bytes by which a store with some models grows by another one, no parent named."""
    store = MemoryStore()
    with casweights.open(store, create=True) as repo:
        for number, tensors in enumerate(old):
            repo.commit(tensors, branch=f"old-{number}")
    before = sum(info.size for info in store.list())
    with casweights.open(store) as repo:
        repo.commit(new, branch="new")
    return sum(info.size for info in store.list()) - before


def _raw(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _cut(tensor: torch.Tensor) -> torch.Tensor:
    bits = (tensor.contiguous().view(torch.int32) >> 16).to(torch.int16)
    return bits.view(torch.bfloat16)
