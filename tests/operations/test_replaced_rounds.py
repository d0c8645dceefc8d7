"""What the rounds of a publisher replace goes as fast as it comes, whatever a round may read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights.config import MiB
from casweights.database import reflog
from casweights.database.packs import list_packs
from casweights.format import names
from casweights.format.collection import REPLACED
from casweights.operations import maintain, merging
from casweights.operations.collections import list_parts
from casweights.stores.memory import MemoryStore
from tests.ages import DAY, age
from tests.histories import check_versions, history
from tests.large_versions import packs_apart
from tests.operations.collecting import commit_all, open_repo

if TYPE_CHECKING:
    from casweights import Repository


@pytest.fixture(autouse=True)
def _merges_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FAN_IN", 2)
    monkeypatch.setattr(maintain, "_RECENT_PACKS", 0)
    monkeypatch.setattr(reflog, "RECENT_MOVES", 2)


@pytest.mark.parametrize("budget", [2 * MiB, 64 * MiB])
def test_rounds_of_a_publisher_leave_no_pile(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """Not even after a pause in which nobody deleted anything, nor where little may be read."""
    most = 12  # as many as two rounds make here
    monkeypatch.setattr(maintain, "_MOST_FINISHED", most)
    objects, counts = MemoryStore(), []

    def upkeep(repo: Repository) -> None:
        before = list_parts(objects, REPLACED).keys()
        merged = repo.database.learn_merged
        work = maintain.Maintenance(repo.database, merged=merged, budget=budget)
        for _ in work.slices():
            pass
        assert len(before - list_parts(objects, REPLACED).keys()) <= most
        counts.append(len(list(objects.list(names.ASIDE))))

    with open_repo(objects, create=True) as repo:
        for seed in range(16):
            if seed >= 6:
                age(objects, DAY)
            commit_all(repo, "main", 4, seed=seed)
            upkeep(repo)
    assert max(counts[-6:]) < counts[5] / 2
    assert len(list(list_packs(objects))) < 8


def test_merging_leaves_something_for_the_check_of_what_was_merged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the store would grow while a long history is merged bit by bit."""
    objects = MemoryStore()
    with open_repo(objects, create=True) as repo:
        with packs_apart():
            made = commit_all(repo, "main", 4)
        made |= commit_all(repo, "main", 3, seed=7)
        repo.maintain()
    due = list_parts(objects, REPLACED).keys()
    assert len(due) > 1
    age(objects, 2 * DAY)
    budget = 2 * sum(info.size for info in objects.list(names.PACKS)) * len(due)
    with open_repo(objects) as repo, packs_apart():
        while sum(info.size for info in objects.list(names.PACKS)) < 2 * budget:
            made |= {repo.commit(s, branch="new").id: s for s in history(1, 0, seed=len(made))}
        work = maintain.Maintenance(repo.database, merged=repo.database.learn_merged, budget=budget)
        for _ in work.slices():
            pass
    assert work.stats.copied_bytes
    assert due.isdisjoint(list_parts(objects, REPLACED).keys())
    check_versions(objects, made)
