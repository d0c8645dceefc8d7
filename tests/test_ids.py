"""IDs: digests with a type."""

from __future__ import annotations

import pickle

import pytest

from casweights.ids import CarriedPackId, ChunkId, PackId, SnapshotId


def test_ids_print_as_hexadecimal() -> None:
    snapshot = SnapshotId(b"\xab" * 32)
    assert str(snapshot) == f"{snapshot}" == "ab" * 32
    assert SnapshotId.from_hex("AB" * 32) == snapshot
    assert repr(snapshot) == f"SnapshotId({'ab' * 32})"


def test_ids_are_bytes() -> None:
    chunk = ChunkId(b"c" * 16)
    assert chunk == b"c" * 16
    assert len({chunk, ChunkId(b"c" * 16), ChunkId(b"d" * 32)}) == 2


@pytest.mark.parametrize("kind", [ChunkId, PackId, CarriedPackId, SnapshotId])
def test_ids_pickle_with_their_type(kind: type[ChunkId | PackId | SnapshotId]) -> None:
    value = kind(b"x" * 32)
    copy = pickle.loads(pickle.dumps(value))
    assert copy == value
    assert type(copy) is kind


def test_the_pack_in_a_snapshot_equals_a_pack_id_of_its_bytes() -> None:
    """A finding names a pack by its ID alone."""
    carried, plain = CarriedPackId(b"x" * 32), PackId(b"x" * 32)
    assert carried == plain
    assert len({carried, plain}) == 1


@pytest.mark.parametrize("size", [0, 15, 17, 31, 33, 64])
def test_chunk_ids_of_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"got {size}"):
        ChunkId(bytes(size))


def test_pack_and_snapshot_ids_of_16_bytes_are_refused() -> None:
    ChunkId(bytes(16))
    for kind in (PackId, SnapshotId):
        with pytest.raises(ValueError, match="must have 32 bytes, got 16"):
            kind(bytes(16))


@pytest.mark.parametrize("text", ["", "xyz", "ab", "g" * 64, "ab" * 31, "ab" * 33, "é" * 64])
def test_text_that_is_not_hexadecimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a SnapshotId"):
        SnapshotId.from_hex(text)
