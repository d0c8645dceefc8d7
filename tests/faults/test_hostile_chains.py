"""Forged differences: chains that end nowhere, run in circles or are too long; wrong bases."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import ErrorCode, IntegrityError
from casweights.config import MiB
from casweights.database import chain as chain_module
from casweights.database import frame_table
from casweights.database.chains import MAX_LINKS
from casweights.format.codecs import Encoding
from casweights.format.file_entry import FileEntry
from casweights.format.manifest import EncodedSnapshot, Manifest
from casweights.format.names import PACKS, pack_name, snapshot_name
from casweights.format.pack_table import PackTable
from casweights.format.snapshot import StoredSnapshot, encode_snapshot
from casweights.stores.memory import MemoryStore
from casweights.testing.counting import CountingStore
from casweights.testing.faults import flip_bit
from tests.forged_chains import (
    CONFIG,
    NAME,
    READ,
    REFUSED,
    SPARSE,
    A,
    B,
    C,
    Link,
    add_pack,
    add_version,
    chain,
    chunk,
    chunk_id,
    create,
    difference,
    sparse,
    whole,
)
from tests.lengths import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.database.chain import Node
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

refused = pytest.mark.parametrize("links", REFUSED.values(), ids=REFUSED)


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    create(made)
    return made


def forge(store: MemoryStore, links: list[Link], wanted: bytes = B) -> tuple[SnapshotId, str]:
    """Add a pack of these frames, and a version of one file with one chunk; return ID and pack."""
    pack = add_pack(store, links)
    return add_version(store, wanted, [pack]), pack_name(pack)


def read(repo: Repository, version: SnapshotId) -> bytes:
    return b"".join(repo.read(version, NAME))


@refused
def test_forged_chains_are_refused(store: MemoryStore, tmp_path: Path, links: list[Link]) -> None:
    """The error names the pack, and no memory is allocated for the sizes that frames claim."""
    version, pack = forge(store, links)
    tracemalloc.start()
    try:
        with casweights.open(store) as repo:
            for _ in range(2):
                with pytest.raises(IntegrityError, match=pack):
                    read(repo, version)
            with pytest.raises(IntegrityError, match=pack):
                repo.checkout(version, tmp_path)
            problems = [str(problem) for problem in repo.verify().problems]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []
    assert any(pack in problem for problem in problems[:-1])
    assert problems[-1] == f"{snapshot_name(version)}: no sound frame holds its chunk {chunk_id(B)}"
    assert peak < 16 * MiB


@refused
def test_commit_stores_a_refused_chunk_again(store: MemoryStore, links: list[Link]) -> None:
    version, _ = forge(store, links)
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError):
            read(repo, version)
        repo.commit({"x": torch.frombuffer(bytearray(B), dtype=torch.uint8)})
        assert read(repo, version) == B
    with casweights.open(store) as repo:
        assert read(repo, version) == B


@pytest.mark.parametrize("links", READ.values(), ids=READ)
def test_a_valid_chain_is_found_among_forged_ones(store: MemoryStore, links: list[Link]) -> None:
    """Frames without a valid chain are skipped if the chunk has another frame."""
    version, _ = forge(store, links)
    with casweights.open(store) as repo:
        assert read(repo, version) == B
    with casweights.open(store) as repo:
        repo.verify()
        assert read(repo, version) == B


def test_frames_built_like_the_forged_ones_are_read_if_valid(store: MemoryStore) -> None:
    version, _ = forge(store, sparse(SPARSE))
    with casweights.open(store) as repo:
        assert read(repo, version) == B
        assert repo.verify().problems == ()


@pytest.mark.parametrize("links", [MAX_LINKS - 1, MAX_LINKS, MAX_LINKS + 50])
def test_a_chain_is_read_up_to_the_maximum_length(store: MemoryStore, links: int) -> None:
    """The reader must not recurse, and must refuse chains beyond the maximum of the format."""
    wanted = chunk(links)
    version, _ = forge(store, chain(links), wanted)
    with casweights.open(store) as repo:
        if links < MAX_LINKS:
            assert read(repo, version) == wanted
            assert repo.verify().problems == ()
        else:
            with pytest.raises(IntegrityError, match=str(chunk_id(wanted))) as caught:
                read(repo, version)
            assert caught.value.code is ErrorCode.MISSING_CHUNK


def test_a_short_chain_is_found_if_another_is_too_long(store: MemoryStore) -> None:
    wanted = chunk(MAX_LINKS)
    version, _ = forge(store, [*chain(MAX_LINKS), whole(wanted)], wanted)
    with casweights.open(store) as repo:
        assert read(repo, version) == wanted


def test_the_error_for_a_missing_pack_names_the_chunk_and_its_missing_base(
    store: MemoryStore,
) -> None:
    """The pack is in the middle of the chain."""
    packs = [add_pack(store, [link]) for link in (difference(C, B), difference(B, A), whole(A))]
    version = add_version(store, C, packs)
    store.delete(pack_name(packs[1]))
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError, match=str(chunk_id(C))) as caught:
            read(repo, version)
        assert str(chunk_id(B)) in str(caught.value)
        assert caught.value.code is ErrorCode.MISSING_CHUNK


@pytest.mark.parametrize("part", ["frame", "index"])
def test_the_error_for_a_damaged_pack_in_the_middle_names_the_pack(
    store: MemoryStore, part: str
) -> None:
    packs = [add_pack(store, [link]) for link in (difference(C, B), difference(B, A), whole(A))]
    version, name = add_version(store, C, packs), pack_name(packs[1])
    flip_bit(store, name, 8 + 1 if part == "frame" else -20)
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError, match=name):
            read(repo, version)
        problems = [str(problem) for problem in repo.verify().problems]
    assert name in problems[0]
    assert f"its base {chunk_id(B)} cannot be rebuilt" in problems[1]
    assert len(problems) == 3


def test_bases_are_found_in_packs_that_the_table_does_not_name(store: MemoryStore) -> None:
    packs = [add_pack(store, [link]) for link in (difference(C, B), difference(B, A), whole(A))]
    version = add_version(store, C, packs[:1])
    with casweights.open(store) as repo:
        assert read(repo, version) == C


@pytest.mark.parametrize("by", ["nothing", "damage", "deletion"])
def test_a_chain_is_found_in_a_pack_that_the_table_omits(store: MemoryStore, by: str) -> None:
    """The table names one of two packs."""
    first = add_pack(store, [whole(A), difference(B, A), difference(C, B)])
    version = add_version(store, C, [first])
    add_pack(store, [whole(B), difference(C, A), difference(A, B)])
    add_pack(store, [Link(C, 4, SPARSE, B)])  # a forged frame
    if by == "damage":
        flip_bit(store, pack_name(first), 8 + len(A) + 1)
    elif by == "deletion":
        store.delete(pack_name(first))
    with casweights.open(store) as repo:
        assert read(repo, version) == C


def test_a_large_circle_is_refused(store: MemoryStore) -> None:
    """The search must neither recurse too deeply nor take too long."""
    count = choose(6_000, 20_000)
    links = [Link(chunk(n), 4, SPARSE, chunk((n + 1) % count)) for n in range(count)]
    version, _ = forge(store, links, chunk(7))
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError):
            read(repo, version)
        assert len(repo.verify().problems) == count + 1


def test_a_chunk_is_found_where_all_frames_are_bases_of_each_other(store: MemoryStore) -> None:
    """Every chunk is stored as a difference from every other one, and one of them whole, too."""
    chunks = [chunk(n) for n in range(60)]
    links = [difference(one, other) for one in chunks for other in chunks if one != other]
    version, _ = forge(store, [*links, whole(chunks[-1])], chunks[0])
    with casweights.open(store) as repo:
        assert read(repo, version) == chunks[0]
        assert [info.name for info in store.list(PACKS)]


def test_a_base_of_a_wrong_size_stays_readable(store: MemoryStore) -> None:
    version, pack = forge(store, REFUSED["longer base"])
    honest = add_version(store, chunk(4, len(A) + 100), [add_pack(store, REFUSED["longer base"])])
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError, match=pack):
            read(repo, version)
        assert read(repo, honest) == chunk(4, len(A) + 100)


def test_the_error_for_a_damaged_base_names_the_requested_chunk(store: MemoryStore) -> None:
    version, pack = forge(store, [whole(A), difference(B, A), difference(C, B)], C)
    flip_bit(store, pack, 8 + len(A) + 1)
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError, match=str(chunk_id(C))) as caught:
            read(repo, version)
        assert str(chunk_id(B)) in str(caught.value)


def test_verify_reports_chains_that_are_too_long(store: MemoryStore) -> None:
    forge(store, chain(MAX_LINKS), chunk(MAX_LINKS))
    with casweights.open(store) as repo:
        assert repo.verify().problems


def test_the_error_for_a_chain_that_is_too_long_names_the_maximum(store: MemoryStore) -> None:
    version, _ = forge(store, chain(MAX_LINKS), chunk(MAX_LINKS))
    with casweights.open(store) as repo, pytest.raises(IntegrityError) as caught:
        read(repo, version)
    assert "None" not in str(caught.value)
    assert str(MAX_LINKS) in str(caught.value)


def test_the_search_among_many_bad_frames_ends_and_the_chunk_can_be_stored_again(
    store: MemoryStore,
) -> None:
    """The reader must not try all frames, each with a search through all that are left."""
    bad = [Link(B, Encoding.ZSTD, b"bad" + bytes([n // 256, n % 256])) for n in range(500)]
    version, pack = forge(store, bad)
    counting = CountingStore(store)
    with casweights.open(counting) as repo:
        counting.reset()
        with pytest.raises(IntegrityError, match=pack):
            read(repo, version)
        assert len(counting.reads) < 150
        repo.commit({"x": torch.frombuffer(bytearray(B), dtype=torch.uint8)})
        assert read(repo, version) == B


def test_a_version_of_all_chunks_of_a_chain_does_not_read_it_for_each_of_them(
    store: MemoryStore, tmp_path: Path
) -> None:
    length = 600
    pack = add_pack(store, chain(length))
    version = add_version_of(store, [chunk(n) for n in range(length + 1)], pack)
    counting = CountingStore(store)
    with casweights.open(counting) as repo:
        counting.reset()
        repo.checkout(version, tmp_path / "out")
        assert len(counting.reads) < 80 * length
    assert (tmp_path / "out" / f"{length:04}").read_bytes() == chunk(length)


VERBS: dict[str, Callable[[Repository, Repository, Path], object]] = {
    "checkout": lambda repo, _, folder: repo.checkout("main", folder),
    "push": lambda repo, other, _: repo.push(other),
    "shallow push": lambda repo, other, _: repo.push(other, ["main"], history=False),
    "repack": lambda repo, _, __: repo.repack(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_version_of_all_chunks_of_a_chain_follows_it_once(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The chain of one chunk continues that of another, so no part is followed twice."""
    length, steps = 600, Counter[str]()
    back, frames = chain_module.Chain.back, frame_table.FrameTable.all_frames

    def counted_back(
        chain_: chain_module.Chain, seen: set[Node] | None = None
    ) -> Iterator[Location]:
        for place in back(chain_, seen):
            steps["back"] += 1
            yield place

    def counted_frames(table: frame_table.FrameTable, chunk: ChunkId) -> Sequence[Location]:
        steps["looks"] += 1
        return frames(table, chunk)

    pack = add_pack(store, chain(length))
    version = add_version_of(store, [chunk(n) for n in range(length + 1)], pack)
    with (
        casweights.open(store) as repo,
        casweights.open(MemoryStore(), create=True, config=CONFIG) as other,
    ):
        repo.branch("main", version)
        monkeypatch.setattr(chain_module.Chain, "back", counted_back)
        monkeypatch.setattr(frame_table.FrameTable, "all_frames", counted_frames)
        VERBS[verb](repo, other, tmp_path / "out")
    assert steps["back"] < 80 * length
    assert 0 < steps["looks"] < 20 * length


def add_version_of(store: MemoryStore, raws: list[bytes], pack: PackId) -> SnapshotId:
    """Add a version with one file for each of these chunks."""
    entries = [
        FileEntry(f"{n:04}", len(raw), None, None, (chunk_id(raw),)) for n, raw in enumerate(raws)
    ]
    manifest = Manifest(
        number=1,
        parents=(),
        time=datetime(2024, 1, 1, tzinfo=UTC),
        author="",
        message="",
        metadata={},
        config=CONFIG,
        files=tuple(entries),
    )
    snapshot, encoded = EncodedSnapshot.of(manifest)
    table = PackTable([pack], dict.fromkeys(map(chunk_id, raws), pack))
    store.put(snapshot_name(snapshot.id), encode_snapshot(StoredSnapshot(snapshot, encoded, table)))
    return snapshot.id
