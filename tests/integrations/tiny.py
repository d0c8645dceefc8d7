"""Tiny random models of transformers, and a `Trainer` for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 64


def llama() -> PreTrainedModel:
    """A model with separate input and output embeddings, and dropout to use random numbers."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    """A model whose input and output embeddings are one tensor."""
    set_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


class Sentences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """32 sentences of 8 tokens."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(VOCABULARY, (8,), generator=generator)
        return {"input_ids": tokens, "labels": tokens}


def trainer(
    output_dir: Path,
    *callbacks: TrainerCallback,
    model: torch.nn.Module | None = None,
    **options: Any,
) -> Trainer:
    """A trainer of `llama`, or of another model, that saves after each of six steps."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "save_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    args = TrainingArguments(output_dir=str(output_dir), **settings | options)
    return Trainer(model or llama(), args, train_dataset=Sentences(), callbacks=list(callbacks))


def same_weights(one: Any, other: Any) -> bool:
    """Whether two models have the same tensors, by name, dtype and value."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )
