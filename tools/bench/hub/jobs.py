"""What clients do, each in a process of its own with folders of its own.

Usage: python -m tools.bench.hub.jobs JOB OPTIONS, with the options as JSON. The last line that it
prints is JSON, too.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import casweights
from casweights.config import RemoteOptions
from tools.bench.hub.probe import Line, Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Options = dict[str, Any]

_MODULES = (
    "hf_xet",
    "huggingface_hub",
    "huggingface_hub.hf_api",
    "casweights.operations.checkout",
    "casweights.operations.commit",
    "casweights.operations.load",
    "casweights.repository",
    "casweights.database.revisions",
    "casweights.content.files",
    "casweights.stores.cached",
    "casweights.stores.hub.store",
    "casweights.stores.retry",
    "casweights.stores.url",
)


def upload(bucket: str, files: Iterable[tuple[str | Path | bytes, str]]) -> None:
    """Upload plain files with huggingface_hub, as anybody would."""
    from huggingface_hub import HfApi

    HfApi().batch_bucket_files(bucket, add=list(files))


def create_bucket(bucket: str) -> None:
    from huggingface_hub import HfApi

    HfApi().create_bucket(bucket, exist_ok=True)


def _files(directory: Path, prefix: str = "") -> list[tuple[str | Path | bytes, str]]:
    return [(str(path), prefix + path.name) for path in sorted(directory.iterdir())]


def _remote(options: Options) -> RemoteOptions:
    return RemoteOptions() if options.get("cached") else RemoteOptions(disk_cache=0)


def _line(options: Options) -> Line:
    return Line(**options["line"])


# --- Pushing and getting whole versions.


def push(probe: Probe, options: Options) -> Any:
    """A first version of a directory, into a store that is there."""
    casweights.open(options["url"], create=True).close()

    def run() -> None:
        with casweights.open(options["url"]) as store:
            store.commit(options["model"])

    return probe.measure(run, _line(options)).to_json()


def push_files(probe: Probe, options: Options) -> Any:
    """The same files, plain, into a bucket that is there."""
    create_bucket(options["bucket"])
    files = _files(Path(options["model"]))
    return probe.measure(lambda: upload(options["bucket"], files), _line(options)).to_json()


def prepare(_: Probe, options: Options) -> Any:
    """Versions of directories in a store, and the same as plain files in a bucket."""
    create_bucket(options["bucket"])
    with casweights.open(options["url"], create=True) as store:
        for n, directory in enumerate(options["models"]):
            store.commit(directory)
            store.tag(f"v{n}", "main")
            upload(options["bucket"], _files(Path(directory), f"v{n}/"))


def checkout(probe: Probe, options: Options) -> Any:
    """A version into a directory, by a process that knows nothing."""

    def run() -> None:
        with casweights.open(options["url"], remote=_remote(options)) as store:
            store.checkout(options["ref"], options["out"])

    return probe.measure(run, _line(options)).to_json()


def download(probe: Probe, options: Options) -> Any:
    """The plain files of a version."""
    from huggingface_hub import HfApi

    out, prefix = Path(options["out"]), options["prefix"]
    files: Any = [(prefix + name, str(out / name)) for name in options["names"]]
    out.mkdir(exist_ok=True)
    return probe.measure(
        lambda: HfApi().download_bucket_files(
            options["bucket"], files=files, raise_on_missing_files=True
        ),
        _line(options),
    ).to_json()


def peak(probe: Probe, options: Options) -> Any:
    """Memory of another job beyond what the imports took; it is that of this process alone."""
    before = _peak()
    JOBS[options["measured"]](probe, options)
    return _peak() - before


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


# --- A trainer.


def train(probe: Probe, options: Options) -> Any:
    """Steps of a model in memory: each committed, uploaded whole, and uploaded as a patch."""
    from safetensors.torch import save_file

    from tools.bench.hub.model import Model
    from tools.bench.hub.patch import Patches, check_v3

    model = Model(options["size"], options["seed"])
    model.make()
    state = model.tensors()
    scratch, bucket = Path(options["scratch"]), options["bucket"]
    create_bucket(bucket)
    store = casweights.open(options["url"], create=True, cache_size=2 * model.nbytes)
    store.commit(state)
    patches = Patches(state)
    first = {name: part.copy() for name, part in model.state.items()}
    results: list[dict[str, Any]] = []
    lines = [Line(**line) for line in options["lines"]]
    plan = [(lines[0], -1), *((line, n) for line in lines for n in range(options["rounds"]))]
    for line, n in plan:
        print(f"  steps, {line.name}: {n + 1}", file=sys.stderr)
        share = model.step(options["share"])
        name = f"{len(results):04}.safetensors"
        full, patch = scratch / f"full-{name}", scratch / f"patch-{name}"

        def put_full(full: Path = full) -> None:
            save_file(state, full)
            upload(bucket, [(str(full), full.name)])

        def put_patch(patch: Path = patch) -> None:
            patches.write(patch)
            upload(bucket, [(str(patch), patch.name)])

        found = {
            "step": probe.measure(lambda: store.commit(state), line),
            "full": probe.measure(put_full, line),
            "patch": probe.measure(put_patch, line),
        }
        if n < 0:
            check_v3(patch, first, model.state)
            first.clear()
        patch_size = patch.stat().st_size
        full.unlink()
        patch.unlink()
        spent = {key: value.to_json() for key, value in found.items()}
        results.append(
            {"n": n, "line": line.name, "share": share, "patch_size": patch_size, **spent}
        )
    with casweights.open(options["url"], remote=RemoteOptions(disk_cache=0)) as reader:
        _check(reader.load("main"), state)
    store.close()
    return [result for result in results if result["n"] >= 0]


def _check(found: dict[str, Any], state: dict[str, Any]) -> None:
    import torch

    for name, tensor in state.items():
        if not torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)):
            raise AssertionError(f"{name} came back changed")


def follow(probe: Probe, options: Options) -> Any:
    """A trainer and a replica, both kept open: requests of a step, and the replica's reads."""
    from casweights.stores.url import open_object_store
    from tools.bench.hub.model import Model
    from tools.bench.hub.reads import RecordingStore

    model = Model(options["size"], options["seed"])
    model.make()
    state = model.tensors()
    line = _line(options)
    trainer = casweights.open(options["url"], create=True, cache_size=2 * model.nbytes)
    trainer.commit(state)
    reads = RecordingStore(open_object_store(options["url"], RemoteOptions(disk_cache=0)))
    replica = casweights.open(reads, cache_size=2 * model.nbytes)
    replica.load("heads/main")
    results = []
    for _ in range(options["rounds"] + 1):
        model.step(options["share"])
        written = probe.measure(lambda: trainer.commit(state), line)
        reads.calls.clear()
        loaded: dict[str, Any] = {}

        def load(target: dict[str, Any] = loaded) -> None:
            target.update(replica.load("heads/main"))

        read = probe.measure(load, line)
        chain = [call.text for call in reads.chain(line.latency)]
        _check(loaded, state)
        results.append({"writer": written.to_json(), "follower": read.to_json(), "chain": chain})
    trainer.close()
    replica.close()
    return results[1:]


JOBS: dict[str, Callable[[Probe, Options], Any]] = {
    job.__name__: job
    for job in (push, push_files, prepare, checkout, download, peak, train, follow)
}


def import_modules() -> None:
    """Import what would be imported when it is used first, which is not to be measured."""
    for module in _MODULES:
        import_module(module)


def main(arguments: Sequence[str]) -> int:
    name, options = arguments
    import_modules()
    if name.startswith("versions_"):
        from tools.bench.hub import versions

        jobs = versions.JOBS
    else:
        jobs = JOBS
    result = jobs[name](Probe(os.environ["HF_ENDPOINT"]), json.loads(options))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
