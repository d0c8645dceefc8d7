"""A small reinforcement learning task: a policy learns to sort digits.

The policy is a Llama with 1.8 million parameters. It reads five digits and a mark, and writes five
digits. The reward is the share of positions with the right digit, from 0 to 1. First the policy is
trained on examples, most of them careless, so that it learns the form of an answer but few right
ones. Then each step applies policy gradients, with the mean of a group as the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)  # several processes share the machine

DIGITS = 5
MARK = 10
PROMPTS = 16  # prompts of a batch of rollouts
GROUP = 8  # answers to each prompt
WIDTH = 192
EXAMPLES = 64  # examples of a step of the first training
CARELESS = 0.6  # share of examples with digits in random order
TRUNCATION = 2.0  # upper limit of importance ratios
CLIP = 1.0  # upper limit of the gradient's norm


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Answers that a policy generated.

    Attributes:
        sequences: Prompts and answers, int64 of shape (PROMPTS * GROUP, 2 * DIGITS + 1). Answers
            of a group are consecutive.
        log_probs: Log probability of each digit of the answers under the policy, fp32 of shape
            (PROMPTS * GROUP, DIGITS).
    """

    sequences: torch.Tensor
    log_probs: torch.Tensor

    def rewards(self) -> torch.Tensor:
        """Return the share of right positions of each answer, fp32."""
        prompts, answers = self.sequences[:, :DIGITS], self.sequences[:, DIGITS + 1 :]
        return (answers == prompts.sort(dim=1).values).float().mean(1)


def new_policy() -> Any:
    """Return an untrained policy."""
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
    """Train the policy on examples of answers, most of them careless."""
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
    """Generate a group of answers for each of PROMPTS new prompts."""
    prompts = _prompts(PROMPTS).repeat_interleave(GROUP, dim=0)
    with torch.no_grad():
        sequences = policy.generate(prompts, max_new_tokens=DIGITS, do_sample=True, top_k=0)
        return Rollouts(sequences, log_probs(policy, sequences))


def log_probs(policy: Any, sequences: torch.Tensor) -> torch.Tensor:
    """Return the log probability of each digit of the answers, fp32 of shape (rows, DIGITS)."""
    logits = policy(sequences[:, :-1]).logits[:, DIGITS:].float()
    answers = sequences[:, DIGITS + 1 :, None]
    chances: torch.Tensor = logits.log_softmax(dim=-1).gather(2, answers).squeeze(2)
    return chances


class Learner:
    """Trains a policy by policy gradients, with rollouts that may come from older versions of it.

    Args:
        policy: The policy to train in place, in fp32.
        rate: The learning rate.
    """

    def __init__(self, policy: Any, *, rate: float = 3e-5) -> None:
        self.policy = policy
        self._optimizer = torch.optim.AdamW(
            policy.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, batches: list[Rollouts]) -> float:
        """Make one optimizer step; return the mean reward.

        The advantage of an answer is its reward minus the mean of its group. It is weighted by the
        probability of the answer under the current policy, divided by that under the policy that
        generated it.
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
