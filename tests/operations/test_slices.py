"""Tensors that have other rows than before: what they are made from, and what that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.database.writer import PackWriter
from casweights.events import Reporter
from casweights.format.codecs import Encoding
from casweights.ids import CarriedPackId
from casweights.operations.slices import ChunkSlice
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK
from tests.operations.resizing import (
    COLUMNS,
    ROWS,
    chains,
    embedding,
    encode,
    encodings,
    moved,
    raw_of,
)
from tests.operations.transfers import create

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.ids import ChunkId
    from casweights.results import CheckoutStats
    from casweights.testing import CountingStore
    from tests.histories import State

LISTS = 250  # bytes of headers and lists of chunks, at most


def added(repo: Repository, state: State) -> int:
    """Commit a state, and return the bytes of its frames."""
    before = repo.stats().pack_bytes
    repo.commit(state)
    return repo.stats().pack_bytes - before


class Fetched(Reporter):
    """A reporter that keeps the bytes that the last checkout read."""

    def checked_out(self, stats: CheckoutStats) -> None:
        self.nbytes = stats.fetched_bytes


GROWN = torch.cat([embedding(), embedding(30, seed=9)])
ROWS_TAKE = 2 * 30 * COLUMNS  # bytes


@pytest.mark.parametrize(
    ("new", "most"),
    [
        (torch.cat([embedding(), torch.zeros(30, COLUMNS).bfloat16()]), 0),
        (torch.cat([embedding(), torch.zeros(200, COLUMNS).bfloat16()]), 100),
        (GROWN, 1.1 * ROWS_TAKE),
        (torch.cat([moved(embedding()), embedding(30, seed=9)]), 1.1 * ROWS_TAKE + 4 * 800),
        (embedding(ROWS - 20), 0),
        (embedding(200), 0),
        (moved(embedding(200)), 4 * 800),
    ],
    ids=["zeros", "zeros beyond", "grown", "grown and moved", "cut", "cut more", "cut and moved"],
)
def test_other_rows_take_what_is_new_of_them(
    repo: Repository, new: torch.Tensor, most: float
) -> None:
    repo.commit({"emb": embedding()})
    assert added(repo, {"emb": new}) <= most + LISTS
    assert Encoding.DERIVED in encodings(repo)
    assert repo.load("main")["emb"].equal(new)
    assert repo.verify().problems == ()


def test_a_tensor_that_moved_to_another_file_is_cut(repo: Repository, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"emb": embedding()}, folder / "model.safetensors")
    repo.commit(folder)
    before = repo.stats().pack_bytes
    (folder / "model.safetensors").unlink()
    save_file({"emb": embedding(200)}, folder / "model-00001-of-00002.safetensors")
    repo.commit(folder)
    assert repo.stats().pack_bytes - before < LISTS


@pytest.mark.parametrize(
    ("name", "rows"), [("w2", 25), ("w2", 15), ("w15", 10)], ids=["grown", "cut", "new"]
)
def test_the_neighbours_of_a_small_tensor_with_other_rows_take_nothing(
    repo: Repository, name: str, rows: int
) -> None:
    small = {f"h.0.w{n}": embedding(20, seed=n) for n in range(4)}
    repo.commit(small)
    small[f"h.0.{name}"] = torch.cat([embedding(20, seed=2), embedding(5, seed=7)])[:rows]
    assert added(repo, small) < 2 * 10 * COLUMNS + LISTS
    assert encodings(repo) == [Encoding.DERIVED]
    assert_same_state(repo.load("main"), small)


@pytest.mark.parametrize(
    "new",
    [
        embedding(200).float(),
        embedding(200).reshape(100, 2 * COLUMNS),
        embedding(200, seed=5),
        embedding(200).flip(0),
    ],
    ids=["another dtype", "longer rows", "other weights", "other rows"],
)
def test_a_tensor_that_is_not_alike_is_stored_whole(repo: Repository, new: torch.Tensor) -> None:
    repo.commit({"emb": embedding()})
    repo.commit({"emb": new})
    assert not any(chain.frames[0].frame.bases for chain in chains(repo))
    assert repo.load("main")["emb"].equal(new)


def test_what_follows_is_a_difference_and_stays_cheap_to_read(repo: Repository) -> None:
    """The derived frame counts against what all differences of a chain may take."""
    first = repo.commit({"emb": embedding()}).id
    whole = sum(chain.nbytes for chain in chains(repo, first))
    new, states = embedding(ROWS - 20), {}
    for n in range(60):
        states[repo.commit({"emb": new}).id] = {"emb": new}
        new = moved(new, seed=n)
    assert Encoding.DERIVED in [chain.frames[0].frame.encoding for chain in chains(repo, "main~50")]
    for version, state in states.items():
        assert_same_state(repo.load(version), state)
    derived = chains(repo, "main~50")[-1]
    assert derived.read_size <= 1.5 * derived.whole_size
    # The last chunk of the old version is read as a whole.
    assert max(version.read_bytes for version in repo.stats().versions) <= 1.5 * whole + CHUNK


def test_a_second_change_of_rows_begins_with_a_whole_chunk(repo: Repository) -> None:
    """No derived frame builds on another."""
    states = {}
    for tensor in (embedding(), GROWN, torch.cat([GROWN, embedding(20, seed=8)]), embedding(200)):
        states[repo.commit({"emb": tensor}).id] = {"emb": tensor}
    assert all(not root.roots for chain in chains(repo) for root in chain.roots)
    repo.repack()
    for version, state in states.items():
        assert_same_state(repo.load(version), state)
    assert repo.verify().problems == ()


def test_a_checkout_over_the_old_version_reads_the_derived_frame_alone(
    objects: CountingStore, repo: Repository, tmp_path: Path
) -> None:
    first = repo.commit({"emb": embedding()}).id
    repo.commit({"emb": GROWN})
    reporter = Fetched()
    with casweights.open(objects, reporter=reporter) as reader:
        reader.checkout(first, tmp_path / "out")
        reader.checkout("main", tmp_path / "out")
        assert reporter.nbytes < 1.2 * ROWS_TAKE
        reader.checkout("main", tmp_path / "new")
        assert reporter.nbytes > 100_000
    assert_same_state(repo.load("main"), {"emb": GROWN})


def test_a_damaged_local_root_is_read_from_the_store(repo: Repository, tmp_path: Path) -> None:
    """The chunks of a file are taken for what they were when the file was hashed."""

    class Lying:
        is_used = True

        def __contains__(self, chunk: object) -> bool:
            return chunk != wanted

        def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
            out[:] = bytes(len(out))
            return True

    repo.commit({"emb": embedding()})
    version = repo.commit({"emb": GROWN})
    wanted, piece = list(version.pieces())[-1]
    out = memoryview(bytearray(piece.nbytes))
    reader = repo.database.reader
    reader.with_local(Lying()).readinto(wanted, out)
    assert reader.is_right(wanted, out)


def test_neighbours_read_a_common_root_once(objects: CountingStore, tmp_path: Path) -> None:
    """A chunk is divided into two tensors of different dtypes, which share no chunk."""
    create(objects)
    both = embedding(100)
    with casweights.open(objects) as repo:
        repo.commit({"a": both, "b": torch.zeros(40, COLUMNS).bfloat16(), "c": torch.ones(1)})
        [(chunk, _)] = [found for found in repo.snapshot("main").pieces() if found[1].name == "a"]
        parts = [raw_of(both[:60]), raw_of(both[60:])]
        frames = [
            encode(repo, raw, [ChunkSlice(chunk, start, len(raw))])
            for raw, start in zip(parts, (0, len(parts[0])), strict=True)
        ]
        writer = PackWriter(repo.database)
        for raw, frame in zip(parts, frames, strict=True):
            writer.add(repo.database.hasher(raw), len(raw), [frame])
        writer.finish()
        writer.close()
    with casweights.open(objects, workers=1) as repo:
        repo.database.index.load()
        objects.reset()
        reader = repo.database.reader
        read = [reader.readinto(repo.database.hasher(r), memoryview(bytearray(r))) for r in parts]
    root, small = read[0], sum(len(frame.payload) for frame in frames)
    assert root > 100 * COLUMNS
    assert read[1] < small
    assert len(objects.reads) == 3


def commit_parts(repo: Repository, count: int, rows: int = 60) -> tuple[list[ChunkId], State]:
    """Commit tensors of one chunk each; return their chunks."""
    state = {f"{n}.w": embedding(rows, seed=n) for n in range(count)}
    # Neighbours of different dtypes do not share a chunk.
    others = {f"{n}.x": torch.tensor([n], dtype=torch.int64) for n in range(count)}
    chunks: list[ChunkId] = []
    for name, tensor in state.items():
        repo.commit({name: tensor} | others, branch=name)
        found = repo.snapshot(name).pieces()
        chunks += [chunk for chunk, piece in found if piece.name == name]
    return chunks, state


def test_a_fused_tensor_is_made_from_its_parts(repo: Repository) -> None:
    chunks, state = commit_parts(repo, 3)
    fused = moved(torch.cat(list(state.values())))
    raw = raw_of(fused)
    size = len(raw) // 3
    frame = encode(repo, raw, [ChunkSlice(chunk, 0, size) for chunk in chunks])
    assert frame.encoding == Encoding.DERIVED
    assert [root.chunk for root in frame.roots] == chunks
    assert len(frame.payload) < 0.05 * len(raw)


def test_nine_roots_are_too_many(repo: Repository) -> None:
    chunks, state = commit_parts(repo, 9, rows=10)
    tensors = list(state.values())
    size = 2 * 10 * COLUMNS
    for count, encoding in ((8, Encoding.DERIVED), (9, Encoding.PLANES)):
        raw = raw_of(torch.cat(tensors[:count]))
        frame = encode(repo, raw, [ChunkSlice(chunk, 0, size) for chunk in chunks[:count]])
        assert frame.encoding == encoding


def test_roots_that_cost_too_much_to_read_are_not_used(repo: Repository) -> None:
    """Half of what a root's chain takes may be differences; the frame needs the rest."""
    states = [embedding(120)]
    other = torch.arange(120 * COLUMNS).reshape(120, COLUMNS) % 7 < 4
    states.append(torch.where(other, embedding(120, seed=5), states[0]))
    for state in states:
        repo.commit({"w": state})
    [cheap], [dear] = chains(repo, "main~1"), chains(repo)
    assert dear.nbytes > 1.3 * dear.whole_size
    for chain, state, encoding in (
        (cheap, states[0], Encoding.DERIVED),
        (dear, states[1], Encoding.PLANES),
    ):
        raw = raw_of(moved(state, seed=9, density=0.2)[:100])
        slices = [ChunkSlice(chain.frames[-1].frame.chunk, 0, len(raw))]
        assert encode(repo, raw, slices).encoding == encoding


