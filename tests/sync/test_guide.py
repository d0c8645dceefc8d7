"""The examples of docs/sync.md, run without changes."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import casweights

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDE = Path(__file__).parents[2] / "docs" / "sync.md"
URL = "hf://buckets/me/weights/run-7"


class EnoughError(Exception):
    """Ends a replica, which would run forever."""


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 16)).square().sum().backward()
    optimizer.step()


@contextmanager
def paused() -> Iterator[None]:
    yield
    raise EnoughError


def test_the_examples_of_the_guide_run(tmp_path: Path) -> None:
    text = GUIDE.read_text().replace(URL, str(tmp_path))
    trainer, replica = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    casweights.open(tmp_path, create=True).close()
    torch.manual_seed(0)
    model, copy = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
    optimizer = torch.optim.AdamW(model.parameters())
    exec(trainer, {"model": model, "optimizer": optimizer, "steps": 3, "train": train})
    with casweights.open(tmp_path) as store:
        assert [version.metadata["step"] for version in store.log("policy")] == [2, 1, 0]
    names: dict[str, Any] = {
        "casweights": casweights,
        "model": copy,
        "engine": SimpleNamespace(paused=paused),
    }
    with pytest.raises(EnoughError):
        exec(replica, names)
    names["subscriber"].close()
    for name, tensor in copy.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
