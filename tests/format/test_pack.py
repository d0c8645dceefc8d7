"""Packs and their index."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest

from casweights.config import MAX_CHUNK_SIZE
from casweights.errors import IntegrityError, UnsupportedError
from casweights.format.envelope import (
    FORMAT_VERSION,
    PREFIX_SIZE,
    ObjectKind,
    prefix,
)
from casweights.format.hashing import blake3_256, checksum
from casweights.format.pack import (
    MAX_INDEX_SIZE,
    TRAILER_SIZE,
    Frame,
    build_index,
    encode_frames,
    index_span,
    parse_frames,
    parse_index,
)
from casweights.ids import ChunkId, PackId

FIRST = prefix(ObjectKind.PACK)
NAME = "packs/some"


def frames(digest_size: int = 32) -> list[Frame]:
    """Return three adjacent frames, the last of which is a difference."""
    payloads, offset, made = [b"first", b"", b"third one"], PREFIX_SIZE, []
    for n, payload in enumerate(payloads):
        chunk = ChunkId(bytes([n]) * digest_size)
        base = ChunkId(b"b" * digest_size) if n == 2 else None
        made.append(Frame(chunk, 10 * n + 5, n, offset, len(payload), checksum(payload), base))
        offset += len(payload)
    return made


def parse(data: bytes, pack: PackId) -> list[Frame]:
    """Parse the end of a pack and return its frames."""
    start, stop = index_span(data[-TRAILER_SIZE:], len(data), NAME)
    return list(parse_index(data[:PREFIX_SIZE], data[start:stop], start, pack, NAME))


def build(made: list[Frame], generation: int = 0) -> tuple[PackId, bytes]:
    pack, ending = build_index(made, generation)
    return pack, FIRST + bytes(sum(frame.size for frame in made)) + ending


@pytest.mark.parametrize("digest_size", [16, 32])
def test_parse_returns_the_frames_that_were_built(digest_size: int) -> None:
    pack, data = build(frames(digest_size))
    assert parse(data, pack) == frames(digest_size)


def test_equal_frames_make_equal_packs() -> None:
    assert build(frames()) == build(frames())
    assert build(frames())[0] != build(frames()[:2])[0]


def test_packs_of_different_generations_have_different_ids() -> None:
    pack, data = build(frames(), generation=7)
    assert parse(data, pack) == frames()
    assert pack not in {build(frames(), generation=n)[0] for n in (0, 1, 6)}
    assert generation_of(data) == 7
    assert generation_of(build(frames())[1]) == 0
    assert b"generation" not in build(frames())[1]


@pytest.mark.parametrize("generation", [-1, 2**32, "1", None, 1.0, True])
def test_invalid_generations_are_refused(generation: Any) -> None:
    columns = msgpack.unpackb(encode_frames(frames()), strict_map_key=False)
    forged = msgpack.packb(columns | {"generation": generation})
    with pytest.raises((ValueError, TypeError)):
        parse_frames(forged, has_generation=True)
    assert list(parse_frames(forged)) == frames(), "it means nothing in a snapshot"


def test_nothing_follows_the_last_generation() -> None:
    assert generation_of(build(frames(), generation=2**32 - 1)[1]) == 2**32 - 1
    with pytest.raises(IntegrityError, match="forged"):
        build(frames(), generation=2**32)


def generation_of(data: bytes) -> int:
    start, stop = index_span(data[-TRAILER_SIZE:], len(data), NAME)
    return parse_frames(data[start:stop], has_generation=True).generation


def test_the_id_commits_to_the_checksums() -> None:
    other = frames()
    changed = Frame(other[0].chunk, 5, 0, PREFIX_SIZE, other[0].size, checksum(b"else"))
    assert build([changed, *other[1:]])[0] != build(other)[0]


def test_every_flipped_bit_of_the_end_is_found() -> None:
    pack, data = build(frames())
    begin = PREFIX_SIZE + sum(frame.size for frame in frames())
    for n in (*range(8 * PREFIX_SIZE), *range(8 * begin, 8 * len(data))):
        damaged = bytearray(data)
        damaged[n // 8] ^= 1 << n % 8
        with pytest.raises(IntegrityError, match=NAME):
            parse(bytes(damaged), pack)


def test_every_truncation_is_found() -> None:
    pack, data = build(frames())
    for n in range(len(data)):
        with pytest.raises(IntegrityError, match=NAME):
            parse(data[:n], pack)


def test_a_pack_of_a_newer_version_is_unsupported() -> None:
    _, data = build(frames())
    newer = data[:5] + bytes((FORMAT_VERSION + 1,)) + data[6:]
    start, stop = index_span(newer[-TRAILER_SIZE:], len(newer), NAME)
    pack = PackId(blake3_256(newer[:PREFIX_SIZE] + newer[start:stop]))
    with pytest.raises(UnsupportedError, match="upgrade"):
        parse(newer, pack)


@pytest.mark.parametrize("size", [0, MAX_INDEX_SIZE + 1, (1 << 32) - 1])
def test_an_index_of_absurd_size_is_not_read(size: int) -> None:
    trailer = size.to_bytes(4, "little") + b"cidx"
    with pytest.raises(IntegrityError, match="claims"):
        index_span(trailer, 1 << 40, NAME)


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def forged(changes: dict[str, Any]) -> tuple[bytes, PackId]:
    """Return a pack whose index has other values, and its ID."""
    _, data = build(frames())
    start, stop = index_span(data[-TRAILER_SIZE:], len(data), NAME)
    table = msgpack.unpackb(data[start:stop], strict_map_key=False) | changes
    index: bytes = msgpack.packb({key: value for key, value in table.items() if value is not ...})
    trailer = len(index).to_bytes(4, "little") + b"cidx"
    return data[:start] + index + trailer, PackId(blake3_256(FIRST + index))


def test_the_forgery_without_changes_is_valid() -> None:
    assert parse(*forged({})) == frames()


@pytest.mark.parametrize(
    "changes",
    [
        {"digest_size": 20},
        {"digest_size": 16},
        {"digest_size": 0},
        {"digest_size": "32"},
        {"chunk": b"c" * 64},
        {"chunk": b"c" * 95},
        {"chunk": ...},
        {"raw_size": u32(5, 15)},
        {"raw_size": u32(5, 15, 25, 25)},
        {"raw_size": u32(5, 15, 25)[:-1]},
        {"raw_size": u32(5, 15, MAX_CHUNK_SIZE + 1)},
        {"raw_size": u32(4, 15, 25)},  # then a frame is larger than its chunk
        {"raw_size": [5, 15, 25]},
        {"raw_size": None},
        {"size": u32(5, 0, 10)},
        {"size": u32(5, 0, 8)},
        {"size": u32(5, 9)},
        {"size": {}},
        {"encoding": b"\0"},
        {"encoding": [0, 1, 2]},
        {"checksum": b"x" * 23},
        {"checksum": b"x" * 16},
        {"based": b"\x08", "base": b"b" * 32},  # of a fourth row
        {"based": b"\1\0", "base": b"b" * 32},
        {"based": b"", "base": b""},
        {"based": b"\7", "base": b"b" * 64},
        {"based": b"\1", "base": b"b" * 64},
        {"based": b"\1", "base": b"short"},
        {"based": 1, "base": b"b" * 32},
        {"base": {}},
        {"base": ...},
        {"based": ...},
    ],
)
def test_forged_indexes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=NAME):
        parse(*forged(changes))


@pytest.mark.parametrize("index", [b"\xc0", b"\x90", b"\xff", b"\x81\xa1", b"\x91" * 5000])
def test_other_bytes_are_not_an_index(index: bytes) -> None:
    data = FIRST + index + len(index).to_bytes(4, "little") + b"cidx"
    with pytest.raises(IntegrityError, match=NAME):
        parse(data, PackId(blake3_256(FIRST + index)))