def test_a_damaged_root_does_not_stop_a_commit(objects: CountingStore) -> None:
    with casweights.open(objects, create=True, cache_size=0) as repo:
        version = repo.commit({"emb": embedding()}).id
        [name] = [info.name for info in objects.list() if info.name == f"snapshots/{version}"]
    flip_bit(objects.inner, name, 500)
    with casweights.open(objects, cache_size=0) as repo:
        repo.commit({"emb": GROWN})
        assert_same_state(repo.load("main"), {"emb": GROWN})


def test_a_derived_frame_counts_what_its_roots_take_against_its_chain(repo: Repository) -> None:
    """The difference in the chain of the root is one of the chain that begins with its slice."""
    states = [embedding(120)]
    other = torch.arange(120 * COLUMNS).reshape(120, COLUMNS) % 4 == 0
    states.append(torch.where(other, embedding(120, seed=5), states[0]))
    tensor = states[1][:100]
    for n in range(12):
        states.append(tensor)
        tensor = moved(tensor, seed=n, density=0.05)
    for state in states:
        repo.commit({"w": state})
    begin = [chains(repo, f"main~{n}")[0] for n in range(12)]
    assert begin[-1].roots
    assert begin[-1].nbytes > 1.25 * begin[-1].whole_size
    assert max(chain.read_size / chain.whole_size for chain in begin) <= 1.5


