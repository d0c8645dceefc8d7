"""How thorough the tests are: samples in the suite, everything in `tools/soak/run tests`.

Many tests try each of very many cases: each bit of a store, each moment of a crash. The suite tries
a seeded sample that is spread over all of them, so that it ends within minutes. The long form tries
all of them, and many times the examples of hypothesis. It is selected by an environment variable,
which the processes that tests start inherit.
"""

from __future__ import annotations

import os
import random
from itertools import count, pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_T = TypeVar("_T")
_MORE_EXAMPLES = 40

LONG = os.environ.get("CASWEIGHTS_LONG_TESTS", "") not in ("", "0")


def choose(short: _T, long: _T) -> _T:
    """Return the value for the length of this run."""
    return long if LONG else short


def examples(short: int) -> int:
    """Return how many examples hypothesis tries, given their number in the suite."""
    return choose(short, short * _MORE_EXAMPLES)


def moments(every: int, seed: object = None) -> Iterator[int]:
    """Yield the numbers from 1 on, without end: about one in `every` in the suite, else all."""
    if LONG or every == 1:
        yield from count(1)
    chance = random.Random(repr(seed))
    moment = chance.randint(1, every)
    while True:
        yield moment
        moment += chance.randint(1, 2 * every - 1)


def spread(cases: Sequence[_T], most: int, seed: object = None) -> list[_T]:
    """Return at most `most` of the cases, spread over all, with the first and the last one."""
    if LONG or len(cases) <= most:
        return list(cases)
    chance, last = random.Random(repr(seed)), len(cases) - 1
    bounds = [1 + (last - 1) * part // (most - 2) for part in range(most - 1)]
    inner = (chance.randrange(*pair) for pair in pairwise(bounds))
    return [cases[0], *(cases[place] for place in inner), cases[-1]]
