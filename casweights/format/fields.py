"""Decoded values that are what they must be, before anything relies on them."""

from __future__ import annotations

from typing import Any

from casweights.ids import ChunkId


def expect(value: Any, kind: type) -> Any:
    """`value`, if it is of exactly this type (so that True is no int).

    Raises:
        TypeError: It is not.
    """
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def split_ids(joined: Any, digest_size: int) -> tuple[ChunkId, ...]:
    """Chunk IDs that lie end to end.

    Raises:
        ValueError: The length is no multiple of `digest_size`.
    """
    if digest_size not in ChunkId.sizes or len(expect(joined, bytes)) % digest_size:
        raise ValueError(f"{len(joined)} bytes are no list of digests of {digest_size}")
    return tuple(ChunkId(joined[n : n + digest_size]) for n in range(0, len(joined), digest_size))
