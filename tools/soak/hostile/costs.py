"""Check that what a hostile store costs grows no faster than its bytes.

Every family of `families` is made in two sizes, one four times the other, and fed to every verb of
`verbs`. A verb fails whose time or memory grows by more than the bytes to the power of 1.5, which
n log n and noise stay below; or which ends by a limit, or in an error that is none of casweights'.
What stays below a floor passes, whatever it grows by, so it is not measured in the small size.
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

MOST = 1.5  # exponent
GROWTH = 4
SECONDS, NBYTES = 0.25, 24 << 20  # below these, all is well
ATTEMPTS = 2  # of which the best counts
NOTHING = Cost(0, 0)


class Finding(NamedTuple):
    """A verb that a family is too much for."""

    family: str
    verb: str
    what: str


def store_bytes(root: Path) -> int:
    """Bytes of all objects, and of their names."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return sum(path.stat().st_size + len(path.relative_to(root).as_posix()) for path in files)


def cost(verb: str, store: Path, attempts: int) -> Cost:
    """The least that a verb takes on copies of a store."""
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
    """What grows too fast; nothing if all is well."""
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
    """Feed a family to verbs."""
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
    took = f"{time.monotonic() - started:5.1f} s, most: {slowest[1]} {slowest[0]:.2f} s"
    print(f"{name:36} {small / 1e3:9.1f} to {large / 1e3:9.1f} kB  {took}", flush=True)


def main() -> int:
    """Check all families, or those that were asked for."""
    parser = argparse.ArgumentParser(
        prog="tools/soak/run hostile", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one")
    parser.add_argument("--verb", action="append", choices=VERBS, help="only this one")
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
    print(f"{len(bad)} of {len(options.family or FAMILIES)} families' costs grow too fast")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
