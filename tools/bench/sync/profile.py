"""A profile of the time from publishing to applying: its parts and calls on both sides."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench.hub.probe import Line
    from tools.bench.sync.steps import Step


def print_profile(line: Line, steps: Sequence[Step]) -> None:
    """Print the medians of the parts, and begin and length of each call of the last step."""
    print(f"profile, {line.name} (calls of the last step: begin + length)")
    last = steps[-1]
    for what, sides, spent in (
        ("publish", [step.published for step in steps], last.ours.up),
        ("sync", [step.synced for step in steps], last.ours.down),
    ):
        parts = ", ".join(f"{name} {value:.3f} s" for name, value in _parts(sides).items())
        print(f"  {what}: {spent.seconds:.3f} s, processor time {spent.processor:.3f} s; {parts}")
        print(f"    requests: {spent.routes}")
        for text, start, seconds in sides[-1]["calls"]:
            print(f"    {start:8.3f} s  + {seconds:.3f} s  {text}")
    pause = statistics.median(step.ours.pause for step in steps)
    print(f"  sync() after prefetch(): {pause:.3f} s\n", flush=True)


def _parts(sides: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in sides[0]["stats"] if name.endswith("_seconds")]
    return {
        name.removesuffix("_seconds"): statistics.median(side["stats"][name] for side in sides)
        for name in names
    }
