"""Transfer: versions are copied under the same IDs, and only missing objects are moved."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.database.packs import read_pack
from casweights.errors import (
    InvalidInputError,
    NotFoundError,
)
from casweights.events import Reporter, Stage
from casweights.format import names
from casweights.format.manifest import EncodedSnapshot
from casweights.operations.push import push
from casweights.operations.transfer import transfer
from casweights.results import TransferStats
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.faults import FaultyStore
from tests import forged_chains
from tests.histories import CHUNK, step
from tests.operations.transfers import (
    Versions,
    check,
    commit,
    create,
    names_of,
    push_all,
    push_everything,
    send,
    written,
)

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore


@pytest.mark.usefixtures("packs_apart")
def test_pushing_everything_copies_versions_packs_and_refs(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    stats = send(objects, target)
    check(target, versions)
    assert names_of(target, names.PACKS) == names_of(objects, names.PACKS)
    with casweights.open(objects) as here, casweights.open(target) as there:
        assert there.branches() == here.branches()
        assert there.tags() == here.tags()
        refs = {f"heads/{name}": tip for name, tip in here.branches().items()}
        assert stats.refs == {**refs, "tags/v1": here.tags()["v1"]}
    assert stats.snapshots == len(versions)
    assert stats.packs == len(names_of(objects, names.PACKS))
    copied = ("packs/", "snapshots/", "versions/")
    moved = [nbytes for name, nbytes in target.writes if name.startswith(copied)]
    assert stats.nbytes == sum(moved)


@pytest.mark.usefixtures("packs_apart")
def test_transferred_objects_are_identical(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """If the source was not repacked, even the pack tables are identical."""
    send(objects, target)
    for name in names_of(objects, names.PACKS) | names_of(objects, names.SNAPSHOTS):
        assert target.get(name) == objects.get(name)


def test_nothing_moves_twice(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    for move in (push_everything, lambda here, there: push(here, there, None)):
        objects.reset()
        target.reset()
        stats = send(objects, target, move)
        assert stats == TransferStats(snapshots=0, packs=0, nbytes=0, refs={}, tips=stats.tips)
        assert target.writes == []
        assert objects.read_bytes(names.PACKS) + target.read_bytes(names.PACKS) == 0


@pytest.mark.usefixtures("packs_apart")
def test_a_push_of_one_more_version_writes_one_pack(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
    version = commit(objects, fresh)
    target.reset()
    push_all(objects, target, "main")
    assert [name.split("/")[0] for name in written(target)] == ["packs", "snapshots", "refs"]
    assert target.read_bytes(names.PACKS) < 12_000  # the lists of chunks of a parent, no tensors
    check(target, versions | {version: fresh})


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("compression", ["auto", "fast"])
def test_a_push_into_a_repacked_target_copies_only_new_packs(
    objects: CountingStore, target: CountingStore, versions: Versions, compression: str
) -> None:
    """The target contains none of the source's packs by name, but all of their chunks."""
    send(objects, target)
    with casweights.open(target) as repo:
        repo.repack(compression=compression)  # type: ignore[arg-type]
    assert not names_of(target, names.PACKS) & names_of(objects, names.PACKS)
    state = list(versions.values())[4]["w"]
    for seed, branch in enumerate(["new", "main"]):
        fresh = {"w": step(state, 0.01, 80 + seed)}
        versions[commit(objects, fresh, branch=branch)] = fresh
        target.reset()
        stats = send(objects, target)
        assert stats.snapshots == stats.packs == len(written(target, names.PACKS)) == 1
    check(target, versions)


