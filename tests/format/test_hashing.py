"""Digests and checksums, compared with published vectors and other forms of the libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import blake3
import pytest
import xxhash

from casweights.format.hashing import (
    CHECKSUM_SIZE,
    DIGEST_SIZES,
    blake3_256,
    checksum,
    chunk_hasher,
    xxh3_128,
)
from casweights.ids import ChunkId

if TYPE_CHECKING:
    from casweights.config import DigestName


def test_digests_match_published_vectors() -> None:
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3_256(b"").hex() == empty
    assert xxh3_128(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert checksum(b"").hex() == "2d06800538d394c2"


@pytest.mark.parametrize("size", [0, 1, 16, 17, 128, 240, 241, 1024, 65_537])
def test_xxh3_digests_are_big_endian(size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    assert blake3_256(data) == blake3.blake3(data).digest(length=32)
    assert xxh3_128(data) == xxhash.xxh3_128(data).intdigest().to_bytes(16, "big")
    assert checksum(data) == xxhash.xxh3_64(data).intdigest().to_bytes(CHECKSUM_SIZE, "big")


@pytest.mark.parametrize("digest", ["blake3", "xxh3-128"])
def test_chunk_hasher_uses_the_chosen_digest(digest: DigestName) -> None:
    hasher = chunk_hasher(digest)
    chunk = hasher(memoryview(b"data"))
    assert isinstance(chunk, ChunkId)
    assert len(chunk) == DIGEST_SIZES[digest]
    assert chunk == hasher(bytearray(b"data")) != hasher(b"Data")
