"""Compress and decompress whole buffers with zstd, and check sizes.

No other module of the format calls the zstd library.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import zstandard

from casweights.config import MAX_CHUNK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.system.buffers import Buffer

T = TypeVar("T")

# Bytes of content that any object may have, and further ones for each of its stored bytes.
_FREE, _RATIO = 4 << 20, 64
# A frame of raw blocks, by RFC 8878, 3.1.1.
_BLOCK = 1 << 17  # maximum bytes of a block, whose header has 3 bytes
_MAGIC, _WINDOW = b"\x28\xb5\x2f\xfd", 7 << 3  # a window of 2^17 bytes
_SIZE_OF_4 = 2 << 6  # frame header descriptor: the content size follows in 4 bytes

# Contexts are not thread-safe, and creating one costs more than using it once.
_local = threading.local()


def _context(name: str, make: Callable[[], T]) -> T:
    context: T | None = getattr(_local, name, None)
    if context is None:
        context = make()
        setattr(_local, name, context)
    return context


def compress(data: Buffer, level: int) -> bytes:
    """Compress to one zstd frame that declares its content size."""
    make = partial(zstandard.ZstdCompressor, level=level)
    return _context(f"level{level}", make).compress(data)


def compress_entropy(data: Buffer) -> bytes:
    """Compress to one zstd frame with the Huffman coder alone.

    On planes of weights, matching strings costs time and makes the result larger.
    """
    return _context("entropy", _entropy_compressor).compress(data)


def _entropy_compressor() -> zstandard.ZstdCompressor:
    # A target length of 0 keeps the compression of literals on in the fast strategy. The long
    # minimum match and the small hash table find next to no matches.
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            min_match=7,
            hash_log=6,
            target_length=0,
            window_log=17,
        )
    )


def most_content(stored: int) -> int:
    """Return the maximum content, in bytes, of an object's zstd frame of `stored` bytes.

    Without this limit, a forged frame could expand to a million times its size, and a decoded
    manifest needs many times that in memory.
    """
    return _FREE + _RATIO * stored


def compress_object(data: bytes, level: int) -> bytes:
    """Compress to one zstd frame whose content is within the limit of `most_content`."""
    packed = compress(data, level)
    return packed if len(data) <= most_content(len(packed)) else _raw_frame(data)


def _raw_frame(data: bytes) -> bytes:
    """Return a zstd frame of raw blocks, for data that compresses beyond the limit."""
    parts = [_MAGIC, bytes((_SIZE_OF_4, _WINDOW)), len(data).to_bytes(4, "little")]
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        is_last = start + _BLOCK >= len(data)
        parts += [(len(block) << 3 | is_last).to_bytes(3, "little"), block]
    return b"".join(parts)


def decompress_object(data: Buffer, raw_size: int) -> bytes:
    """Decompress one zstd frame.

    Args:
        data: The frame.
        raw_size: Size that its content must have, in bytes. The caller must check it against
            `most_content` first.

    Raises:
        ValueError: The frame is not valid, has a too large window, or its content another size.
    """
    try:
        declared = zstandard.get_frame_parameters(data)
        # In one call, the zstd library does not look at the window of a frame whose size it knows.
        if declared.content_size != raw_size or declared.window_size > MAX_CHUNK_SIZE:
            raise ValueError("its sizes do not add up")
        return _context("decompressor", _decompressor).decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK_SIZE)


def decompress_into(data: Buffer, out: memoryview) -> None:
    """Fill `out` with the content of one zstd frame.

    The frame's own declarations determine only the size of the window, which is bounded.

    Raises:
        ValueError: The frame is not valid, or its content is not exactly as long as `out`.
    """
    decompressor = _context("decompressor", _decompressor)
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
