"""Count the objects of a long run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from casweights.config import MiB
from tools.bench.harness import measured

if TYPE_CHECKING:
    from tools.bench.harness import Result
    from tools.bench.histories import HistoryStore

OBJECTS, BYTES_OF_ONE = 200, 32 * MiB


def row_objects(store: HistoryStore, count: int) -> list[Result]:
    """Count the objects of a run of a publisher, by folder."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for info in store.list():
        folder = info.name.partition("/")[0]
        counts[folder] += 1
        sizes[folder] += info.size
    nbytes = sum(sizes.values())
    folders = ", ".join(
        f"{counts[folder]:,} {folder} with {sizes[folder]:,} bytes" for folder in sorted(counts)
    )
    return [
        measured(
            f"4 objects of a run of {count:,} steps",
            sum(counts.values()),
            "objects",
            target=max(OBJECTS, nbytes / BYTES_OF_ONE),
            note=f"written by one publisher, and no command ran after it: {folders}",
        )
    ]
