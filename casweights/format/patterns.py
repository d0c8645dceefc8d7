"""Slices that repeat: those of a matrix that is made from columns of others have equal distances.

Each of its rows consists of the same few slices, one row further on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.kernels.reference.bits import varint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.kernels.reference.bits import PayloadReader

MAX_SLICES = 65_536  # of a frame; a slice of a byte takes three
_MOST = 16  # slices of a pattern that is looked for: two of each root
_CLEARLY = 3  # repetitions of a pattern that is taken without a look for longer ones


class Slice(NamedTuple):
    """Bytes of a root, or zeros.

    Attributes:
        root: Number of the root among those of the frame, from 0; None for zeros.
        offset: Offset of the bytes in the root; 0 for zeros.
        nbytes: Their number.
    """

    root: int | None
    offset: int
    nbytes: int


class Pattern(NamedTuple):
    """Slices that repeat.

    Attributes:
        times: How often they are there.
        slices: The first ones.
        steps: How much further each of them begins from one time to the next.
    """

    times: int
    slices: Sequence[Slice]
    steps: Sequence[int]


def join_slices(slices: Sequence[Slice]) -> bytes:
    """Return the bytes of slices that are listed one by one."""
    head = [varint(len(slices))]
    for one in slices:
        head += _numbers(one)
    return b"".join(head)


def join_patterns(slices: Sequence[Slice]) -> bytes:
    """Return the bytes of slices that are listed by patterns."""
    patterns = list(find_patterns(slices))
    head = [varint(len(patterns))]
    for times, own, steps in patterns:
        head += [varint(times), varint(len(own))]
        for one, step in zip(own, steps, strict=True):
            head += [*_numbers(one), varint(step)]
    return b"".join(head)


def _numbers(one: Slice) -> list[bytes]:
    number = 0 if one.root is None else one.root + 1
    return [varint(number), varint(one.offset), varint(one.nbytes)]


def split_slices(reader: PayloadReader, sizes: Sequence[int]) -> list[Slice]:
    """Return slices that are listed one by one.

    Args:
        reader: Reads what `join_slices` returned.
        sizes: Bytes of each root.

    Raises:
        ValueError: The bytes are malformed, or do not fit the roots.
    """
    return [_slice(reader, sizes) for _ in range(reader.varint(MAX_SLICES))]


def split_patterns(reader: PayloadReader, sizes: Sequence[int]) -> list[Slice]:
    """Return slices that are listed by patterns.

    Args:
        reader: Reads what `join_patterns` returned.
        sizes: Bytes of each root.

    Raises:
        ValueError: The bytes are malformed, or do not fit the roots.
    """
    found: list[Slice] = []
    for _ in range(reader.varint(MAX_SLICES)):
        times, count = (reader.varint(MAX_SLICES) for _ in range(2))
        if not 0 < times * count <= MAX_SLICES - len(found):
            raise ValueError("it has a pattern of no slices, or of too many")
        own = [_repeated(reader, sizes, times) for _ in range(count)]
        for n in range(times):
            found += [Slice(root, at + n * step, nbytes) for (root, at, nbytes), step in own]
    return found


def _repeated(reader: PayloadReader, sizes: Sequence[int], times: int) -> tuple[Slice, int]:
    one = _slice(reader, sizes)
    left = 0 if one.root is None else sizes[one.root] - one.offset - one.nbytes
    return one, reader.varint(left // (times - 1) if times > 1 else 0)


def _slice(reader: PayloadReader, sizes: Sequence[int]) -> Slice:
    number = reader.varint(len(sizes))
    limit = sizes[number - 1] if number else 0
    offset = reader.varint(limit)
    nbytes = reader.varint(limit - offset if number else 1 << 62)
    if not nbytes:
        raise ValueError("it has an empty slice")
    return Slice(number - 1 if number else None, offset, nbytes)


def find_patterns(slices: Sequence[Slice]) -> Iterator[Pattern]:
    """Yield patterns that are these slices, end to end."""
    at = begin = 0  # those between them have no pattern
    while at < len(slices):
        count, times = _longest(slices, at)
        if times > 1:
            if begin < at:
                yield _once(slices[begin:at])
            own, following = slices[at : at + count], slices[at + count : at + 2 * count]
            steps = [b.offset - a.offset for a, b in zip(own, following, strict=True)]
            yield Pattern(times, own, steps)
            begin = at + count * times
        at += count * times
    if begin < at:
        yield _once(slices[begin:])


def _once(slices: Sequence[Slice]) -> Pattern:
    return Pattern(1, slices, [0] * len(slices))


def _longest(slices: Sequence[Slice], at: int) -> tuple[int, int]:
    """Return how many slices repeat from a position on, and how often."""
    best = 1, 1
    for count in range(1, _MOST + 1):
        times = _times(slices, at, count)
        if times > 1 and count * times > best[0] * best[1]:
            best = count, times
        if times >= _CLEARLY:
            break
    return best


def _times(slices: Sequence[Slice], at: int, count: int) -> int:
    """Return how often some slices are there, with equal steps in between."""
    steps: list[int] | None = None
    times = 1
    while (after := at + count * (times + 1)) <= len(slices):
        last, new = slices[after - 2 * count : after - count], slices[after - count : after]
        if any(a.root != b.root or a.nbytes != b.nbytes for a, b in zip(last, new, strict=True)):
            break
        between = [b.offset - a.offset for a, b in zip(last, new, strict=True)]
        if between != steps and (steps is not None or min(between) < 0):
            break
        steps, times = between, times + 1
    return times
