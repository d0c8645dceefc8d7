"""Collections in a bucket of which nothing can go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import casweights
from casweights.config import RemoteOptions

if TYPE_CHECKING:
    from casweights import Repository
    from tools.bench.hub.jobs import Options
    from tools.bench.hub.probe import Probe

_NO_CACHE = RemoteOptions(disk_cache=0)


def settle(_: Probe, options: Options) -> Any:
    """Maintain a store, and let a collection note that there is nothing to do."""
    with _opened(options) as store:
        store.maintain()
        store.gc(apply=True)


def idle(probe: Probe, options: Options) -> Any:
    """Collect with nothing to do, in this new process."""

    def run() -> None:
        with _opened(options) as store:
            store.gc(apply=True)

    return probe.measure(run).to_json()


def _opened(options: Options) -> Repository:
    return casweights.open(options["url"], remote=_NO_CACHE)
