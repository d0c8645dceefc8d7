"""Compute the digests of chunks and manifests, and the checksum of stored bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import blake3
import xxhash

from casweights.ids import ChunkId

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.config import DigestName
    from casweights.system.buffers import Buffer

CHECKSUM_SIZE = 8  # bytes


def blake3_256(*parts: Buffer) -> bytes:
    """Return the BLAKE3 digest of bytes in parts, 32 bytes."""
    hasher = blake3.blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def xxh3_128(data: Buffer) -> bytes:
    """Return the XXH3-128 digest, 16 bytes in canonical (big-endian) order."""
    return xxhash.xxh3_128_digest(data)


def checksum(data: Buffer) -> bytes:
    """Return the XXH3-64 checksum, 8 bytes; it detects damage, not forgery."""
    return xxhash.xxh3_64_digest(data)


_ALGORITHMS: dict[DigestName, Callable[[Buffer], bytes]] = {
    "blake3": blake3_256,
    "xxh3-128": xxh3_128,
}
DIGEST_SIZES: dict[DigestName, int] = {"blake3": 32, "xxh3-128": 16}


def chunk_hasher(digest: DigestName) -> Callable[[Buffer], ChunkId]:
    """Return the function that computes a chunk's ID from its raw bytes."""
    algorithm = _ALGORITHMS[digest]
    return lambda data: ChunkId(algorithm(data))
