"""Jobs that move whole versions to a store or a bucket, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import casweights
from casweights.config import RemoteOptions
from tools.bench import memory
from tools.bench.hub.plain import create_bucket, fetch, list_files, upload
from tools.bench.hub.probe import Line, Probe

if TYPE_CHECKING:
    from tools.bench.hub.jobs import Options


def _remote(options: Options) -> RemoteOptions:
    return RemoteOptions() if options.get("cached") else RemoteOptions(disk_cache=0)


def _line(options: Options) -> Line:
    return Line(**options["line"])


def push(probe: Probe, options: Options) -> Any:
    """Commit a directory as the first version of an existing store."""
    casweights.open(options["url"], create=True).close()

    def run() -> None:
        with casweights.open(options["url"]) as store:
            store.commit(options["model"])

    return probe.measure(run, _line(options)).to_json()


def push_files(probe: Probe, options: Options) -> Any:
    """Upload the same files, plain, to an existing bucket."""
    create_bucket(options["bucket"])
    files = list_files(Path(options["model"]))
    return probe.measure(lambda: upload(options["bucket"], files), _line(options)).to_json()


def prepare(_: Probe, options: Options) -> Any:
    """Commit directories to a store, and upload them as plain files to a bucket."""
    create_bucket(options["bucket"])
    with casweights.open(options["url"], create=True) as store:
        for n, directory in enumerate(options["models"]):
            store.commit(directory)
            store.tag(f"v{n}", "main")
            upload(options["bucket"], list_files(Path(directory), f"v{n}/"))


def checkout(probe: Probe, options: Options) -> Any:
    """Check out a version to a directory, in a process that has read nothing before."""

    def run() -> None:
        with casweights.open(options["url"], remote=_remote(options)) as store:
            store.checkout(options["ref"], options["out"])

    return probe.measure(run, _line(options)).to_json()


def download(probe: Probe, options: Options) -> Any:
    """Download the plain files of a version."""
    out, prefix = Path(options["out"]), options["prefix"]
    files: Any = [(prefix + name, str(out / name)) for name in options["names"]]
    out.mkdir(exist_ok=True)
    return probe.measure(lambda: fetch(options["bucket"], files), _line(options)).to_json()


def peak(probe: Probe, options: Options) -> Any:
    """Run another job; return the peak memory of this process beyond that of its imports."""
    before = memory.peak()
    _MEASURED[options["measured"]](probe, options)
    return memory.peak() - before


_MEASURED = {job.__name__: job for job in (push, push_files, checkout, download)}
