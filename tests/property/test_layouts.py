"""Random changes of layout: tensors fused, split, renamed, and moved between files and ranks."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st

import casweights
from casweights.config import KiB, StoreConfig
from casweights.events import Reporter
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from tests.lengths import examples
from tests.spec.readers import read, tree
from tools.bench.layouts import Layout, Size, added, model, stepped, write

if TYPE_CHECKING:
    from casweights.results import CheckoutStats
    from casweights.stores.base import ObjectStore
    from tools.bench.layouts import State

SIZE = Size(128, 352, 500, 2)
SMALL_CHUNK, CHUNK = 64 * KiB, 256 * KiB  # readers keep eight: a part of the model, or all of it
LISTS = 40  # bytes for each tensor: its name, its shape, and its chunks
layouts = st.builds(
    Layout,
    fused=st.sampled_from(["", "all", "groups"]),
    renamed=st.booleans(),
    ranks=st.sampled_from([1, 2, 4]),
    files=st.integers(1, 3),
    by_columns=st.just(False),
)


class Added(NamedTuple):
    """What a version takes.

    Attributes:
        nbytes: Bytes of its frames.
        share: Bytes that a checkout of it reads, in proportion to those of the version before.
    """

    nbytes: int
    share: float


class Fetched(Reporter):
    """Keeps the bytes that the last checkout read."""

    def checked_out(self, stats: CheckoutStats) -> None:
        self.nbytes = stats.fetched_bytes


def commit(
    store: ObjectStore, size: int, old: Layout, new: Layout, folder: Path, *, is_child: bool = True
) -> Added:
    """Commit a model, and a step of it in another layout; check that it comes back."""
    state = model(SIZE)
    with casweights.open(store, create=True, config=StoreConfig(chunk_size=size)) as repo:
        repo.commit(write(old.of(state), folder))
        before = repo.stats().pack_bytes
        after = write(new.of(stepped(state)), folder)
        parent = "main" if is_child else None
        version = repo.commit(after, branch="new", parent=parent).id
        nbytes = repo.stats().pack_bytes - before
    return Added(nbytes, checked_out(store, str(version), folder) / before)


def checked_out(store: ObjectStore, version: str, expected: Path) -> int:
    """Check a version out, which must be as it was; return the bytes that were read."""
    reporter, out = Fetched(), expected.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    with casweights.open(store, reporter=reporter) as repo:
        repo.checkout(version, out)
    assert tree(out) == tree(expected)
    return reporter.nbytes


def count(layout: Layout) -> int:
    return sum(len(state) for state in layout.of(model(SIZE)).values())


@pytest.mark.parametrize("is_child", [True, False], ids=["parent", "found"])
@hypothesis.settings(max_examples=examples(3))
@hypothesis.given(old=layouts, new=layouts)
def test_another_layout_takes_what_the_change_takes(
    is_child: bool, old: Layout, new: Layout
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        same = commit(MemoryStore(), CHUNK, old, old, folder)
        other = commit(MemoryStore(), CHUNK, old, new, folder, is_child=is_child)
    assert other.nbytes <= 1.1 * same.nbytes + LISTS * (count(old) + count(new))
    assert other.share <= 1.5


@hypothesis.settings(max_examples=examples(3))
@hypothesis.given(old=layouts, new=layouts)
def test_a_checkout_reads_no_more_than_promised(old: Layout, new: Layout) -> None:
    """Readers keep few of these chunks, so that each rank reads all of them again."""
    with tempfile.TemporaryDirectory() as scratch:
        found = commit(MemoryStore(), SMALL_CHUNK, old, new, Path(scratch) / "model")
    assert found.share <= 2.5


def test_rows_that_many_ranks_share_are_stored_whole_in_the_end(tmp_path: Path) -> None:
    old, new = Layout(), Layout(ranks=8, renamed=True)
    found = commit(MemoryStore(), SMALL_CHUNK, old, new, tmp_path / "model")
    assert 1.5 < found.share <= 2.5


def test_the_independent_reader_and_a_repack_know_fused_tensors(tmp_path: Path) -> None:
    store = tmp_path / "store"
    old, new = Layout(ranks=2), Layout(fused="groups", renamed=True)
    commit(LocalStore(store), SMALL_CHUNK, old, new, tmp_path / "model")
    with casweights.open(store) as repo:
        assert repo.stats().encodings["derived"] > 10
        before = repo.stats().pack_bytes
        repo.repack()
        assert repo.stats().pack_bytes <= 1.02 * before
        assert not repo.verify().problems
    checked_out(LocalStore(store), "new", tmp_path / "model")
    done = read(store, "new", tmp_path / "read")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "read") == tree(tmp_path / "model")


def test_stages_that_number_their_layers_alike_are_told_apart(tmp_path: Path) -> None:
    state = model(Size(128, 256, 100, 4))
    costs = []
    for stages in (2, 4):
        files = []
        for own, count in ((state, 2), (stepped(state), stages)):
            tensors = [list(one.items()) for one in split(own, count)]
            files.append({f"{n}.safetensors": dict(part) for n, part in enumerate(tensors)})
        store = casweights.open(
            MemoryStore(), create=True, config=StoreConfig(chunk_size=SMALL_CHUNK)
        )
        with store as repo:
            costs.append(added(repo, files[0], files[1], tmp_path / "model"))
    assert costs[1] <= 1.1 * costs[0] + LISTS * 100


def split(state: State, stages: int) -> list[State]:
    """Return the layers of each stage of a pipeline, numbered from 0."""
    found: list[State] = [{} for _ in range(stages)]
    count = 4 // stages
    for name, tensor in state.items():
        if name.startswith("model.layers."):
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            found[int(layer) // count][f"layers.{int(layer) % count}.{rest}"] = tensor
    return found


def test_layouts_change_again_and_again(tmp_path: Path) -> None:
    """What is derived cannot be a root again, and is stored whole then."""
    state, versions = model(SIZE), {}
    store = MemoryStore()
    kinds = [Layout(), Layout(fused="all"), Layout(ranks=2), Layout(fused="groups", files=2)]
    with casweights.open(store, create=True, config=StoreConfig(chunk_size=SMALL_CHUNK)) as repo:
        for n, layout in enumerate(kinds):
            state = stepped(state, seed=n)
            folder = write(layout.of(state), tmp_path / f"{n}" / "model")
            versions[str(repo.commit(folder).id)] = folder
    for version, folder in versions.items():
        checked_out(store, version, folder)


@pytest.mark.parametrize("is_child", [True, False], ids=["parent", "found"])
@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (2, 4)])
def test_columns_of_other_ranks_are_found(
    tmp_path: Path, ranks: tuple[int, int], is_child: bool
) -> None:
    old, new = (Layout(ranks=n, by_columns=True) for n in ranks)
    found = commit(MemoryStore(), CHUNK, old, new, tmp_path / "model", is_child=is_child)
    whole = sum(tensor.nbytes for tensor in model(SIZE).values())
    assert found.nbytes < whole / 10
    assert found.share <= 1.5
