"""Verify of a part of a store: since a version, and of a sample."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.errors import InvalidInputError, NotFoundError
from casweights.format import names
from tests.histories import step, weights
from tests.operations.damage import copy_of, flip, make

if TYPE_CHECKING:
    from casweights import Repository
    from casweights.ids import SnapshotId

_START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def versions(repo: Repository) -> list[SnapshotId]:
    """Three versions, a day apart; the last is a difference from the second."""
    states = [{"w": weights(2)}, {"w": weights(2, seed=1)}]
    states.append({"w": step(states[1]["w"], 0.01, seed=2)})
    times = [_START + timedelta(days=day) for day in range(3)]
    return [repo.commit(s, time=t).id for s, t in zip(states, times, strict=True)]


@pytest.mark.parametrize("quick", [True, False])
def test_since_a_version_checks_what_newer_ones_need(
    repo: Repository, versions: list[SnapshotId], quick: bool
) -> None:
    first, second, third = versions
    store = repo.database.store
    for since, bad, found in (
        (str(first), first, False),
        (str(second), first, False),
        (str(second), second, True),  # the third one is a difference from it
        (str(first), third, True),
        ("main~1", third, True),
        (_START + timedelta(hours=30), third, True),
        (_START + timedelta(hours=30), first, False),
        (str(third), third, False),
        (_START - timedelta(hours=1), first, True),
    ):
        harmed = copy_of(store)
        flip(harmed, names.snapshot_name(bad), 100)
        with casweights.open(harmed) as other:
            report = other.verify(since=since, quick=quick)
            assert bool(report.problems) == found, (since, bad)
            assert other.verify(quick=quick).problems


def test_since_counts_the_versions_and_frames_that_were_checked(
    repo: Repository, versions: list[SnapshotId]
) -> None:
    every = repo.verify()
    assert (every.snapshots, every.checked) == (3, every.frames)
    part = repo.verify(since=str(versions[0]))
    assert part.snapshots == 2
    assert 0 < part.checked < every.checked
    assert 0 < part.nbytes < every.nbytes
    none = repo.verify(since=str(versions[2]))
    assert (none.snapshots, none.checked, none.frames) == (0, 0, every.frames)


@pytest.mark.parametrize("quick", [True, False])
def test_a_sample_checks_a_share_and_what_it_builds_on(quick: bool) -> None:
    store = copy_of(make(4).store)
    with casweights.open(store) as repo:
        every = repo.verify(quick=quick)
        counts = {repo.verify(sample=0.2, quick=quick).checked for _ in range(20)}
        assert len(counts) > 1, "each call draws other chunks"
        assert max(counts) < every.frames
        assert repo.verify(sample=1e-9, quick=quick).checked, "one chunk at least"
        assert all(not repo.verify(sample=0.3, quick=quick).problems for _ in range(5))
    for info in list(store.list(names.SNAPSHOTS)):
        flip(store, info.name, 12)
    with casweights.open(store) as repo:
        assert any(repo.verify(sample=0.5, quick=quick).problems for _ in range(20))


def test_a_part_withdraws_no_finding() -> None:
    store = copy_of(make(2).store)
    name = next(iter(store.list(names.SNAPSHOTS))).name
    sound = store.get(name)
    flip(store, name, 100)
    with casweights.open(store) as repo:
        assert repo.verify().damaged == 1
    store.delete(name)
    store.put(name, [sound])
    with casweights.open(store) as repo:
        for report in (repo.verify(sample=0.999), repo.verify(quick=True)):
            assert not report.damaged
            assert list(store.list(names.DAMAGED))
        repo.verify()
    assert not list(store.list(names.DAMAGED))


def test_damage_that_a_part_finds_is_noted() -> None:
    store = copy_of(make(1).store)
    flip(store, next(iter(store.list(names.SNAPSHOTS))).name, 100)
    with casweights.open(store) as repo:
        report = repo.verify(since=_START - timedelta(days=9999))
        assert (report.damaged, report.noted) == (1, "memory://")
    assert list(store.list(names.DAMAGED))


def test_arguments_are_checked(repo: Repository) -> None:
    for sample in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InvalidInputError, match="sample"):
            repo.verify(sample=sample)
    with pytest.raises(InvalidInputError, match="time zone"):
        repo.verify(since=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(NotFoundError):
        repo.verify(since="nothing")
