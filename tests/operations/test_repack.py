"""Repack: all chunks are stored again in new packs, and nothing else changes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import StoreConfig
from casweights.database.frame_table import FrameTable
from casweights.database.packs import read_pack
from casweights.errors import (
    CasweightsError,
    IntegrityError,
    InvalidInputError,
    StoreError,
)
from casweights.events import Reporter, Stage
from casweights.format import names
from casweights.format.pack import Location
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, State, check_versions, history, pack_names, step, weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore
    from casweights.testing import CountingStore

pytestmark = pytest.mark.usefixtures("packs_apart")

CONFIG = StoreConfig(chunk_size=CHUNK)

Versions = dict["SnapshotId", State]


@pytest.fixture
def versions(repo: Repository) -> Versions:
    """A history, and a variant that was committed before its base."""
    base = weights(3, seed=50)
    states = [{"v": step(base, 0.02, 1)}, *history(6, 0.01, chunks=3)]
    found = {repo.commit(state, branch=f"b{n == 0}").id: state for n, state in enumerate(states)}
    late = {"v": base, "other": weights(3, seed=51)}
    found[repo.commit(late, branch="late").id] = late
    return found


def test_a_repack_changes_no_version(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    def others() -> set[str]:
        """Names of all but packs, and signatures, which are merged."""
        listed = {info.name for info in objects.list()} - pack_names(objects)
        return {name for name in listed if not name.startswith(names.SIGNATURES)}

    before = others()
    repo.repack(grace=timedelta(0))
    assert others() == before
    check_versions(objects, versions)
    for version, state in versions.items():
        assert_same_state(repo.load(version), state)


def test_a_repack_stores_unrelated_versions_as_differences(objects: CountingStore) -> None:
    """Versions that were committed without a relative in the store become differences."""
    states = list(history(6, 0.01, chunks=3))
    found: Versions = {}
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        for n, state in enumerate(states):
            found[repo.commit(state, branch=f"b{n}").id] = state
            repo.delete_branch(f"b{n}")  # so that the next commit finds no base
        assert repo.stats().encodings == {"planes": 18}
        done = repo.repack()
        encodings = repo.stats().encodings
        assert encodings["planes"] == 3
        assert sum(encodings.values()) == 18
        assert (done.old_packs, done.packs) == (6, 1)
        assert done.nbytes < done.old_bytes / 3
        assert done.nbytes == repo.stats().pack_bytes
    check_versions(objects, found)


def test_repeating_a_repack_changes_nothing(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    repo.repack()
    before = {name: objects.get(name) for name in pack_names(objects)}
    repo.repack()
    assert {name: objects.get(name) for name in pack_names(objects)} == before


def test_a_repack_applies_the_compression(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    repo.repack(compression="fast")
    fast = repo.stats()
    assert fast.encodings["raw"] > 0
    repo.repack(compression="small")
    assert repo.stats().pack_bytes < fast.pack_bytes
    check_versions(objects, versions)
    with pytest.raises(InvalidInputError, match="compression"):
        repo.repack(compression="tiny")  # type: ignore[arg-type]


def test_repacking_an_empty_store_writes_no_pack(repo: Repository) -> None:
    assert repo.repack().packs == 0


def test_progress_adds_up_to_the_total(
    objects: CountingStore, repo: Repository, versions: Versions
) -> None:
    class Progress(Reporter):
        total = done = 0
        ended = False

        def started(self, stage: Stage, total: int) -> None:
            assert stage is Stage.REPACK
            self.total = total

        def advanced(self, stage: Stage, nbytes: int) -> None:
            self.done += nbytes

        def finished(self, stage: Stage) -> None:
            self.ended = True

    progress = Progress()
    with casweights.open(objects, reporter=progress) as other:
        other.repack()
    assert progress.ended
    assert progress.done == progress.total > 0


def test_an_open_reader_works_after_a_repack(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    """The reader's index is outdated, and so are the pack tables of the snapshots."""
    with casweights.open(objects) as reader:
        for version in versions:
            reader.load(version)
        with casweights.open(objects) as other:
            other.repack(compression="small")
        for version, state in versions.items():
            assert_same_state(reader.load(version), state)


