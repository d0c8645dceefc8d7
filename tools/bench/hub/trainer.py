"""Jobs of a trainer: steps of a model in memory, and the requests of a replica."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

import casweights
from casweights.config import RemoteOptions
from casweights.stores.url import open_object_store
from tools.bench.hub.model import Model
from tools.bench.hub.patch import Patches, check_v3
from tools.bench.hub.plain import create_bucket, upload
from tools.bench.hub.probe import Line, Probe
from tools.bench.hub.reads import RecordingStore

if TYPE_CHECKING:
    from tools.bench.hub.jobs import Options


def train(probe: Probe, options: Options) -> Any:
    """Take steps of a model; commit each, upload it whole, and upload it as a patch."""
    lines = [Line(**line) for line in options["lines"]]
    steps, results = _Steps(probe, options), []
    steps.take(lines[0])  # a first step that does not count, to warm up
    for line in lines:
        for n in range(options["rounds"]):
            print(f"  steps, {line.name}: {n + 1}", file=sys.stderr)
            results.append({"line": line.name, **steps.take(line)})
    steps.close()
    return results


class _Steps:
    """Takes steps, and sends each in three ways.

    Args:
        probe: A probe of the Hub.
        options: Options of the job.
    """

    def __init__(self, probe: Probe, options: Options) -> None:
        self._probe, self._options = probe, options
        self._model = _new_model(options)
        self._state = self._model.tensors()
        self._bucket, self._scratch = options["bucket"], Path(options["scratch"])
        create_bucket(self._bucket)
        self._store = _open_trainer(options["url"], self._model)
        self._store.commit(self._state)
        self._patches = Patches(self._state)
        self._first = {name: part.copy() for name, part in self._model.state.items()}
        self._count = 0

    def take(self, line: Line) -> dict[str, Any]:
        """Take a step; return the costs of each way to send it."""
        self._model.step(self._options["share"])
        name = f"{self._count:04}.safetensors"
        full, patch = self._scratch / f"full-{name}", self._scratch / f"patch-{name}"
        ways = {
            "step": lambda: self._store.commit(self._state),
            "full": lambda: self._send_full(full),
            "patch": lambda: self._send_patch(patch),
        }
        spent = {way: self._probe.measure(send, line).to_json() for way, send in ways.items()}
        if not self._count:
            check_v3(patch, self._first, self._model.state)
            self._first.clear()
        self._count += 1
        full.unlink()
        patch.unlink()
        return spent

    def close(self) -> None:
        """Check the version that was committed last, and close the store.

        Raises:
            AssertionError: The version differs from the model.
        """
        nothing_kept = RemoteOptions(disk_cache=0)
        with casweights.open(self._options["url"], remote=nothing_kept) as reader:
            _check(reader.load("main"), self._state)
        self._store.close()

    def _send_full(self, path: Path) -> None:
        save_file(self._state, path)
        upload(self._bucket, [(str(path), path.name)])

    def _send_patch(self, path: Path) -> None:
        self._patches.write(path)
        upload(self._bucket, [(str(path), path.name)])


def follow(probe: Probe, options: Options) -> Any:
    """Run a trainer and a replica, both kept open; return the requests and reads of each step."""
    model, line = _new_model(options), Line(**options["line"])
    state = model.tensors()  # views of the model's memory, which its steps change
    trainer = _open_trainer(options["url"], model)
    trainer.commit(state)
    reads = RecordingStore(open_object_store(options["url"], RemoteOptions(disk_cache=0)))
    replica = casweights.open(reads, cache_size=2 * model.nbytes)
    replica.load("heads/main")
    results = []
    for _ in range(options["rounds"] + 1):
        model.step(options["share"])
        written = probe.measure(lambda: trainer.commit(state), line)
        read, chain = _follow_step(probe, replica, reads, state, line)
        results.append({"writer": written.to_json(), "follower": read, "chain": chain})
    trainer.close()
    replica.close()
    return results[1:]


def _follow_step(
    probe: Probe,
    replica: casweights.Repository,
    reads: RecordingStore,
    state: dict[str, torch.Tensor],
    line: Line,
) -> tuple[dict[str, Any], list[str]]:
    """Load a version; return its costs and its longest chain of sequential reads."""
    reads.calls.clear()
    loaded: dict[str, Any] = {}
    read = probe.measure(lambda: loaded.update(replica.load("heads/main")), line)
    chain = [call.text for call in reads.chain(line.latency)]
    _check(loaded, state)
    return read.to_json(), chain


def _new_model(options: Options) -> Model:
    model = Model(options["size"], options["seed"])
    model.make()
    return model


def _open_trainer(url: str, model: Model) -> casweights.Repository:
    return casweights.open(url, create=True, cache_size=2 * model.nbytes)


def _check(found: dict[str, Any], state: dict[str, Any]) -> None:
    for name, tensor in state.items():
        if not torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)):
            raise AssertionError(f"{name} differs from the tensor that was committed")
