"""Compression and decompression of whole buffers with zstd."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard

from casweights.config import MiB
from casweights.format.zstd import (
    compress,
    compress_entropy,
    decompress_into,
    decompress_object,
)

TEXT = b"the weights of a model, over and over again. " * 1000


def decompress(data: bytes, size: int) -> bytes:
    out = bytearray(size)
    decompress_into(data, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize(
    "raw", [b"", b"x", TEXT, bytes(300_000), np.random.default_rng(0).bytes(9)]
)
def test_any_bytes_come_back(raw: bytes) -> None:
    for level in (1, 3, 12):
        assert decompress(compress(raw, level), len(raw)) == raw
    assert decompress(compress_entropy(raw), len(raw)) == raw


def test_entropy_coding_shrinks_skewed_bytes() -> None:
    raw = np.random.default_rng(0).geometric(0.3, 100_000).astype(np.uint8).tobytes()
    coded = compress_entropy(raw)
    assert len(coded) < 0.45 * len(raw)
    assert decompress(coded, len(raw)) == raw


def test_contexts_of_threads_are_independent() -> None:
    raws = [TEXT[n : n + 5000] for n in range(200)]

    def roundtrip(raw: bytes) -> bytes:
        return decompress(compress(raw, 3), len(raw))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(roundtrip, raws)) == raws


def streamed(raw: bytes) -> bytes:
    """Return a frame that does not declare its content size."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(raw) + compressor.flush()


@pytest.mark.parametrize(
    ("data", "size", "why"),
    [
        (b"", 1, "content size"),
        (b"no zstd at all", 14, "content size"),
        (compress(TEXT, 3), len(TEXT) - 1, "does not hold"),
        (compress(TEXT, 3), len(TEXT) + 1, "does not hold"),
        (streamed(TEXT), len(TEXT), "does not hold"),
        (compress(TEXT, 3) + compress(b"more", 3), len(TEXT), "more than it says"),
        (compress(TEXT, 3) + b"junk", len(TEXT), "Unknown frame"),
        (compress(TEXT, 3)[:-1], len(TEXT), "truncated"),
        (compress(TEXT, 3)[:20], len(TEXT), "truncated"),
    ],
)
def test_malformed_frames_are_refused(data: bytes, size: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decompress(data, size)


def test_the_decoder_works_after_a_failure() -> None:
    """The context of the thread is used again after a failure."""
    with pytest.raises(ValueError, match="truncated"):
        decompress(compress(TEXT, 3)[:50], len(TEXT))
    assert decompress(compress(TEXT, 3), len(TEXT)) == TEXT


def repeated(mebibytes: int) -> bytes:
    """Return a frame with a single segment, whose window is its content: zeros in RLE blocks."""
    block = ((128 * 1024) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = ((128 * 1024) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    size = (mebibytes * MiB).to_bytes(4, "little")
    return b"\x28\xb5\x2f\xfd\xa0" + size + block * (8 * mebibytes - 1) + last


def test_windows_up_to_64_mib_are_read() -> None:
    assert decompress_object(repeated(64), 64 * MiB) == bytes(64 * MiB)


def test_larger_windows_are_refused_although_the_content_fits() -> None:
    with pytest.raises(ValueError, match="its sizes do not add up"):
        decompress_object(repeated(65), 65 * MiB)
