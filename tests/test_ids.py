"""Digests with a type."""

from __future__ import annotations

import pickle

import pytest

from casweights.ids import ChunkId, PackId, SnapshotId


def test_text_is_hexadecimal() -> None:
    snapshot = SnapshotId(b"\xab" * 32)
    assert str(snapshot) == f"{snapshot}" == "ab" * 32
    assert SnapshotId.from_hex("AB" * 32) == snapshot
    assert repr(snapshot) == f"SnapshotId({'ab' * 32})"


def test_they_are_bytes() -> None:
    chunk = ChunkId(b"c" * 16)
    assert chunk == b"c" * 16
    assert len({chunk, ChunkId(b"c" * 16), ChunkId(b"d" * 32)}) == 2


@pytest.mark.parametrize("kind", [ChunkId, PackId, SnapshotId])
def test_they_pickle(kind: type[ChunkId | PackId | SnapshotId]) -> None:
    value = kind(b"x" * 32)
    copy = pickle.loads(pickle.dumps(value))
    assert copy == value
    assert type(copy) is kind


@pytest.mark.parametrize("size", [0, 15, 17, 31, 33, 64])
def test_other_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        ChunkId(bytes(size))


def test_only_chunks_may_be_short() -> None:
    ChunkId(bytes(16))
    for kind in (PackId, SnapshotId):
        with pytest.raises(ValueError, match="has 32 bytes, not 16"):
            kind(bytes(16))


@pytest.mark.parametrize("text", ["", "xyz", "ab", "g" * 64, "ab" * 31, "ab" * 33, "é" * 64])
def test_what_is_no_hexadecimal(text: str) -> None:
    with pytest.raises(ValueError, match="is not a SnapshotId"):
        SnapshotId.from_hex(text)