def test_a_push_from_a_repacked_source_writes_valid_pack_tables(
    repo: Repository,
    objects: CountingStore,
    target: CountingStore,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pack tables of the source's snapshots are outdated; those of the target must not be."""
    monkeypatch.setattr("casweights.database.writer.PACK_TARGET", 100_000)
    fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
    version = repo.commit(fresh, message="to be pushed later").id
    repo.branch("late", version)
    repo.branch("main", "main~1", force=True)
    repo.repack(compression="small")
    push_all(objects, target, "main")
    push_all(objects, target)
    check(target, versions | {version: fresh})
    for found in versions:
        check_table(target, found)


def check_table(store: ObjectStore, version: SnapshotId) -> None:
    """Check that a version's pack table names all packs it needs, so that none are listed."""
    watched = FaultyStore(store)
    with casweights.open(watched) as repo:
        repo.load(version)
    assert ("list", names.PACKS) not in watched.calls


class RemoteStore(CountingStore):
    """A store with the capabilities of a bucket."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.capabilities = Capabilities(
            exclusive_create=True, listing_lags=True, cheap_reads=False
        )


def test_a_push_from_a_remote_store_reads_only_new_objects(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """Old packs and snapshots of the source are not read."""
    send(objects, target)
    before = names_of(objects, names.PACKS)
    fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
    version = commit(objects, fresh)
    source = RemoteStore(objects)
    push_all(source, target)
    assert not before & {name for name, _ in source.reads}
    old_snapshots = {names.snapshot_name(found) for found in versions}
    assert not old_snapshots & {name for name, _ in source.reads}
    check_table(target, version)


def test_a_difference_is_copied_if_the_target_has_its_base(objects: CountingStore) -> None:
    """The cheapest chain in the source is a whole frame; the target already has the base."""
    forged_chains.create(objects)
    a, b = forged_chains.A, forged_chains.B
    links = [forged_chains.whole(a), forged_chains.difference(b, a), forged_chains.whole(b)]
    packs = [forged_chains.add_pack(objects, [link]) for link in links]
    versions = [forged_chains.add_version(objects, raw, [packs[n]]) for n, raw in enumerate([a, b])]
    with casweights.open(objects) as repo:
        repo._db.index.load()
        parent = repo._db.snapshots.load(versions[1])
        child, encoded = EncodedSnapshot.of(replace(parent, parents=(versions[0],)))
        repo._db.snapshots.save(*repo._db.snapshots.encode(child, encoded))
    target = MemoryStore()
    create(target)
    send(objects, target, lambda here, there: transfer(here, there, [child.id]))
    assert names_of(target, names.PACKS) == {names.pack_name(pack) for pack in packs[:2]}


def test_a_target_with_another_config_is_refused(
    objects: CountingStore, versions: Versions
) -> None:
    for config in (
        StoreConfig(chunk_size=2 * CHUNK),
        StoreConfig(digest="xxh3-128", chunk_size=CHUNK),
    ):
        target = CountingStore(MemoryStore())
        create(target, config)
        target.reset()
        with pytest.raises(InvalidInputError, match="init --digest blake3 --chunk-size 64KiB"):
            send(objects, target)
        assert target.writes == []


def test_pushing_an_empty_store_copies_nothing(target: CountingStore) -> None:
    source = MemoryStore()
    create(source)
    assert send(source, target) == TransferStats(snapshots=0, packs=0, nbytes=0, refs={})


def test_a_missing_version_is_not_found(objects: CountingStore, target: CountingStore) -> None:
    create(objects)
    unknown = casweights.SnapshotId(bytes(32))
    with pytest.raises(NotFoundError, match="no snapshot"):
        send(objects, target, lambda here, there: transfer(here, there, [unknown]))


def test_a_transfer_of_versions_moves_no_ref(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    tips = list(versions)[4:]
    send(objects, target, lambda here, there: transfer(here, there, tips))
    check(target, versions)
    assert names_of(target, "refs/") == set()


def test_progress_adds_up_to_the_bytes_of_frames(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    class Progress(Reporter):
        total = done = 0
        open = False
        stats: TransferStats

        def started(self, stage: Stage, total: int) -> None:
            assert (stage, self.open) == (Stage.TRANSFER, False)
            self.open = True
            self.total += total

        def advanced(self, stage: Stage, nbytes: int) -> None:
            self.done += nbytes

        def finished(self, stage: Stage) -> None:
            self.open = False

        def transferred(self, stats: TransferStats) -> None:
            self.stats = stats

    progress = Progress()
    stats = send(objects, target, reporter=progress)
    assert progress.stats == stats
    carried = sum(
        location.frame.size
        for info in objects.list(names.SNAPSHOTS)
        for location in read_pack(objects, info).locations
    )
    assert progress.done == progress.total == carried > 0
    assert not progress.open
