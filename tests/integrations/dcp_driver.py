"""Ranks that save and load for `test_dcp_ranks.py`, which runs this module as a process.

Each line of the input is a `Job` as JSON; each line of the output has the exit statuses of its
ranks. The ranks are forks of this process, which has no threads and has imported torch once for
all of them. Rank 0 writes its result to ``result.json`` in the folder of the job, and the saved
states, gathered by torch alone, to ``NAME.pt``. A failed check ends a rank with a traceback.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from tests.faults.kill_driver import fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.checkpoint.planner import WriteItem
    from torch.distributed.tensor.placement_types import Placement

    from casweights.results import CommitStats

BIG = (1024, 512)  # of bf16: 1 MiB


class Stats(Reporter):
    """Keeps the stats of commits."""

    def __init__(self) -> None:
        self.seen: list[CommitStats] = []

    def committed(self, stats: CommitStats) -> None:
        self.seen.append(stats)

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(stats) | {"snapshot": str(stats.snapshot)} for stats in self.seen]


class Training:
    """A tiny model under FSDP2, an optimizer with state, and tensors with other sharding."""

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
        """Change some elements of `big`: the same ones for every number of ranks."""
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
    """Store the state that a load must return."""
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


class Job(NamedTuple):
    """A task for several ranks.

    Attributes:
        scenario: The function that each rank runs: a key of `SCENARIOS`.
        ranks: The number of ranks.
        store: The store in which they save, or from which they load.
        folder: The folder for the same states as torch gathers them.
        env: Additional environment variables.
    """

    scenario: str
    ranks: int
    store: str
    folder: str
    env: dict[str, str]


SCENARIOS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "save": save,
    "load": load,
    "die": die,
}


def run_rank(job: Job, rank: int, meeting: Path) -> None:
    os.environ |= job.env
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=job.ranks
    )
    result = SCENARIOS[job.scenario](job.store, Path(job.folder))
    if rank == 0:
        Path(job.folder, "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def run(job: Job) -> list[int]:
    """Run all ranks of a job, and return their exit statuses; if one fails, end the others."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        ranks = [fork(partial(run_rank, job, rank, meeting)) for rank in range(job.ranks)]
        codes: dict[int, int] = {}
        while len(codes) < job.ranks:
            child, status = os.wait()
            codes[child] = os.waitstatus_to_exitcode(status)
            if codes[child]:
                for other in set(ranks) - codes.keys():
                    os.kill(other, signal.SIGTERM)
    return [codes[rank] for rank in ranks]


def main() -> None:
    torch.set_num_threads(1)  # threads of torch would be missing in forks
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(run(Job(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
