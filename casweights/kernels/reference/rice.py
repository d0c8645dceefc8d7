"""Golomb-Rice codes: for gaps between events that are equally likely everywhere.

A gap is coded as its quotient by 2^k in unary (that number of zeros, then a one), followed by the k
bits of the remainder.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels.reference.bits import (
    BitReader,
    PayloadReader,
    pack_fields,
    varint,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_RICE = 26


def encode_ranks(ranks: Sequence[np.ndarray]) -> bytes:
    """Encode the ranks of the changed elements of each class, which ascend, as gaps."""
    head, fields, starts, end = b"", [], [], 0
    for own in ranks:
        head += varint(len(own))
        if not len(own):
            continue
        gaps = np.diff(own, prepend=-1) - 1
        k = _best_rice(gaps)
        head += bytes([k])
        quotients, remainders = gaps >> k, gaps & ((1 << k) - 1)
        ends = end + np.cumsum(quotients + 1 + k)
        fields.append((remainders << 1 | 1).astype(np.uint64))
        starts.append(ends - k - 1)
        end = int(ends[-1])
    size = (end + 7) // 8
    body = pack_fields(np.concatenate(fields), np.concatenate(starts), size) if fields else b""
    return head + varint(size) + body


def _best_rice(gaps: np.ndarray) -> int:
    """Return the parameter k with the fewest bits. The number of bits is convex in k."""
    k = (int(gaps.sum()) // len(gaps)).bit_length()
    while k and _rice_bits(gaps, k - 1) <= _rice_bits(gaps, k):
        k -= 1
    return k


def _rice_bits(gaps: np.ndarray, k: int) -> int:
    return len(gaps) * (k + 1) + int((gaps >> k).sum())


def read_ranks(reader: PayloadReader, count: int, classes: int) -> list[list[int]]:
    """Read the ranks that `encode_ranks` encoded.

    Args:
        reader: The payload, at the number of changed elements of the first class.
        count: Number of elements of the chunk.
        classes: Number of classes.

    Returns:
        The ranks of the changed elements of each class, ascending.

    Raises:
        ValueError: The counts do not add up, or a rank is not below `count`.
    """
    left, heads = count, []
    for _ in range(classes):
        changes = reader.varint(left)
        heads.append((changes, reader.byte() if changes else 0))
        left -= changes
    size = reader.varint(reader.left)
    if count - left > 8 * size or max(k for _, k in heads) > _MAX_RICE:
        raise ValueError("its counts do not add up")
    body = BitReader(reader.take(size))
    ranks = [_read_class(body, changes, k, count) for changes, k in heads]
    if not body.is_at_end():
        raise ValueError("its counts do not add up")
    return ranks


def _read_class(body: BitReader, changes: int, k: int, count: int) -> list[int]:
    gaps = [body.zeros() << k | body.bits(k) for _ in range(changes)]
    ranks = [rank - 1 for rank in accumulate(gap + 1 for gap in gaps)]
    if ranks and ranks[-1] >= count:
        raise ValueError("its positions are out of range")
    return ranks
