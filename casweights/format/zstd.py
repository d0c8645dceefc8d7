"""The one place that calls the zstd library: whole buffers in, whole buffers out, sizes checked."""

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

_FREE, _RATIO = 4 << 20, 64  # bytes of content for any object, and for each of its stored bytes
_BLOCK = 1 << 17  # the largest one of a frame; its header has 3 bytes (RFC 8878, 3.1.1.2)
_MAGIC, _WINDOW = b"\x28\xb5\x2f\xfd", 7 << 3  # of 2^17 bytes
_SIZE_OF_4 = 2 << 6  # in a frame's header: 4 bytes with the size of the content follow

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


def most_content(stored: int) -> int:
    """Bytes that the frame of an object may hold which takes `stored` bytes itself.

    Decoded, a manifest takes many times its bytes, and a frame may hold a million times its own.
    """
    return _FREE + _RATIO * stored


def compress_object(data: bytes, level: int) -> bytes:
    """One zstd frame that `decompress_object` accepts."""
    packed = compress(data, level)
    return packed if len(data) <= most_content(len(packed)) else _keep(data)


def _keep(data: bytes) -> bytes:
    """A zstd frame that holds the bytes as they are, for what compresses too well."""
    parts = [_MAGIC, bytes((_SIZE_OF_4, _WINDOW)), len(data).to_bytes(4, "little")]
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        is_last = start + _BLOCK >= len(data)
        parts += [(len(block) << 3 | is_last).to_bytes(3, "little"), block]
    return b"".join(parts)


def decompress_object(data: Buffer, raw_size: int) -> bytes:
    """The content of one zstd frame, which must have `raw_size` bytes: as `most_content` allows.

    Raises:
        ValueError: No valid frame, or its content has another size.
    """
    try:
        if zstandard.frame_content_size(data) != raw_size:
            raise ValueError("its sizes do not add up")
        return _context("decompressor", _decompressor).decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK_SIZE)


def decompress_into(data: Buffer, out: memoryview) -> None:
    """Fill `out` with the content of one zstd frame.

    Nothing is allocated by the frame's own claims beyond its window, which is bounded.

    Raises:
        ValueError: No valid frame, or its content is not exactly as long as `out`.
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
