"""Jobs that move whole versions: into a store or a bucket, and out again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import casweights
from casweights.config import RemoteOptions
from tools.bench.hub.plain import create_bucket, fetch, list_files, upload
from tools.bench.hub.probe import Line, Probe

if TYPE_CHECKING:
    from tools.bench.hub.jobs import Options


def _remote(options: Options) -> RemoteOptions:
    return RemoteOptions() if options.get("cached") else RemoteOptions(disk_cache=0)


def _line(options: Options) -> Line:
    return Line(**options["line"])


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
    files = list_files(Path(options["model"]))
    return probe.measure(lambda: upload(options["bucket"], files), _line(options)).to_json()


def prepare(_: Probe, options: Options) -> Any:
    """Versions of directories in a store, and the same as plain files in a bucket."""
    create_bucket(options["bucket"])
    with casweights.open(options["url"], create=True) as store:
        for n, directory in enumerate(options["models"]):
            store.commit(directory)
            store.tag(f"v{n}", "main")
            upload(options["bucket"], list_files(Path(directory), f"v{n}/"))


def checkout(probe: Probe, options: Options) -> Any:
    """A version into a directory, by a process that knows nothing."""

    def run() -> None:
        with casweights.open(options["url"], remote=_remote(options)) as store:
            store.checkout(options["ref"], options["out"])

    return probe.measure(run, _line(options)).to_json()


def download(probe: Probe, options: Options) -> Any:
    """The plain files of a version."""
    out, prefix = Path(options["out"]), options["prefix"]
    files: Any = [(prefix + name, str(out / name)) for name in options["names"]]
    out.mkdir(exist_ok=True)
    return probe.measure(lambda: fetch(options["bucket"], files), _line(options)).to_json()


def peak(probe: Probe, options: Options) -> Any:
    """Memory of another job beyond what the imports took; it is that of this process alone."""
    before = _peak()
    _MEASURED[options["measured"]](probe, options)
    return _peak() - before


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


_MEASURED = {job.__name__: job for job in (push, push_files, checkout, download)}
