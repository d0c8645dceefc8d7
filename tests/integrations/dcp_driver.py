"""One rank of `test_dcp.py`; run by torchrun.

Usage: torchrun ... dcp_driver.py SCENARIO STORE FOLDER

SCENARIO is "save", "load" or "die". What was saved, gathered by torch alone, lies as
``FOLDER/NAME.pt``; rank 0 prints what it saw as JSON. A broken promise ends with a traceback.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import casweights
from casweights.events import Reporter
from casweights.integrations.dcp import CasweightsReader, CasweightsWriter
from casweights.testing.states import assert_same_state

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import WriteItem
    from torch.distributed.tensor.placement_types import Placement

    from casweights.results import CommitStats

BIG = (1024, 512)  # of bf16: 1 MiB


class Stats(Reporter):
    """Keeps what commits did."""

    def __init__(self) -> None:
        self.seen: list[CommitStats] = []

    def committed(self, stats: CommitStats) -> None:
        self.seen.append(stats)

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(stats) | {"snapshot": str(stats.snapshot)} for stats in self.seen]


class Training:
    """A tiny model under FSDP2 with an optimizer that has state, and tensors sharded otherwise."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 3), nn.LayerNorm(3))
        for layer in (self.model[0], self.model[2]):
            fully_shard(layer)
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, weight_decay=0.01)
        self.mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.others: dict[str, Any] = {
            "big": self.distribute(torch.randn(BIG).bfloat16(), Shard(0)),
            "columns": self.distribute(torch.randn(7, 30), Shard(1)),
            "everywhere": self.distribute(torch.randn(40), Replicate()),
            "uneven": self.distribute(torch.randn(5, 3, dtype=torch.float64), Shard(0)),
            "few": self.distribute(torch.arange(2), Shard(0)),
            "tiles": distribute_tensor(torch.randn(9, 9), self._grid(), [Shard(0), Shard(1)]),
            "plain": torch.randn(11),
            "nested": {"epoch": seed, "list": [torch.randn(2), {"name": f"run {seed}"}]},
        }

    def distribute(self, tensor: torch.Tensor, placement: Placement) -> DTensor:
        return distribute_tensor(tensor, self.mesh, [placement])

    def _grid(self) -> Any:
        return init_device_mesh(
            "cpu", (-(-dist.get_world_size() // 2), min(2, dist.get_world_size()))
        )

    def step(self) -> None:
        self.model(torch.randn(4, 64)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def change(self, share: float) -> None:
        """Some elements of `big`, the same ones whatever the number of ranks."""
        chance = torch.Generator().manual_seed(1)
        chosen = self.distribute((torch.rand(BIG, generator=chance) < share), Shard(0))
        local = self.others["big"].to_local()
        local[chosen.to_local()] += 1

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "others": self.others}

    def load(self, reader: CasweightsReader, checkpoint_id: str) -> None:
        state = self.state()
        state_dict_loader.load(state, storage_reader=reader, checkpoint_id=checkpoint_id)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=True),
        )
        self.others = state["others"]


def gathered(node: Any) -> Any:
    """The state with whole tensors, on every rank."""
    if isinstance(node, DTensor):
        return node.full_tensor()
    if isinstance(node, dict):
        return {str(key): gathered(value) for key, value in node.items()}
    if isinstance(node, list):
        return [gathered(value) for value in node]
    return node.detach().clone() if isinstance(node, torch.Tensor) else node


def keep(training: Training, path: Path) -> None:
    """What should come out again."""
    state = gathered(training.state())
    if dist.get_rank() == 0:
        torch.save(state, path)


def same_everywhere(value: str) -> str:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    assert len(set(values)) == 1, values
    return value


def save(store: str, folder: Path) -> dict[str, Any]:
    stats, ids = Stats(), {}
    repository = casweights.open(store, workers=1, reporter=stats)
    writer = CasweightsWriter(repository, "run", message="1", metadata={"step": 1})
    training = Training(seed=1)
    training.step()

    def save_as(name: str) -> None:
        keep(training, folder / f"{name}.pt")
        saved = state_dict_saver.save(training.state(), storage_writer=writer, checkpoint_id=name)
        assert saved.storage_meta is not None
        ids[name] = same_everywhere(str(saved.storage_meta.checkpoint_id))
        assert (writer.snapshot is not None) == (dist.get_rank() == 0)

    save_as("first")
    save_as("same")
    training.change(0.01)
    save_as("changed")
    training.step()
    keep(training, folder / "async.pt")
    pending = state_dict_saver.async_save(
        training.state(), storage_writer=writer, checkpoint_id="async"
    )
    saved = pending.result()  # type: ignore[union-attr]
    assert saved.storage_meta is not None
    ids["async"] = same_everywhere(str(saved.storage_meta.checkpoint_id))
    return {"ids": ids, "stats": stats.rows()}


def load(store: str, folder: Path) -> dict[str, Any]:
    reader = CasweightsReader(store)
    names = [path.stem for path in sorted(folder.glob("*.pt"))]
    for seed, name in enumerate(names, 100):
        training = Training(seed)
        training.step()
        training.load(reader, name)
        expected = torch.load(folder / f"{name}.pt", weights_only=True)
        assert_same_state(gathered(training.state()), expected)
    return {"loaded": names}


class Deadly(DefaultSavePlanner):
    """Ends the process in the middle of its shards."""

    def resolve_data(self, write_item: WriteItem) -> Any:
        if "big" in write_item.index.fqn:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(write_item)


def die(store: str, folder: Path) -> dict[str, Any]:
    training = Training(seed=3)
    planner = Deadly() if dist.get_rank() == dist.get_world_size() - 1 else None
    state_dict_saver.save(
        training.state(), storage_writer=CasweightsWriter(store, "run"), planner=planner
    )
    return {}


def main() -> None:
    scenario, store, folder = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = {"save": save, "load": load, "die": die}[scenario](store, Path(folder))
    if dist.get_rank() == 0:
        print(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
