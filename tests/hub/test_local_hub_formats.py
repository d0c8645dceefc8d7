"""Tests of the local Hub's formats (LZ4, chunks, shards, journal) and its command line."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from casweights.testing.hub.journal import Journal
from casweights.testing.hub.xorbs import (
    GROUPED_LZ4,
    LZ4,
    FormatError,
    XorbIndex,
    decode_lz4_frame,
    hash_text,
    raw_chunk,
    shard_files,
    stored_chunk,
)

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"\x04\x22\x4d\x18"


def frame(*blocks: bytes, stored: bool = False) -> bytes:
    """Return an LZ4 frame with arbitrary checksums, which the decoder ignores."""
    sizes = [(len(block) | stored << 31).to_bytes(4, "little") for block in blocks]
    body = b"".join(size + block for size, block in zip(sizes, blocks, strict=True))
    return MAGIC + b"\x40\x40\x00" + body + bytes(4)


def sequence(literals: bytes, distance: int = 0, length: int = 4) -> bytes:
    """Return a sequence of an LZ4 block; the last one of a block has no match."""
    match = length - 4 if distance else 0
    token = bytes([min(len(literals), 15) << 4 | min(match, 15)])
    tail = distance.to_bytes(2, "little") + more(match) if distance else b""
    return token + more(len(literals)) + literals + tail


def more(length: int) -> bytes:
    if length < 15:
        return b""
    full, rest = divmod(length - 15, 255)
    return b"\xff" * full + bytes([rest])


def test_lz4_frames_decode_to_their_content() -> None:
    noise = random.Random(1).randbytes(1000)
    block = (
        sequence(noise, distance=700, length=300)
        + sequence(b"ab", distance=2, length=1001)
        + sequence(b"", distance=1, length=19)
        + sequence(b"end")
    )
    plain = noise + noise[300:600] + (b"ab" * 502)[:1003]
    plain += plain[-1:] * 19 + b"end"
    assert decode_lz4_frame(memoryview(frame(block))) == plain
    linked = frame(sequence(b"abcdefgh"), sequence(b"", distance=8, length=8) + sequence(b"!"))
    assert decode_lz4_frame(memoryview(linked)) == b"abcdefghabcdefgh!"
    assert decode_lz4_frame(memoryview(frame(b"as it is", stored=True))) == b"as it is"
    assert decode_lz4_frame(memoryview(frame())) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"something else",
        frame(sequence(b"ab", distance=3) + sequence(b"x")),
        frame(sequence(b"ab", distance=0, length=4) + b"\x00\x00\x00"),
        frame(sequence(b"abc"))[:-4],
    ],
)
def test_bad_lz4_is_refused(data: bytes) -> None:
    with pytest.raises((FormatError, IndexError)):
        decode_lz4_frame(memoryview(data))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1000, 1001, 1002, 1003])
@pytest.mark.parametrize("scheme", [LZ4, GROUPED_LZ4])
def test_chunks_decode_to_their_content(size: int, scheme: int) -> None:
    plain = random.Random(size).randbytes(size)
    inner = b"".join(plain[place::4] for place in range(4)) if scheme == GROUPED_LZ4 else plain
    packed = frame(inner, stored=True)
    head = b"\0" + len(packed).to_bytes(3, "little") + bytes([scheme]) + size.to_bytes(3, "little")
    assert raw_chunk(memoryview(head + packed)) == plain
    assert raw_chunk(memoryview(stored_chunk(plain))) == plain


def test_the_index_of_a_xorb_finds_its_chunks_and_refuses_damage(tmp_path: Path) -> None:
    path = tmp_path / "xorb"
    whole = stored_chunk(b"one") + stored_chunk(b"three") + stored_chunk(b"x")
    path.write_bytes(whole)
    with path.open("rb") as file:
        index = XorbIndex.read(file.fileno())
    assert (index.count, index.offsets, index.raw_offsets) == (3, [0, 11, 24, 33], [0, 3, 8, 9])
    assert [index.chunk_at(place) for place in (0, 2, 3, 7, 8)] == [0, 0, 1, 1, 2]
    for bad in (whole[:-1], whole + b"\0", whole + b"\1" + bytes(7)):
        path.write_bytes(bad)
        with path.open("rb") as file, pytest.raises(FormatError):
            XorbIndex.read(file.fileno())


def test_a_hash_is_written_as_four_words() -> None:
    text = hash_text(bytes(range(32)))
    assert text == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"


def test_data_that_is_not_a_shard_is_refused() -> None:
    for data in (b"", b"x" * 100):
        with pytest.raises(FormatError):
            list(shard_files(data))


def test_the_journal_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append([{"a": 1}, {"a": "\u2028\n"}])
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"a": ')
    journal = Journal(path)
    journal.append([{"a": 3}])
    assert [event["a"] for event in journal.replay()] == [1, "\u2028\n", 3]
    journal.close()


def test_the_command_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "casweights.testing.hub", "--folder", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--latency", "0.01"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name, _, url = process.stdout.readline().strip().partition("=")
        assert name == "HF_ENDPOINT"
        with urlopen(f"{url}/_hub/conditions") as answer:
            assert json.load(answer)["latency"] == 0.01
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_the_help_lists_what_the_hub_does_not_imitate() -> None:
    command = [sys.executable, "-m", "casweights.testing.hub", "--help"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "does not imitate" in text
    assert "--bandwidth" in text
