"""Transfers from damaged stores, transfers that fail halfway, and transfers during a repack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.errors import (
    CasweightsError,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from casweights.format import names
from casweights.operations.push import push
from casweights.stores.base import NO_NAMES
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from casweights.testing.states import assert_same_state
from tests.histories import step, weights
from tests.lengths import moments
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
    from collections.abc import Iterator, Mapping, Sequence

    from casweights.stores.base import ObjectStore

pytestmark = pytest.mark.usefixtures("packs_apart")


def test_packs_are_copied_in_batches_of_limited_number_and_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch has few packs and few bytes; a pack beyond the limit is copied alone."""

    class Batches(CountingStore):
        calls: list[list[int]]

        def copy_from(
            self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
        ) -> None:
            self.calls.append([source.size(name) for name in names])
            super().copy_from(source, names, called)

    def batches() -> list[list[int]]:
        store = Batches(MemoryStore())
        create(store)
        store.calls = []
        send(source, store, push_everything)
        return store.calls

    source = MemoryStore()
    create(source)
    with monkeypatch.context() as patch:
        patch.setattr("casweights.database.writer.PACK_TARGET", 100_000)
        commit(source, {"w": weights(9)})
    ((first, second, *rest),) = batches()
    assert len(rest) > 2
    monkeypatch.setattr("casweights.operations.pack_copy._BATCH_PACKS", 2)
    assert batches()[:2] == [[first, second], rest[:2]]
    monkeypatch.setattr("casweights.operations.pack_copy._BATCH_BYTES", 100_000)
    assert batches() == [[size] for size in (first, second, *rest)]


@pytest.mark.parametrize("place", ["payload", "index"])
def test_a_damaged_pack_of_the_source_is_reported_or_stays_detectable(
    objects: CountingStore, target: CountingStore, versions: Versions, place: str
) -> None:
    """A damaged index stops the transfer; a damaged frame is copied, and an error in the target."""
    for name in names_of(objects, names.PACKS):
        flip_bit(objects, name, 100 if place == "payload" else objects.size(name) - 60)
    if place == "index":
        with pytest.raises(IntegrityError, match=r"packs/"):
            send(objects, target)
        assert names_of(target, names.SNAPSHOTS) == set()
        return
    send(objects, target)
    with casweights.open(target) as repo:
        assert repo.verify().problems
        for version in versions:
            with pytest.raises(IntegrityError):
                repo.load(version)


def test_a_damaged_snapshot_of_the_source_leaves_the_target_sound(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    damaged = list(versions)[2]
    flip_bit(objects, names.snapshot_name(damaged), 100)
    with pytest.raises(IntegrityError, match=str(damaged)):
        send(objects, target)
    assert names_of(target, "refs/") == set()
    with casweights.open(target) as repo:
        assert repo.verify().problems == ()


def test_a_lost_ancestor_in_the_source_stops_the_transfer(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """An ancestor that is missing in a store that is not shallow counts as damage."""
    lost = list(versions)[1]
    objects.delete(names.snapshot_name(lost))
    with pytest.raises(NotFoundError, match=str(lost)):
        push_all(objects, target, "main")
    assert names_of(target, names.SNAPSHOTS) == set()


def test_a_transfer_survives_a_repack_of_the_source(
    objects: CountingStore, versions: Versions
) -> None:
    """The packs to copy are deleted during the transfer; their chunks are found in new packs."""
    for call, source in zip((1, 2, 6), copies(objects), strict=False):
        target, before = MemoryStore(), names_of(source, names.PACKS)
        create(target)

        def between(source: ObjectStore = source) -> None:
            with casweights.open(source) as other:
                other.repack(compression="small")

        counting = CountingStore(target)
        store = FaultyStore(counting, [Fault(call=call, method="put", action=between)])
        stats = send(source, store, lambda here, there: push(here, there, ["main"]))
        assert not before & names_of(source)
        parts = (names.PACKS, names.SNAPSHOTS)  # what the result counts
        assert stats.nbytes == sum(n for name, n in counting.writes if name.startswith(parts))
        with casweights.open(target) as repo:
            for version in list(versions)[:5]:
                assert_same_state(repo.load(version), versions[version])


def copies(original: ObjectStore) -> Iterator[MemoryStore]:
    while True:
        store = MemoryStore()
        for info in original.list():
            store.put(info.name, [original.get(info.name)])
        yield store


@pytest.mark.parametrize("after", [False, True])
def test_a_failed_transfer_can_be_repeated(
    objects: CountingStore, versions: Versions, after: bool
) -> None:
    """The target is sound after the failure, and a repetition copies only the rest."""
    empty = MemoryStore()
    create(empty)
    with casweights.open(objects) as repo:
        repo.repack(compression="small")
        fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
        versions[repo.commit(fresh).id] = fresh
    for calls, store in zip(moments(6, after), copies(empty), strict=False):
        faulty = FaultyStore(store, [Fault(call=calls, after=after)])
        failed = True
        try:
            send(objects, faulty)
            failed = False
        except StoreError:
            pass
        with casweights.open(store) as repo:
            assert repo.verify().problems == ()
        arrived, again = names_of(store), FaultyStore(store)
        send(objects, again)
        put = {name for method, name in again.calls if method == "put"}
        assert not arrived & put
        check(store, versions)
        if not failed:
            assert not put
            break
    assert calls > 20


def test_the_target_is_sound_after_each_write(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """All visible versions are complete, no matter how many objects have been written."""
    send(objects, target)
    store = MemoryStore()
    create(store)
    for name in written(target):
        store.put(name, [target.get(name)])
        with casweights.open(store) as repo:
            assert repo.verify(quick=True).problems == ()


def test_a_source_without_packs_raises_our_error(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """All packs of the source were deleted."""
    for name in names_of(objects, names.PACKS):
        objects.delete(name)
    with pytest.raises(CasweightsError, match=r"cannot be rebuilt from|no pack contains"):
        send(objects, target)
