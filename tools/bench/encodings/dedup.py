"""Deduplication by content-defined chunks like Xet's, written from its description.

Chunks end where the top 16 bits of a gear hash over the last 64 bytes are zero. Each new chunk is
compressed plain or with its bytes in four groups, whichever is smaller. zstd-1 replaces LZ4, whose
results are larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zstandard
from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.bench.encodings.states import Array

KiB = 1 << 10
LEAST, MOST = 8 * KiB, 128 * KiB
_GEAR = np.random.default_rng(0).integers(0, 1 << 64, 256, np.uint64)
_WINDOW = 64
_BLOCK = 1 << 20
_GROUPS = 4


def dedup(files: Sequence[Path]) -> int:
    """Return the number of bytes of all distinct chunks of files, compressed."""
    seen: set[bytes] = set()
    compressor = zstandard.ZstdCompressor(level=1)
    total = 0
    for path in files:
        data = path.read_bytes()
        for start, stop in _cuts(data):
            chunk = data[start:stop]
            digest = blake3(chunk).digest()
            if digest not in seen:
                seen.add(digest)
                grouped = b"".join(chunk[n::_GROUPS] for n in range(_GROUPS))
                sizes = (len(compressor.compress(part)) for part in (chunk, grouped))
                total += min(len(chunk), *sizes)
    return total


def _cuts(data: bytes) -> Iterator[tuple[int, int]]:
    ends = _candidates(np.frombuffer(data, np.uint8))
    start = 0
    while start < len(data):
        n = int(np.searchsorted(ends, start + LEAST))
        stop = min(len(data), start + MOST)
        if n < len(ends):
            stop = min(stop, int(ends[n]))
        yield start, stop
        start = stop


def _candidates(data: Array) -> Array:
    """Return the offsets at which a chunk may end."""
    found = []
    for start in range(0, len(data), _BLOCK):
        first = max(0, start - _WINDOW)
        hashes = _GEAR[data[first : start + _BLOCK]]
        reach = 1  # bytes that a hash covers so far
        while reach < _WINDOW:
            hashes[reach:] += hashes[:-reach] << np.uint64(reach)
            reach *= 2
        found.append(np.flatnonzero(hashes[start - first :] >> np.uint64(48) == 0) + start + 1)
    return np.concatenate(found)
