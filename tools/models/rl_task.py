"""Reinforcement learning on a small scale: a policy learns to put digits in order.

The policy is a Llama of 1.8 million parameters. It reads five digits and a mark, and writes five
digits; the reward is the share of places with the right digit, from 0 to 1. Before the rewards it
is trained on examples of which most are careless, so that it knows what an answer looks like and
gets few of them right. Then each step is policy gradients with a group's mean as the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)  # several processes share the machine

DIGITS = 5
MARK = 10
PROMPTS = 16  # of a batch of rollouts
GROUP = 8  # answers to each prompt
WIDTH = 192
EXAMPLES = 64  # of a step of the training before
CARELESS = 0.6  # the share of examples whose digits are in any order
TRUNCATION = 2.0  # of importance ratios
CLIP = 1.0  # of the gradient's norm


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Answers that a policy drew.

    Attributes:
        sequences: Prompts and answers, int64 of shape (PROMPTS * GROUP, 2 * DIGITS + 1); a group
            lies together.
        log_probs: What the policy gave each digit of the answers, fp32 of shape (..., DIGITS).
    """

    sequences: torch.Tensor
    log_probs: torch.Tensor

    def rewards(self) -> torch.Tensor:
        """The share of right places, fp32, one for each answer."""
        prompts, answers = self.sequences[:, :DIGITS], self.sequences[:, DIGITS + 1 :]
        return (answers == prompts.sort(dim=1).values).float().mean(1)


def new_policy() -> Any:
    """A policy that knows nothing."""
    config = LlamaConfig(
        vocab_size=MARK + 1,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=WIDTH**-0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def train_on_examples(policy: Any, *, steps: int = 80, rate: float = 1e-3) -> None:
    """Show the policy answers, most of them careless ones."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    for _ in range(steps):
        prompts = _prompts(EXAMPLES)
        digits = prompts[:, :DIGITS]
        any_order = digits.gather(1, torch.rand(digits.shape).argsort(dim=1))
        careless = torch.rand(EXAMPLES, 1) < CARELESS
        answers = torch.where(careless, any_order, digits.sort(dim=1).values)
        loss = -log_probs(policy, torch.cat([prompts, answers], dim=1)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def generate(policy: Any) -> Rollouts:
    """Draw a group of answers to each of some new prompts."""
    prompts = _prompts(PROMPTS).repeat_interleave(GROUP, dim=0)
    with torch.no_grad():
        sequences = policy.generate(prompts, max_new_tokens=DIGITS, do_sample=True, top_k=0)
        return Rollouts(sequences, log_probs(policy, sequences))


def log_probs(policy: Any, sequences: torch.Tensor) -> torch.Tensor:
    """What a policy gives each digit of the answers, fp32 of shape (rows, DIGITS)."""
    logits = policy(sequences[:, :-1]).logits[:, DIGITS:].float()
    answers = sequences[:, DIGITS + 1 :, None]
    chances: torch.Tensor = logits.log_softmax(dim=-1).gather(2, answers).squeeze(2)
    return chances


class Learner:
    """Policy gradients from rollouts that older policies may have drawn.

    Args:
        policy: Trained in place, in fp32.
        rate: The learning rate.
    """

    def __init__(self, policy: Any, *, rate: float = 3e-5) -> None:
        self.policy = policy
        self._optimizer = torch.optim.AdamW(
            policy.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, batches: list[Rollouts]) -> float:
        """One optimizer step; returns the mean reward.

        An answer's advantage is its reward less the mean of its group, and counts by how likely
        the policy now is to give this answer, against the one that gave it.
        """
        sequences = torch.cat([batch.sequences for batch in batches])
        behaviour = torch.cat([batch.log_probs for batch in batches])
        rewards = torch.cat([batch.rewards() for batch in batches])
        groups = rewards.view(-1, GROUP)
        advantages = (groups - groups.mean(1, keepdim=True)).view(-1, 1) / (rewards.std() + 1e-4)
        current = log_probs(self.policy, sequences)
        ratios = (current.detach() - behaviour).exp().clamp(max=TRUNCATION)
        loss = -(ratios * advantages * current).mean()
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
        self._optimizer.step()
        return rewards.mean().item()


def _prompts(count: int) -> torch.Tensor:
    return torch.cat([torch.randint(10, (count, DIGITS)), torch.full((count, 1), MARK)], dim=1)
