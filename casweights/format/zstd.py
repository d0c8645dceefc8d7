"""The one place that calls the zstd library: whole buffers in, whole buffers out, sizes checked."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import zstandard

from casweights.config import MAX_CHUNK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.format.hashing import Buffer

T = TypeVar("T")

_local = threading.local()  # contexts are not thread-safe, and making one costs more than a use


def _context(name: str, make: Callable[[], T]) -> T:
    context: T | None = getattr(_local, name, None)
    if context is None:
        context = make()
        setattr(_local, name, context)
    return context


def compress(data: Buffer, level: int) -> bytes:
    """One zstd frame with its content size."""
    make = partial(zstandard.ZstdCompressor, level=level)
    return _context(f"level{level}", make).compress(data)


def compress_entropy(data: Buffer) -> bytes:
    """One zstd frame that uses the Huffman coder alone.

    Matching strings costs time on weights and makes them larger. A target length of 0 keeps
    literal compression on in the fast strategy; the long minimum match finds next to nothing.
    """
    return _context("entropy", _entropy_compressor).compress(data)


def _entropy_compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            min_match=7,
            hash_log=6,
            target_length=0,
            window_log=17,
        )
    )


def decompress_into(data: Buffer, out: memoryview) -> None:
    """Fill `out` with the content of one zstd frame.

    Nothing is allocated by the frame's own claims beyond its window, which is bounded.

    Raises:
        ValueError: No valid frame, or its content is not exactly as long as `out`.
    """
    make = partial(zstandard.ZstdDecompressor, max_window_size=MAX_CHUNK_SIZE)
    decompressor = _context("decompressor", make)
    try:
        if zstandard.frame_content_size(data) != len(out):
            raise ValueError(f"the zstd frame does not hold {len(out)} bytes")
        with decompressor.stream_reader(data) as reader:
            done = 0
            while done < len(out):
                n = reader.readinto(out[done:])
                if n == 0:
                    raise ValueError("the zstd frame is truncated")
                done += n
            if reader.read(1):
                raise ValueError("the zstd frame holds more than it says")
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
