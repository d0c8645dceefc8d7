"""Decoded values that are what they must be, before anything relies on them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from casweights.format.envelope import corrupt
from casweights.ids import ChunkId, Digest

D = TypeVar("D", bound=Digest)


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


def parse_id(kind: type[D], folder: str, name: str) -> D:
    """The ID that is the name of a pack or snapshot, after its folder.

    Raises:
        IntegrityError: It is no such ID, or not in the one way to write it.
    """
    with suppress(ValueError):
        found = kind.from_hex(name.removeprefix(folder))
        if folder + found.hex() == name:  # not in capitals
            return found
    raise corrupt(name, f"its name is no {folder.removesuffix('s/')} ID")