def copies(original: ObjectStore) -> Iterator[MemoryStore]:
    while True:
        store = MemoryStore()
        for info in original.list():
            store.put(info.name, [original.get(info.name)])
        yield store


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["put", "delete"])
def test_a_failure_at_any_step_loses_nothing(
    repo: Repository, objects: CountingStore, versions: Versions, method: str, after: bool
) -> None:
    calls = 0
    for calls, store in enumerate(copies(objects), 1):
        faulty = FaultyStore(store, [Fault(call=calls, method=method, after=after)])
        failed = True
        try:
            with casweights.open(faulty) as other:
                other.repack(compression="small")
            failed = False
        except CasweightsError:
            pass
        check_versions(store, versions)
        if not failed:
            break
    assert calls > 1


def test_a_commit_during_a_repack_loses_nothing(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    """The commit relies on packs that the repack deletes before the snapshot is written."""
    states = [*versions.values()]
    fresh = {"w": step(states[-2]["w"], 0.01, 99), "v": states[0]["v"]}
    repacked = False

    def between() -> None:
        nonlocal repacked
        with casweights.open(objects) as other:
            other.repack(compression="small")
        repacked = True

    store = FaultyStore(objects, [Fault(call=2, method="put", action=between)])
    with casweights.open(store) as other:
        version = other.commit(fresh, branch="bFalse")
    assert repacked
    check_versions(objects, versions | {version.id: fresh})


def test_chunks_in_no_version_are_kept(repo: Repository, objects: CountingStore) -> None:
    """The chunks of a failed commit are kept, so that repeating it writes no pack."""
    first, second, third = history(3, 0.01, chunks=2)
    repo.commit(first)
    for state in (second, third):
        store = FaultyStore(objects, [Fault(call=2, method="put")])
        with casweights.open(store) as other, pytest.raises(StoreError):
            other.commit(state)
    repo.repack(compression="small")
    objects.reset()
    with casweights.open(objects) as other:
        version = other.commit(third)
        assert_same_state(other.load(version), third)
    assert not [name for name, _ in objects.writes if name.startswith(names.PACKS)]


def test_a_damaged_chunk_stops_a_repack(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    whole = max(objects.list(names.PACKS), key=lambda info: info.size)
    flip_bit(objects, whole.name, 100)
    before = pack_names(objects)
    with casweights.open(objects) as other, pytest.raises(IntegrityError, match=r"packs/"):
        other.repack()
    assert pack_names(objects) >= before


def commit_loosely(repo: Repository, objects: CountingStore, state: State) -> str:
    """Store chunks that no version contains; return the name of their pack."""
    before = pack_names(objects)
    version = repo.commit(state, branch="loose").id
    repo.delete_branch("loose")
    objects.delete(names.snapshot_name(version))
    (pack,) = pack_names(objects) - before
    return pack


def test_a_damaged_frame_that_no_version_needs_keeps_its_pack(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    loose = commit_loosely(repo, objects, {"w": weights(2, seed=90)})
    flip_bit(objects, loose, 100)
    before, data = pack_names(objects), objects.get(loose)
    with casweights.open(objects) as other:
        other.repack()
        assert pack_names(objects) & before == {loose}
        assert objects.get(loose) == data
        (problem,) = other.verify().problems
        assert loose in str(problem)
    with casweights.open(objects) as other:
        for version, state in versions.items():
            assert_same_state(other.load(version), state)
        assert chunks_of(objects, {"w": weights(2, seed=90)}) == 1  # the sound one was copied


def test_bad_frames_of_a_chunk_that_no_version_needs_are_excluded_together(
    repo: Repository, objects: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    exclude, calls = FrameTable.exclude, 0

    def counted(self: FrameTable, locations: Iterable[Location]) -> None:
        nonlocal calls
        calls += 1
        exclude(self, locations)

    commit_loosely(repo, objects, {"w": weights(1, seed=94)})
    with casweights.open(objects) as other:
        index = other.database.index
        index.load()
        (pack,) = index.contents()
        place = pack.locations[0]
        frames = [place.frame._replace(size=1 + n) for n in range(50)]
        index.add(pack.info.name, pack.info.size, [Location(place.pack, frame) for frame in frames])
        monkeypatch.setattr(FrameTable, "exclude", counted)
        other.repack(compression="small")
    assert 0 < calls <= len({place.frame.chunk for place in pack.locations})


def chunks_of(objects: ObjectStore, state: State) -> int:
    """Return how many chunks of a state a repack has stored again."""
    with casweights.open(MemoryStore(), create=True, config=CONFIG) as scratch:
        wanted = {chunk for chunk, _ in scratch.commit(state).pieces()}
    with casweights.open(objects) as repo:
        repo.database.index.load()
        new = [pack.locations for pack in repo.database.index.contents() if pack.generation]
    return len(wanted & {place.frame.chunk for places in new for place in places})


def test_a_damaged_base_that_no_version_needs_keeps_its_pack(
    repo: Repository, objects: CountingStore
) -> None:
    """The version's chunk has a cheaper chain with that base, and a sound one without it."""
    base = {"w": torch.zeros_like(weights(1))}
    state = {"w": step(base["w"], 0.01, 92)}
    version = repo.commit(state, compression="fast").id
    with casweights.open(MemoryStore(), create=True, config=CONFIG) as other:
        (zeros,) = {chunk for chunk, _ in other.commit(base).pieces()}
        other.commit(state)
        pack = names.pack_name(other.database.index.frames(zeros)[0].pack)
        for info in other.database.store.list(names.PACKS):
            objects.put(info.name, [other.database.store.get(info.name)])
    flip_bit(objects, pack, 10)
    before = pack_names(objects)
    with casweights.open(objects) as late:
        late.repack(compression="small")
        assert pack_names(objects) & before == {pack}
    with casweights.open(objects) as late:
        assert_same_state(late.load(version), state)
        assert [pack in str(problem) for problem in late.verify().problems] == [True]


def test_a_damaged_frame_with_a_sound_copy_is_replaced(
    repo: Repository, objects: CountingStore
) -> None:
    """No version needs the chunk, and one of its two frames is damaged."""
    state = {"w": weights(2, seed=93)}
    packs = [commit_loosely(repo, objects, state)]
    flip_bit(objects, packs[0], 100)
    with casweights.open(objects) as other:
        version = other.commit(state, branch="a").id
        with pytest.raises(IntegrityError):
            other.load(version)
        other.commit(state, branch="b")  # stores the damaged chunk again
    for branch in ("a", "b"):
        repo.delete_branch(branch)
    for info in list(objects.list(names.SNAPSHOTS)):
        objects.delete(info.name)
    with casweights.open(objects) as other:
        assert other.repack().packs == 1
        assert other.verify().problems == ()


def test_only_packs_of_lower_generations_are_deleted(
    repo: Repository, objects: CountingStore, versions: Versions
) -> None:
    """Otherwise, two repacks could each rely on packs that the other one deletes."""
    with casweights.open(objects) as other:
        for generation, compression in enumerate(("small", "fast", "small"), 1):
            other.repack(compression=compression)  # type: ignore[arg-type]
            assert {read_pack(objects, info).generation for info in objects.list(names.PACKS)} == {
                generation
            }
            other.repack(compression=compression)  # type: ignore[arg-type]
            assert {read_pack(objects, info).generation for info in objects.list(names.PACKS)} == {
                generation
            }
    check_versions(objects, versions)


def test_an_unreadable_pack_is_kept_and_reported(repo: Repository, objects: CountingStore) -> None:
    repo.commit({"w": weights(2)}, compression="fast")
    bad = names.PACKS + "0" * 64
    objects.put(bad, [b"no pack"])
    before = pack_names(objects)
    with casweights.open(objects) as other:
        assert other.repack(compression="small").unreadable == (bad,)
        assert pack_names(objects) & before == {bad}
        assert len(other.verify().problems) == 1
        assert other.repack(compression="small").unreadable == (bad,)
        objects.delete(bad)
        assert other.repack(compression="small").unreadable == ()
