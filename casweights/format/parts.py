"""The `parts` encoding: consecutive parts of a chunk, each with an encoding of its own.

Tensors that share a chunk may have little in common: one was trained and its neighbour was not. One
table of chances for both would cost more than what it saves. Neighbours that change alike, as in a
step of training, are one part.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.kernels.reference.bits import PayloadReader, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.format.layout import Extent
    from casweights.system.buffers import Buffer

MAX_PARTS = 255  # a count is one byte, and decoding a part costs microseconds, however small it is
_PART_BITS = 4_000  # what one more part with changes costs: tables, and chances learnt again
_SAME_BITS = 64  # what a part without changes costs


class Part(NamedTuple):
    """A part of a chunk.

    Attributes:
        encoding: Code of its encoding.
        nbytes: Its raw bytes.
        payload: Its stored bytes.
    """

    encoding: int
    nbytes: int
    payload: Buffer


class _Group(NamedTuple):
    """Neighbouring tensors of a chunk, the number of their elements, and how many changed."""

    extents: list[Extent]
    elements: int
    changed: int


def divide(
    raw: Buffer, base: Buffer, width: int, extents: Sequence[Extent]
) -> list[Sequence[Extent]]:
    """Divide a chunk into parts whose elements change about equally often.

    Args:
        raw: The chunk's bytes.
        base: The bytes of its base.
        width: Bytes of an element.
        extents: What the chunk has of each tensor, in order.

    Returns:
        The tensors of each part, which are neighbours; only one part if there would be more than
        `MAX_PARTS`.
    """
    if len(extents) == 1:
        return [extents]
    new, old = (np.frombuffer(data, f"<u{width}") for data in (raw, base))
    groups: list[_Group] = []
    end = 0
    for extent in extents:
        start, end = end, end + extent.nbytes // width
        changed = int(np.count_nonzero(new[start:end] != old[start:end]))
        group = _Group([extent], end - start, changed)
        while groups and (joint := _joined(groups[-1], group)):
            group = joint
            groups.pop()
        groups.append(group)
    return [group.extents for group in groups] if len(groups) <= MAX_PARTS else [extents]


def _joined(one: _Group, other: _Group) -> _Group | None:
    """Return two groups as one, if that costs no more bits."""
    count, changed = one.elements + other.elements, one.changed + other.changed
    if _cost(count, changed) > _cost(*one[1:]) + _cost(*other[1:]):
        return None
    return _Group([*one.extents, *other.extents], count, changed)


def _cost(count: int, changed: int) -> float:
    """Return the bits of a part, but for what its changes cost in any part."""
    same = count - changed
    if not changed or not same:
        return _PART_BITS if changed else _SAME_BITS
    return _PART_BITS + count * log2(count) - changed * log2(changed) - same * log2(same)


def join(parts: Iterable[Part]) -> bytes:
    """Return the payload that consists of these parts, at least two of them."""
    heads, payloads = [], []
    for encoding, nbytes, payload in parts:
        heads.append(bytes([encoding]) + varint(nbytes) + varint(len(payload)))
        payloads.append(payload)
    return b"".join((bytes([len(heads)]), *heads, *payloads))


def split(payload: Buffer, total: int) -> Iterator[Part]:
    """Yield the parts of a payload, in order.

    Args:
        payload: What `join` returned.
        total: Bytes of the chunk.

    Raises:
        ValueError: The payload is malformed, or its parts do not have `total` bytes together.
    """
    reader = PayloadReader(payload)
    heads = [
        (reader.byte(), reader.varint(total), reader.varint(len(payload)))
        for _ in range(reader.byte())
    ]
    if len(heads) < 2 or not all(nbytes for _, nbytes, _ in heads):
        raise ValueError("it has too few parts, or an empty one")
    if (total, reader.left) != (sum(n for _, n, _ in heads), sum(n for _, _, n in heads)):
        raise ValueError("its parts do not add up")
    for encoding, nbytes, stored in heads:
        yield Part(encoding, nbytes, reader.take(stored))
