"""The validation of options."""

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


def test_the_defaults_are_blake3_and_the_default_chunk_size() -> None:
    assert StoreConfig() == StoreConfig(digest="blake3", chunk_size=DEFAULT_CHUNK_SIZE)


@pytest.mark.parametrize("size", [MIN_CHUNK_SIZE, 128 * KiB, MiB, MAX_CHUNK_SIZE])
def test_allowed_chunk_sizes_are_accepted(size: int) -> None:
    assert StoreConfig(chunk_size=size).chunk_size == size


@pytest.mark.parametrize("size", [-1, 0, 1, 32 * KiB, 65_537, 3 * MiB, 2 * MAX_CHUNK_SIZE])
def test_other_chunk_sizes_are_refused(size: int) -> None:
    with pytest.raises(InvalidInputError, match="power of two"):
        StoreConfig(chunk_size=size)


@pytest.mark.parametrize("digest", ["", "md5", "BLAKE3", None])
def test_unknown_digests_are_refused(digest: Any) -> None:
    with pytest.raises(InvalidInputError, match="digest must be"):
        StoreConfig(digest=digest)


@pytest.mark.parametrize("name", ["patience", "stall", "disk_cache", "read_ahead", "clock_skew"])
def test_negative_remote_options_are_refused(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(InvalidInputError, match=name):
        RemoteOptions(**options)
