"""Repair: what any source or other frame has is back, the rest is named, and nothing is claimed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import casweights
from casweights.errors import IntegrityError
from casweights.format import names
from tests.lengths import examples
from tests.operations.damage import (
    Made,
    content,
    copy_of,
    flip,
    loads,
    make,
    overwrite,
    readable,
    save,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from casweights.ids import ChunkId, SnapshotId
    from casweights.results import RepairReport
    from casweights.stores.memory import MemoryStore

VERSIONS = 5
FORMS = {"carried": {}, "repacked": {"repacked": True}, "archived": {"archived": True}}


@cache
def made(form: str) -> Made:
    return make(VERSIONS, **FORMS[form])


@cache
def needs(form: str) -> dict[SnapshotId, frozenset[ChunkId]]:
    """The chunks of each version, headers and lists included."""
    with casweights.open(made(form).store, workers=1) as repo:
        return {v: frozenset(repo.snapshot(v).stored_chunks()) for v in made(form).states}


@cache
def structures(form: str) -> dict[SnapshotId, frozenset[ChunkId]]:
    """The headers and lists of chunks of each version."""
    with casweights.open(made(form).store, workers=1) as repo:
        return {v: frozenset(repo.snapshot(v).structure()) for v in made(form).states}


class Harm(NamedTuple):
    """What happens to an object."""

    kind: str
    which: int
    where: int


harms = st.builds(
    Harm, st.sampled_from(["flip", "flip", "cut", "delete"]), st.integers(0, 999), st.integers(0)
)


def damage(store: MemoryStore, harm: Harm) -> None:
    folders = (names.PACKS, names.SNAPSHOTS, names.ARCHIVES)
    objects = [info.name for info in store.list() if info.name.startswith(folders)]
    if not objects:
        return
    name = objects[harm.which % len(objects)]
    if harm.kind == "flip":
        flip(store, name, harm.where, harm.where % 8)
    elif harm.kind == "cut":
        data = store.get(name)
        overwrite(store, name, data[: harm.where % (len(data) + 1)])
    else:
        store.delete(name)


def chunks_in(store: MemoryStore, chunks: frozenset[ChunkId]) -> set[ChunkId]:
    """Return those of these chunks that the store can rebuild, by whatever frames."""
    found = set()
    with casweights.open(copy_of(store), workers=1) as repo:
        db = repo.database
        db.index.load()
        for chunk in chunks:
            for at in db.index.frames(chunk)[:1]:
                try:
                    db.reader.readinto(chunk, memoryview(bytearray(at.frame.raw_size)))
                except IntegrityError:
                    continue
                found.add(chunk)
    return found


def outcome(report: RepairReport) -> tuple[object, ...]:
    """What a dry run and the repair must agree on."""
    rows = report.damaged, report.missing, report.rebuilt, report.restored
    return *rows, report.mended, report.lost, report.replaced


# Shrinking a failure takes minutes.
@settings(max_examples=examples(15), phases=[Phase.generate], report_multiple_bugs=False)
@given(
    form=st.sampled_from(list(FORMS)),
    harm=st.lists(harms, min_size=1, max_size=5),
    copies=st.lists(st.lists(harms, max_size=3), max_size=2),
    folders=st.sets(st.integers(0, VERSIONS - 1), max_size=2),
)
def test_whatever_a_source_has_is_back_and_the_rest_is_named(
    form: str,
    harm: list[Harm],
    copies: list[list[Harm]],
    folders: set[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    states = made(form).states
    store = copy_of(made(form).store)
    for one in harm:
        damage(store, one)
    stores = [copy_of(made(form).store) for _ in copies]
    for other, damages in zip(stores, copies, strict=True):
        for one in damages:
            damage(other, one)
    plain = {number: tmp_path_factory.mktemp("model") for number in folders}
    for number, folder in plain.items():
        save(folder, list(states.values())[number])
    check_repair(form, store, stores, plain)


def check_repair(
    form: str, store: MemoryStore, stores: list[MemoryStore], folders: dict[int, Path]
) -> None:
    states, needed, lists = made(form).states, needs(form), structures(form)
    every = frozenset().union(*needed.values())
    sources: list[MemoryStore | Path] = [*stores, *folders.values()]
    had = chunks_in(store, every)
    expected = had.union(*(chunks_in(other, every) for other in stores))
    expected |= frozenset().union(*(list(needed.values())[number] for number in folders))
    intact = {v for v in states for at in (store, *stores) if has_manifest(at, v)}

    before = [content(place) for place in (store, *stores)]
    with casweights.open(store, workers=1) as repo:
        told = repo.repair(sources)
    assert [content(place) for place in (store, *stores)] == before, "a dry run wrote something"
    assert not told.applied

    with casweights.open(store, workers=1) as repo:
        report = repo.repair(sources, apply=True)
        for version in states.keys() - {lost.snapshot for lost in report.lost}:
            assert loads(repo, version, states[version])  # the handle that repaired it
    assert outcome(report) == outcome(told)
    assert [content(place) for place in stores] == before[1:]

    got = chunks_in(store, every)
    assert got >= had
    for version in intact:
        known = needed[version] if got >= lists[version] else lists[version]
        assert got >= known & expected
    back = readable(store, states)
    assert back >= {v for v in intact if needed[v] <= expected}
    lost = {lost.snapshot for lost in report.lost}
    assert back == states.keys() - lost, "what is reported as lost is what cannot be read"
    with casweights.open(store, workers=1) as repo:
        assert repo.database.losses.names().keys() == lost
        for version in lost & intact:
            [loss] = repo.database.losses.load(version)
            assert set(loss.chunks) <= needed[version] - got
        found = repo.verify()
        assert found.lost == len(lost)
        assert bool(found.problems) == bool(lost), found.problems
        again = repo.repair(sources, apply=True)
        assert (again.rebuilt, again.restored, again.mended) == ({}, (), ())
        assert again.lost == report.lost


def has_manifest(store: MemoryStore, version: SnapshotId) -> bool:
    with casweights.open(copy_of(store), workers=1) as repo:
        try:
            return bool(repo.snapshot(version))
        except (IntegrityError, casweights.errors.NotFoundError):
            return False
