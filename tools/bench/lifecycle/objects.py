"""Count the objects of a long run."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import casweights
from casweights.config import MiB
from casweights.format import names
from tools.bench.harness import measured

if TYPE_CHECKING:
    from tools.bench.harness import Result
    from tools.bench.histories import HistoryStore

OBJECTS, BYTES_OF_ONE = 200, 32 * MiB


def row_objects(store: HistoryStore, count: int) -> list[Result]:
    """Count the objects of a run of a publisher, before and after maintenance."""
    what = f"4 objects of a run of {count:,} steps"
    before = _row(store, what, "written by one publisher, and no command ran after it")
    start = time.perf_counter()
    with casweights.open(store) as repository:
        repository.maintain()
    seconds = time.perf_counter() - start
    after = _row(store, f"{what}, maintained", f"`casweights maintain` took {seconds:.1f} s")
    return [before, after]


def _row(store: HistoryStore, what: str, note: str) -> Result:
    """Count the objects by folder; those that lie aside until they are deleted only in the note."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for info in store.list():
        folder = info.name.partition("/")[0]
        counts[folder] += 1
        sizes[folder] += info.size
    folders = ", ".join(
        f"{counts[folder]:,} {folder} with {sizes[folder]:,} bytes" for folder in sorted(counts)
    )
    for folder in (names.ASIDE, names.COLLECTIONS):
        del counts[folder.rstrip("/")], sizes[folder.rstrip("/")]
    nbytes = sum(sizes.values())
    return measured(
        what,
        sum(counts.values()),
        "objects",
        target=max(OBJECTS, nbytes / BYTES_OF_ONE),
        note=f"{note}: {folders}",
    )
