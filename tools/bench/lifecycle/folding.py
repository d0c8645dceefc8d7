"""Let most steps of a run expire, collect, and compare with a store of the others alone."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

import casweights
from casweights.config import Keep
from tools.bench.harness import measured
from tools.bench.hub.clients import note_progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from tools.bench.harness import Result

EVERY = 50  # steps of which one stays
ELEMENTS = 1 << 20
STEP_SIZE = 3e-7  # of weights of about 0.02: some 0.3 % of them change in bf16
MAX_RUNS = 8


def row_fold(work: Path, steps: int, elements: int = ELEMENTS) -> list[Result]:
    """Compare the bytes of a run, after expiry and collections, with those of its kept steps."""
    note_progress(f"a run of {steps:,} steps")
    whole, alone = work / "fold-run", work / "fold-alone"
    every = min(EVERY, steps)
    with (
        casweights.open(whole, create=True) as run,
        casweights.open(alone, create=True) as few,
    ):
        for number, state in enumerate(_states(steps, elements), 1):
            run.commit(state, message=str(number))
            if number % every == 0:
                few.commit(state, message=str(number))
        few.maintain()
        run.maintain()
        before = _size(whole)
        run.expire(Keep(every=every, last=1), apply=True)
        run.maintain()
        start = time.perf_counter()
        runs = _collect(run)
        seconds = time.perf_counter() - start
    share = _size(whole) / _size(alone)
    note = f"{_size(whole) / before:.3f} of before; {runs} runs, {seconds:.1f} s"
    what = f"10 bytes of {steps:,} steps, expired to every {every}th, to those of these alone"
    return [measured(what, share, "times", target=1.15, note=note)]


def _collect(repository: Repository) -> int:
    """Collect until nothing is left to do; return the number of runs."""
    for number in range(1, MAX_RUNS + 1):
        done = repository.gc(apply=True, grace=timedelta(0), confirm=repository.url)
        if not (done.objects or done.finished or done.folded):
            return number
    raise AssertionError(f"collections found something to do in {MAX_RUNS} runs")


def _states(steps: int, elements: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield steps of weights in bf16 whose fp32 originals move a little in each step."""
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(elements, generator=generator) * 0.02
    for _ in range(steps):
        master += torch.randn(elements, generator=generator) * STEP_SIZE
        yield {"w": master.to(torch.bfloat16)}


def _size(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
