"""Do one thing in a fresh process, and print its costs as JSON.

Usage: python -m tools.bench.lifecycle.fresh commit|checkout STORE PATH VERSION
       python -m tools.bench.lifecycle.fresh gc STORE
The version is a branch for `commit`, and for `checkout` anything that names one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import casweights
from casweights.stores.local import LocalStore
from casweights.testing.counting import CountingStore
from tools.bench import memory
from tools.bench.hub.jobs import import_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_VERBS: dict[str, Callable[..., object]] = {
    "commit": lambda store, path, version: store.commit(path, branch=version),
    "checkout": lambda store, path, version: store.checkout(version, path),
    "gc": lambda store: store.gc(apply=True),
}


class FreshSpent(NamedTuple):
    """Costs of a fresh process.

    Attributes:
        seconds: Time without imports.
        memory: Peak memory in bytes, minus that of the imports.
        read: Bytes read from the store, by folder.
    """

    seconds: float
    memory: int
    read: dict[str, int]


def run_fresh(*arguments: str) -> FreshSpent:
    """Run this program in a fresh process; return its costs."""
    command = [sys.executable, "-m", "tools.bench.lifecycle.fresh", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return FreshSpent(**json.loads(done.stdout))


def main(arguments: Sequence[str]) -> int:
    verb, directory, *rest = arguments
    import_modules()
    objects = CountingStore(LocalStore(Path(directory)))
    before, start = memory.peak(), time.perf_counter()
    with casweights.open(objects) as store:
        _VERBS[verb](store, *rest)
    seconds, peak = time.perf_counter() - start, memory.peak() - before
    read: Counter[str] = Counter()
    for name, nbytes in objects.reads:
        read[name.partition("/")[0]] += nbytes
    print(json.dumps(FreshSpent(seconds, peak, read)._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
