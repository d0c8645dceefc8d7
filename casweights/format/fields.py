"""Check decoded values before other code relies on them."""

from __future__ import annotations

from typing import Any

from casweights.ids import ChunkId


def expect(value: Any, kind: type) -> Any:
    """Return `value` if its type is exactly `kind` (so True is not an int).

    Raises:
        TypeError: `value` has another type.
    """
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def split_ids(joined: Any, digest_size: int) -> tuple[ChunkId, ...]:
    """Split concatenated chunk IDs.

    Args:
        joined: The IDs, as bytes.
        digest_size: Bytes of an ID.

    Raises:
        TypeError: `joined` is not bytes.
        ValueError: `digest_size` is not the size of a chunk ID, or does not divide the length.
    """
    if digest_size not in ChunkId.sizes or len(expect(joined, bytes)) % digest_size:
        raise ValueError(f"{len(joined)} bytes are not a list of digests of {digest_size} bytes")
    return tuple(ChunkId(joined[n : n + digest_size]) for n in range(0, len(joined), digest_size))
