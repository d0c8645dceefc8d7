"""Commit or check out once in a fresh process, and print the costs as JSON.

Usage: python -m tools.bench.lifecycle.fresh commit|checkout STORE PATH VERSION
The version is a branch for `commit`, and for `checkout` anything that names one.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import casweights
from casweights.stores.local import LocalStore
from casweights.testing.counting import CountingStore
from tools.bench import memory
from tools.bench.hub.jobs import import_modules

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    verb, directory, path, version = arguments
    import_modules()
    objects = CountingStore(LocalStore(Path(directory)))
    before, start = memory.peak(), time.perf_counter()
    with casweights.open(objects) as store:
        if verb == "commit":
            store.commit(path, branch=version)
        else:
            store.checkout(version, path)
    seconds, peak = time.perf_counter() - start, memory.peak() - before
    read: Counter[str] = Counter()
    for name, nbytes in objects.reads:
        read[name.partition("/")[0]] += nbytes
    print(json.dumps({"seconds": seconds, "memory": peak, "read": read}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
