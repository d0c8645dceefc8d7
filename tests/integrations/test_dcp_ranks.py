"""torch.distributed.checkpoint on several ranks, which are processes; torchrun runs the example."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.events import Reporter
from casweights.integrations.dcp import CasweightsReader, CasweightsWriter
from casweights.testing.hub import Conditions, LocalHubProcess
from casweights.testing.states import assert_same_state
from tests.integrations.dcp_driver import Job
from tests.integrations.dcp_verbs import load, save

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.results import CommitStats

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integrations" / "dcp.md"
RANKS = 4
NAMES = ["async", "changed", "first", "same"]


class Ranks:
    """Starts ranks through one process, which imports torch once for all of them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.integrations.dcp_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def codes(self, job: Job) -> list[int]:
        """The exit statuses of a job's ranks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job._asdict()), file=self._process.stdin, flush=True)
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    def drive(
        self, scenario: str, ranks: int, store: str | Path, folder: Path, **env: str
    ) -> dict[str, Any]:
        """Run a job in which no rank fails, and return the result of the first rank."""
        job = Job(scenario, ranks, str(store), str(folder), env)
        assert self.codes(job) == [0] * ranks
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with closing(Ranks()) as ranks:
        yield ranks


class Saved(NamedTuple):
    """The versions that four ranks saved.

    Attributes:
        store: The store.
        folder: The folder with the same states as torch gathered them.
        ids: The versions' IDs, by name.
        stats: The stats of each commit.
    """

    store: Path
    folder: Path
    ids: dict[str, str]
    stats: list[dict[str, int]]

    def state(self, name: str) -> dict[str, Any]:
        """A state with whole tensors."""
        state: dict[str, Any] = torch.load(self.folder / f"{name}.pt", weights_only=True)
        return state


@pytest.fixture(scope="module")
def saved(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    store, folder = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("folder")
    casweights.open(store, create=True, config=StoreConfig(chunk_size=64 * KiB)).close()
    result = ranks.drive("save", RANKS, store, folder)
    return Saved(store, folder, result["ids"], result["stats"])


def test_every_rank_has_its_own_file(saved: Saved) -> None:
    with casweights.open(saved.store) as repo:
        files = [file.path for file in repo.snapshot("run").files]
        assert files == ["dcp.msgpack", *(f"shards/rank-000{n}.safetensors" for n in range(RANKS))]
        assert [str(snapshot.id) for snapshot in repo.log("run")] == [*saved.ids.values()][::-1]
        assert sorted(repo.tags()) == NAMES
        rows = repo.tensor("run", "others.big[256,0]")
        assert rows.shape == (256, 512)
        assert repo.verify().problems == ()


def test_replicated_items_are_stored_once(saved: Saved) -> None:
    with casweights.open(saved.store) as repo:
        names = [
            info.name
            for file in repo.snapshot("run").files
            for info in (file.header.tensors if file.header else ())
        ]
    assert names.count("others.everywhere") == 1
    assert names.count("others.plain") == 1


def test_a_step_stores_only_its_changes(saved: Saved) -> None:
    first, same, changed, _ = saved.stats
    assert first["new_bytes"] > 0.9 * first["total_bytes"]
    assert same["stored_bytes"] == 0
    assert same["new_chunks"] == 0
    assert 0 < changed["stored_bytes"] < 0.05 * first["stored_bytes"]


def test_shards_on_the_grid_are_chunks_of_the_whole(saved: Saved) -> None:
    class Stats(Reporter):
        def committed(self, stats: CommitStats) -> None:
            seen.append(stats)

    seen: list[CommitStats] = []
    with casweights.open(saved.store, reporter=Stats()) as repo:
        repo.commit({"big": saved.state("first")["others"]["big"]}, branch="whole")
        repo.delete_branch("whole")
    assert seen[0].chunks == 16
    assert seen[0].new_chunks == 0


@pytest.mark.parametrize("name", NAMES)
def test_one_process_loads_what_four_saved(saved: Saved, name: str) -> None:
    expected = saved.state(name)
    target = torch.load(saved.folder / f"{name}.pt", weights_only=True)
    for tensor in tensors(target):
        tensor.zero_()
    load(target, CasweightsReader(saved.store), checkpoint_id=saved.ids[name])
    assert_same_state(target, expected)


def tensors(node: Any) -> list[torch.Tensor]:
    if isinstance(node, dict | list):
        children = node.values() if isinstance(node, dict) else node
        return [tensor for child in children for tensor in tensors(child)]
    return [node] if isinstance(node, torch.Tensor) else []


def test_two_ranks_load_what_four_saved(ranks: Ranks, saved: Saved) -> None:
    assert ranks.drive("load", 2, saved.store, saved.folder) == {"loaded": NAMES}


def test_a_killed_rank_leaves_the_branch_unchanged(
    ranks: Ranks, saved: Saved, tmp_path: Path
) -> None:
    *others, killed = ranks.codes(Job("die", RANKS, str(saved.store), str(tmp_path), {}))
    assert killed == -signal.SIGKILL
    assert all(others)
    with casweights.open(saved.store) as repo:
        assert str(repo.resolve("run")) == saved.ids["async"]
        assert repo.verify().problems == ()
        state = saved.state("changed")
        save(state, CasweightsWriter(repo, "after", parent="run"))
        target = saved.state("first")
        load(target, CasweightsReader(repo, "after"))
        assert_same_state(target, state)


def test_ranks_save_to_and_load_from_a_bucket(ranks: Ranks, tmp_path: Path) -> None:
    store, folder = "hf://buckets/me/weights/run", tmp_path / "folder"
    folder.mkdir()
    with LocalHubProcess(tmp_path / "hub") as hub:
        hub.create_bucket("me/weights")
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        init = [sys.executable, "-m", "casweights", "--store", store, "init"]
        subprocess.run(init, check=True, capture_output=True, env={**os.environ, **env})
        hub.conditions = Conditions(listing_lag=0.5)  # listings of packs are outdated
        result = ranks.drive("save", 2, store, folder, **env)
        assert result["stats"][1]["stored_bytes"] == 0
        assert result["stats"][2]["stored_bytes"] < 0.05 * result["stats"][0]["stored_bytes"]
        env["HF_HOME"] = str(tmp_path / "elsewhere")
        assert ranks.drive("load", 1, store, folder, **env) == {"loaded": NAMES}


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    example = PAGE.read_text().split("```python\n", 1)[1].split("```", 1)[0]
    (tmp_path / "train.py").write_text(example)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "train.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    with casweights.open(tmp_path / "weights") as repo:
        assert run.stdout.split() == [str(snapshot.id) for snapshot in repo.log("run-7")][::-1]
        assert [s.metadata for s in repo.log("run-7")] == [{"step": 2}, {"step": 1}]
