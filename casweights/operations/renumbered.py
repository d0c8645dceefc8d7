"""Files whose paths differ in numbers alone: those of one step of training, and of another.

Trainers name folders and files after the step: `checkpoint-500/global_step500/rank_3.pt`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_DIGITS = re.compile(r"[0-9]{1,18}")  # longer runs count as several numbers


class _Numbered(NamedTuple):
    """A path, and the numbers in it."""

    numbers: tuple[int, ...]
    path: str


def renumbered(paths: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return which path of an earlier version each path is like, except for its step.

    A number carries the step if its place has no number that is in paths of both versions. All
    other numbers must be equal: `model-00001-of-00003` is not like `model-00002-of-00003`. Of
    several steps, the last one before the path's own counts, or else the first one after it.

    Args:
        paths: The paths of a version.
        others: The paths of the earlier version.

    Returns:
        A path of the earlier version for each path that it does not have itself and that is like
        one.
    """
    known = set(others)
    new, old = _by_shape(set(paths) - known), _by_shape(known)
    shared = new.keys() & old.keys()
    return {path: like for shape in shared for path, like in _pairs(new[shape], old[shape])}


def _by_shape(paths: Iterable[str]) -> dict[str, list[_Numbered]]:
    """Group paths by what they are without their numbers."""
    shapes: dict[str, list[_Numbered]] = {}
    for path in paths:
        numbers = tuple(map(int, _DIGITS.findall(path)))
        shapes.setdefault(_DIGITS.sub("0", path), []).append(_Numbered(numbers, path))
    return shapes


def _pairs(new: Sequence[_Numbered], old: Sequence[_Numbered]) -> Iterator[tuple[str, str]]:
    """Yield the paths of one shape that are like an old one, with the old one."""
    places = zip(_values(new), _values(old), strict=True)
    is_step = [here.isdisjoint(there) for here, there in places]
    is_equal = [not step for step in is_step]
    steps: dict[tuple[int, ...], list[_Numbered]] = {}
    for numbers, path in sorted(old):
        step = tuple(compress(numbers, is_step))
        steps.setdefault(tuple(compress(numbers, is_equal)), []).append(_Numbered(step, path))
    for numbers, path in new:
        if found := steps.get(tuple(compress(numbers, is_equal))):
            later = bisect_left(found, (tuple(compress(numbers, is_step)), ""))
            yield path, found[max(later - 1, 0)].path


def _values(paths: Sequence[_Numbered]) -> list[set[int]]:
    """Return the numbers at each place."""
    return [set(values) for values in zip(*(path.numbers for path in paths), strict=True)]
