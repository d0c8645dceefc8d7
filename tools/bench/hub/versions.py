"""The row on many versions: requests of a commit and a checkout must not grow with their number."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import casweights
from casweights.config import RemoteOptions
from tools.bench.harness import Result
from tools.bench.histories import CONFIG, SHARE, HistoryStore, small_model
from tools.bench.hub.clients import fresh_hub, note_progress
from tools.bench.hub.plain import create_bucket, upload
from tools.bench.hub.probe import UNSHAPED, Probe, Spent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench.hub.jobs import Options
    from tools.bench.hub.model import Model
    from tools.bench.hub.report import Report


_BUCKET, _PREFIX = "me/weights", "run"
_RUN = 100  # versions of a training run; 10,000 versions of one run would take hours
_NATIVE = 100  # the last versions, a whole run, which are committed to the bucket itself
_FEW = 10
_STEPS = 7
_BATCH = 1000
_NO_CACHE = RemoteOptions(disk_cache=0)
_OPERATIONS = {
    "trainer": "commit, branch open",
    "fresh_commit": "commit, fresh process",
    "replica": "load of the next one, replica",
    "checkout": "checkout of the newest, fresh process",
}


def row_versions(report: Report, work: Path, versions: int) -> None:
    """Add row 6: requests with few and with many versions."""
    counts = sorted({_FEW, min(100, versions), versions})
    found = {count: count_requests(work, count) for count in counts}
    last = counts[-1]
    for name, what in _OPERATIONS.items():
        routes = "; ".join(
            f"{count:,}: {found[count][name][0].routes}{_extremes(found[count][name])}"
            for count in counts
        )
        nbytes = ", ".join(f"{found[count][name][0].moved:,}" for count in counts)
        many = found[last][name][0].total
        for count in counts[:-1]:
            few = found[count][name][0].total
            report.add(
                Result(
                    what=f"6 {what}: {last:,} versions to {count:,}",
                    ours=many,
                    reference=few,
                    unit="requests",
                    ratio=many / few,
                    target=1.0 if count == _FEW else 1.1,
                    note=f"runs of {_RUN} steps; chains of few versions are shorter, and chains "
                    f"differ slightly between runs. {routes}. Bytes: {nbytes}",
                )
            )


def _extremes(steps: Sequence[Spent]) -> str:
    totals = sorted(spent.total for spent in steps)
    return f" (of {len(totals)}: {totals[0]} to {totals[-1]})" if len(totals) > 1 else ""


def count_requests(work: Path, versions: int) -> dict[str, list[Spent]]:
    """Return the costs of each operation; of several in a row, the median comes first."""
    with fresh_hub(work) as clients:
        note_progress(f"{versions:,} versions")
        state, out = clients.work / "state.bin", clients.work / "out"
        common: Options = {"url": f"hf://buckets/{_BUCKET}/{_PREFIX}", "state": state}
        clients.run("versions.build", versions=versions, **common)
        found = clients.run("versions.count_open", **common)
        spent = {name: [Spent.parse(step) for step in steps] for name, steps in found.items()}
        spent["fresh_commit"] = [clients.spent("versions.commit", **common)]
        newest = {"url": common["url"], "ref": "main", "out": out, "line": UNSHAPED}
        spent["checkout"] = [clients.spent("transfers.checkout", **newest)]
    return {name: _median_first(steps) for name, steps in spent.items()}


def _median_first(steps: list[Spent]) -> list[Spent]:
    ordered = sorted(steps, key=lambda spent: spent.total)
    median = ordered.pop(len(ordered) // 2)
    return [median, *ordered]


def build(_: Probe, options: Options) -> Any:
    """Make versions: most in memory, to be uploaded at once, and the last ones in the bucket."""
    versions, native = options["versions"], min(_NATIVE, options["versions"])
    model = small_model(0)
    if versions > native:
        memory = HistoryStore(exclusive=False)
        _commit_steps(
            model,
            casweights.open(memory, create=True, config=CONFIG, **_kept(model)),
            versions - native,
        )
        create_bucket(_BUCKET)
        objects = ((data, f"{_PREFIX}/{name}") for name, data in memory.objects())
        while batch := list(islice(objects, _BATCH)):
            upload(_BUCKET, batch)
    store = casweights.open(
        options["url"], create=True, config=CONFIG, remote=_NO_CACHE, **_kept(model)
    )
    _commit_steps(model, store, native)
    Path(options["state"]).write_bytes(model.flat.tobytes())


def _commit_steps(model: Model, store: casweights.Repository, count: int) -> None:
    """Commit versions; the versions of one training run are steps of one model."""
    with store:
        for n in range(count):
            if n % _RUN:
                model.step(SHARE)
            else:
                model.make()
            store.commit(model.tensors())


def count_open(probe: Probe, options: Options) -> Any:
    """Count the requests of a trainer and of a replica that already run."""
    model = _read_model(options)
    state = model.tensors()
    trainer = casweights.open(options["url"], remote=_NO_CACHE, **_kept(model))
    replica = casweights.open(options["url"], remote=_NO_CACHE, **_kept(model))
    found: dict[str, list[Any]] = {"trainer": [], "replica": []}
    for n in range(1 + _STEPS):
        model.step(SHARE)
        written = probe.measure(lambda: trainer.commit(state))
        read = probe.measure(lambda: replica.load("heads/main"))
        if n:  # in the first round, neither has the previous version in memory
            found["trainer"].append(written.to_json())
            found["replica"].append(read.to_json())
    trainer.close()
    replica.close()
    Path(options["state"]).write_bytes(model.flat.tobytes())
    return found


def commit(probe: Probe, options: Options) -> Any:
    """Commit the next version in a new process."""
    model = _read_model(options)
    model.step(SHARE)

    def run() -> None:
        with casweights.open(options["url"], remote=_NO_CACHE) as store:
            store.commit(model.tensors())

    return probe.measure(run).to_json()


def _read_model(options: Options) -> Model:
    data = Path(options["state"]).read_bytes()
    model = small_model(1 + data[0])  # a new seed, so that its steps are new
    model.flat.view("u1")[:] = memoryview(data)
    return model


def _kept(model: Model) -> dict[str, Any]:
    return {"cache_size": 4 * model.nbytes}
