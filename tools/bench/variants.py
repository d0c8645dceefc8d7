"""Measures how variants find their bases: many unrelated models, and one light fine-tune of some.

Each fine-tune is committed to a branch of its own without a parent, renamed, stitched of several
models, and once more with what it was made from as its parent: the reference.
Prints a table and one line of JSON.
Usage: tools/bench/run variants [--bases N]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import casweights
from casweights.format import names
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tools.bench.harness import compared, measured, paired, report
from tools.bench.hub.relatives import count_requests, filled
from tools.bench.models import base, shuffled, stitched, tuned

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import Repository
    from tools.bench.harness import Result
    from tools.bench.models import State

_KINDS = ("plain", "renamed", "stitched")
_TUNED = 20  # fine-tunes of each kind
_COUNTED = 3  # fine-tunes in a bucket


def requests(count: int) -> Result:
    """Return the row of the requests in a bucket."""
    numbers = [count * n // _COUNTED for n in range(_COUNTED)]
    with TemporaryDirectory() as work:
        found, declared = count_requests(Path(work), count, numbers)
    ours, reference = (
        sorted(spents, key=lambda spent: spent.total)[_COUNTED // 2] for spents in (found, declared)
    )
    return measured(
        "5 more requests in a bucket",
        ours.total - reference.total,
        "requests",
        target=5,
        note=f"by a fresh process: {ours.total} ({ours.routes}) without a parent, "
        f"{reference.total} ({reference.routes}) with it",
    )


class Costs:
    """Commits to a store with many unrelated models, and what they cost."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._objects = CountingStore(MemoryStore())
        self._numbers = range(0, count, max(1, count // _TUNED))
        for name, content in filled(count).objects():
            self._objects.put(name, [content])
        signatures = [info.size for info in self._objects.list(names.SIGNATURES)]
        self.signature_bytes = sum(signatures) / count

    def rows(self) -> list[Result]:
        """Commit the fine-tunes, and compare them with their references."""
        plain, spent = self._compare("plain", base, lambda state: state)
        renamed, _ = self._compare("renamed", base, shuffled)
        mixed, _ = self._compare("stitched", lambda n: stitched(n, self._count), lambda s: s)
        note = "the same with what it was made from as its parent, in the same store"
        raw = sum(tensor.nbytes for tensor in base(0).values())
        return [
            compared(
                f"1 found among {self._count}: bytes", *plain, "bytes", target=1.02, note=note
            ),
            paired("1 found: processor time", spent, "s", target=1.5, note=note),
            compared("2 renamed and shuffled: bytes", *renamed, "bytes", target=1.05, note=note),
            compared("3 stitched of three: bytes", *mixed, "bytes", target=1.05, note=note),
            measured(
                "4 bytes of signatures a version",
                self.signature_bytes,
                "bytes",
                target=10_000,
                note=f"a version has {raw:,} bytes",
            ),
        ]

    def _compare(
        self, kind: str, origin: Callable[[int], State], change: Callable[[State], State]
    ) -> tuple[tuple[int, int], list[tuple[float, float]]]:
        """Return the bytes and the pairs of seconds of commits without and with a parent."""
        found = declared = 0
        spent = []
        for number in self._numbers:
            seed = 10 * number + _KINDS.index(kind)
            print(f"  {kind}: {number} of {self._count}", end="\r", file=sys.stderr)
            old = origin(number)
            new = change(tuned(old, seed))
            ours, seconds = self._commit(f"{kind}/{number}/found", new, None)
            with self._store() as store:  # the parent, with the names of the new version
                parent = store.commit(change(old), branch=f"{kind}/{number}/origin").id
                store.delete_branch(f"{kind}/{number}/found")
            again = change(tuned(old, seed + 100_000))
            theirs, reference = self._commit(f"{kind}/{number}/declared", again, str(parent))
            found, declared = found + ours, declared + theirs
            spent.append((seconds, reference))
        return (found, declared), spent

    def _store(self) -> Repository:
        return casweights.open(self._objects)

    def _commit(self, branch: str, state: State, parent: str | None) -> tuple[int, float]:
        """Commit by a handle of its own; return the bytes of what it wrote, and the seconds."""
        with self._store() as store:
            self._objects.reset()
            begin = time.process_time()
            store.commit(state, branch=branch, parent=parent)
            seconds = time.process_time() - begin
        written = sum(n for name, n in self._objects.writes if _is_own(name))
        return written, seconds


def _is_own(name: str) -> bool:
    """Whether an object is part of a version; moves and merged signatures are not."""
    folder, _, rest = name.partition("/")
    return folder in ("packs", "snapshots") or (folder == "signatures" and "-" not in rest)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tools/bench/run variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--bases", type=int, default=200, metavar="N", help="unrelated models")
    return made


def main() -> int:
    count = parser().parse_args().bases
    if count < _TUNED:
        raise SystemExit(f"--bases must be at least {_TUNED}, got {count}")
    costs = Costs(count)
    facts = {"unrelated models": count, "fine-tunes of each kind": _TUNED}
    rows = [*costs.rows(), requests(count)]
    return report("Variants that find their bases", facts, rows)


if __name__ == "__main__":
    sys.exit(main())