def test_a_pack_table_names_the_packs_of_all_roots(repo: Repository) -> None:
    """Two tensors have a chunk each, and share one when they are smaller."""
    own = {f"h.{n}.w": embedding(20, seed=n) for n in range(2)}
    packs = [CarriedPackId(repo.commit(own).id)]
    own["h.1.w"] = embedding(20, seed=5)
    packs.append(CarriedPackId(repo.commit(own).id))
    own["h.0.w"] = own["h.0.w"][:10]
    version = repo.commit(own).id
    [chain] = chains(repo)
    assert [root.frames[-1].pack for root in chain.roots] == packs
    assert set(packs) < set(repo.database.snapshots.load_stored(version).table.packs)


def test_fused_tensors_that_share_a_chunk_with_others_take_what_changes(repo: Repository) -> None:
    """Most of the chunk is in its place, but a difference from there takes all that is not."""
    rows = {"a": 40, "k": 10, "q": 10, "v": 10}
    old = {f"h.0.{name}": embedding(n, seed=n + ord(name)) for name, n in rows.items()}
    new = {name: moved(tensor) for name, tensor in old.items()}
    fused = {"h.0.a": new["h.0.a"], "h.0.qkv": torch.cat([new[f"h.0.{name}"] for name in "qkv"])}
    costs = []
    for n, state in enumerate((new, fused)):
        repo.commit(old, branch=f"{n}")
        before = repo.stats().pack_bytes
        repo.commit(state, branch=f"{n}")
        costs.append(repo.stats().pack_bytes - before)
        assert_same_state(repo.load(f"{n}"), state)
    assert costs[1] <= 1.1 * costs[0] + LISTS
