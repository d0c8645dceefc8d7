"""Options."""

from __future__ import annotations

from typing import Any

import pytest

from casweights.config import (
    DEFAULT_CHUNK_SIZE,
    MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    KiB,
    MiB,
    RemoteOptions,
    StoreConfig,
)
from casweights.errors import InvalidInputError


def test_defaults() -> None:
    assert StoreConfig() == StoreConfig(digest="blake3", chunk_size=DEFAULT_CHUNK_SIZE)


@pytest.mark.parametrize("size", [MIN_CHUNK_SIZE, 128 * KiB, MiB, MAX_CHUNK_SIZE])
def test_chunk_sizes(size: int) -> None:
    assert StoreConfig(chunk_size=size).chunk_size == size


@pytest.mark.parametrize("size", [-1, 0, 1, 32 * KiB, 65_537, 3 * MiB, 2 * MAX_CHUNK_SIZE])
def test_impossible_chunk_sizes(size: int) -> None:
    with pytest.raises(InvalidInputError, match="power of two"):
        StoreConfig(chunk_size=size)


@pytest.mark.parametrize("digest", ["", "md5", "BLAKE3", None])
def test_unknown_digests(digest: Any) -> None:
    with pytest.raises(InvalidInputError, match="unknown digest"):
        StoreConfig(digest=digest)


@pytest.mark.parametrize("name", ["patience", "stall", "disk_cache", "read_ahead", "clock_skew"])
def test_impossible_remote_options(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(InvalidInputError, match=name):
        RemoteOptions(**options)
