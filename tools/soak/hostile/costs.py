"""Check that the costs of a hostile store grow no faster than its bytes.

Every family of `families` is built in two sizes, one four times the other, and passed to every verb
of `verbs`. A verb fails if its time or memory grows faster than the bytes to the power of 1.5, a
limit that n log n and noise do not reach; if it runs into a resource limit; or if it ends in an
error that is not a `CasweightsError`. Costs below a floor pass at any growth, so the small size is
then not measured.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from tools.soak.hostile.families import FAMILIES, Family
from tools.soak.hostile.forge import Forger
from tools.soak.hostile.verbs import VERBS, Cost, measure

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 1.5  # the exponent by which costs may grow
GROWTH = 4  # the large size divided by the small one
SECONDS, NBYTES = 0.25, 24 << 20  # the floors, below which any cost passes
ATTEMPTS = 2  # the best one counts
NOTHING = Cost(0, 0)


class Finding(NamedTuple):
    """A verb whose costs grow too fast with a family."""

    family: str
    verb: str
    what: str


def store_bytes(root: Path) -> int:
    """Return the number of bytes of all objects and of their names."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return sum(path.stat().st_size + len(path.relative_to(root).as_posix()) for path in files)


def cost(verb: str, store: Path, attempts: int) -> Cost:
    """Return the lowest cost of a verb on copies of a store."""
    costs = []
    for _ in range(attempts):
        with tempfile.TemporaryDirectory(dir=store.parent) as scratch:
            copy = Path(scratch, "store")
            shutil.copytree(store, copy, copy_function=os.link)  # objects are never changed
            costs.append(measure(VERBS[verb], copy, Path(scratch)))
            if costs[-1].failure:
                break
    failure = costs[-1].failure
    return Cost(min(c.seconds for c in costs), min(c.nbytes for c in costs), failure)


def excess(small: Cost, large: Cost) -> str:
    """Describe a cost that grows too fast; return an empty text if none does."""
    if large.failure:
        return large.failure
    for what, floor, less, more in (
        ("seconds", SECONDS, small.seconds, large.seconds),
        ("bytes", NBYTES, small.nbytes, large.nbytes),
    ):
        before = max(floor / GROWTH, less)
        exponent = math.log(max(more, floor) / before) / math.log(GROWTH)
        if exponent > MOST:
            return f"{before:.3g} to {more:.3g} {what}: exponent {exponent:.2f}"
    return ""


def check(name: str, family: Family, verbs: list[str], scratch: Path) -> Iterator[Finding]:
    """Pass a family to verbs; yield the verbs whose costs grow too fast, and print a line."""
    stores = [scratch / "small", scratch / "large"]
    for store, size in zip(stores, (family.size, GROWTH * family.size), strict=True):
        family.build(Forger(store), size)
    small, large = map(store_bytes, stores)
    started, slowest = time.monotonic(), (0.0, "")
    for verb in verbs:
        most = cost(verb, stores[1], 1)
        what = excess(NOTHING, most)
        for attempts in (1, ATTEMPTS):
            if what and not most.failure:
                least = cost(verb, stores[0], attempts)
                most = cost(verb, stores[1], attempts) if attempts > 1 else most
                what = excess(least, most)
        if what:
            yield Finding(name, verb, what)
        slowest = max(slowest, (most.seconds, verb))
    took = f"{time.monotonic() - started:5.1f} s, slowest: {slowest[1]} {slowest[0]:.2f} s"
    print(f"{name:36} {small / 1e3:9.1f} to {large / 1e3:9.1f} kB  {took}", flush=True)


def main() -> int:
    """Check the selected families, by default all."""
    parser = argparse.ArgumentParser(
        prog="tools/soak/run hostile", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--family", action="append", choices=FAMILIES, help="check only this; may be repeated"
    )
    parser.add_argument(
        "--verb", action="append", choices=VERBS, help="check only this; may be repeated"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    findings = []
    for name in options.family or FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            found = list(check(name, FAMILIES[name], options.verb or list(VERBS), Path(scratch)))
        for finding in found:
            print(f"  FAILED {finding.verb}: {finding.what}", flush=True)
        findings += found
    bad = {finding.family for finding in findings}
    print(f"{len(bad)} of {len(options.family or FAMILIES)} families have costs that grow too fast")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
