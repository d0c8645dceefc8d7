"""Forged differences: chains that lead nowhere, in circles or too far; bases that do not fit."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import IntegrityError
from casweights.config import KiB, StoreConfig
from casweights.format.codecs import Encoding, encode_difference
from casweights.format.dtypes import DTYPES
from casweights.format.envelope import PREFIX_SIZE, Kind, prefix
from casweights.format.hashing import blake3_256, checksum
from casweights.format.manifest import FileEntry, Manifest, Snapshot
from casweights.format.names import pack_name, snapshot_name
from casweights.format.pack import Frame, build_index
from casweights.format.snapshot import PackTable, encode_snapshot
from casweights.ids import ChunkId
from casweights.index import MAX_LINKS
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights import SnapshotId

SIZE = 1024
CONFIG = StoreConfig(chunk_size=64 * KiB)

Link = tuple[bytes, int, bytes, "bytes | None"]  # chunk, encoding, payload, base


def chunk(number: int, size: int = SIZE) -> bytes:
    """Chunks that differ in a few bytes."""
    return number.to_bytes(4, "little") + bytes(range(256)) * (size // 256) + bytes(size % 256)


def chunk_id(raw: bytes) -> ChunkId:
    return ChunkId(blake3_256(raw))


def whole(raw: bytes) -> Link:
    return raw, Encoding.RAW, raw, None


def difference(raw: bytes, base: bytes) -> Link:
    encoded = encode_difference(raw, base, DTYPES["U8"])
    assert encoded is not None
    return raw, encoded[0], bytes(encoded[1]), base


def forge(links: Sequence[Link], wanted: bytes) -> tuple[MemoryStore, SnapshotId, str]:
    """A store with one pack of these frames, and a version of a file of one chunk."""
    store = MemoryStore()
    casweights.open(store, create=True, config=CONFIG).close()
    frames, offset = [], PREFIX_SIZE
    for raw, encoding, payload, base in links:
        base_id = None if base is None else chunk_id(base)
        frame = (chunk_id(raw), len(raw), encoding, offset, len(payload), checksum(payload))
        frames.append(Frame(*frame, base_id))
        offset += len(payload)
    pack, ending = build_index(frames)
    store.put(pack_name(pack), [prefix(Kind.PACK), *(link[2] for link in links), ending])
    manifest = Manifest(
        parents=(),
        time=datetime(2024, 1, 1, tzinfo=UTC),
        author="",
        message="",
        metadata={},
        config=CONFIG,
        files=(FileEntry("chunk.bin", len(wanted), None, None, (chunk_id(wanted),)),),
    )
    snapshot, encoded = Snapshot.of(manifest)
    table = PackTable([pack], {chunk_id(wanted): pack})
    store.put(snapshot_name(snapshot.id), [encode_snapshot(snapshot, encoded, table)])
    return store, snapshot.id, pack_name(pack)


A, B, C = chunk(1), chunk(2), chunk(3)
LONGER = chunk(4, SIZE + 100)
SPARSE_OF_B = difference(B, A)[2]

REFUSED: dict[str, list[Link]] = {
    "base that is not there": [difference(B, A)],
    "base that is not there, behind another": [difference(C, A), difference(B, C)],
    "itself": [(B, Encoding.SPARSE, SPARSE_OF_B, B)],
    "circle of two": [difference(A, B), difference(B, A)],
    "circle of three": [difference(A, C), difference(B, A), difference(C, B)],
    "longer base": [whole(LONGER), (B, Encoding.SPARSE, SPARSE_OF_B, LONGER)],
    "another base": [whole(C), (B, Encoding.SPARSE, SPARSE_OF_B, C)],
    "no base": [(B, Encoding.SPARSE, SPARSE_OF_B, None)],
    "no base for dense": [(B, Encoding.DENSE, SPARSE_OF_B, None)],
    "base for raw": [whole(A), (B, Encoding.RAW, B, A)],
    "base for an unknown encoding": [whole(A), (B, 77, B, A)],
    "sparse as dense": [whole(A), (B, Encoding.DENSE, SPARSE_OF_B, A)],
    "unknown kind of elements": [whole(A), (B, Encoding.SPARSE, b"\x0a" + SPARSE_OF_B[1:], A)],
    "nothing": [whole(A), (B, Encoding.SPARSE, b"", A)],
    "cut": [whole(A), (B, Encoding.SPARSE, SPARSE_OF_B[:-1], A)],
    "and more": [whole(A), (B, Encoding.SPARSE, SPARSE_OF_B + b"more", A)],
    "damaged base": [(A, Encoding.RAW, B, None), difference(B, A)],
}


@pytest.mark.parametrize("links", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(links: list[Link]) -> None:
    """By a named error that says where; a commit of the same chunk then stores it anew."""
    store, version, pack = forge(links, B)
    with casweights.open(store) as repo:
        for _ in range(2):
            with pytest.raises(IntegrityError, match=pack) as caught:
                b"".join(repo.read(version, "chunk.bin"))
        assert str(chunk_id(B)) in str(caught.value) or "damaged" in str(caught.value)
        problems = [str(problem) for problem in repo.verify().problems]
        assert any(pack in problem for problem in problems)
        assert f"{chunk_id(B)}" in problems[-1]
        repo._db.index.load()


@pytest.mark.parametrize("links", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_stored_anew(links: list[Link], tmp_path_factory: object) -> None:
    store, version, _ = forge(links, B)
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError):
            b"".join(repo.read(version, "chunk.bin"))
        again = repo.commit({"x": _tensor(B)})
        assert bytes(repo.load(again)["x"].numpy().tobytes()) == B
        assert b"".join(repo.read(version, "chunk.bin")) == B


def _tensor(raw: bytes) -> object:
    import torch

    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


@pytest.mark.parametrize("links", [MAX_LINKS - 1, MAX_LINKS, MAX_LINKS + 50])
def test_a_chain_that_is_too_long(links: int) -> None:
    """As long as the format allows it is read, by a reader that does not recurse."""
    chunks = [chunk(n) for n in range(links + 1)]
    chain = [whole(chunks[0])] + [difference(raw, base) for base, raw in pairwise(chunks)]
    store, version, _ = forge(chain, chunks[-1])
    with casweights.open(store) as repo:
        if links < MAX_LINKS:
            assert b"".join(repo.read(version, "chunk.bin")) == chunks[-1]
            assert repo.verify().problems == ()
        else:
            with pytest.raises(IntegrityError):
                b"".join(repo.read(version, "chunk.bin"))


def test_a_circle_beside_a_way_out() -> None:
    """Frames that lead in circles are passed over where another one does not."""
    circle = [difference(A, B), difference(B, C), difference(C, A)]
    for extra in (whole(A), whole(B), whole(C)):
        store, version, _ = forge([*circle, extra], B)
        with casweights.open(store) as repo:
            assert b"".join(repo.read(version, "chunk.bin")) == B
            assert repo.verify().problems == ()
