"""Folding on several threads: the same packs, whatever the order in which families are done."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.events import Reporter, Stage
from casweights.format import names
from casweights.operations import shortening
from casweights.operations.shortening import Shortening
from casweights.stores.local import LocalStore
from tests.histories import CHUNK, check_versions
from tests.operations.collecting import expired_run

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.operations.shortening import Family
    from tests.operations.collecting import Versions

LEAST = 120_000  # bytes that the new frames of two families need
WAIT = 1  # seconds after which a thread waits for another one in vain


class Progress(Reporter):
    """Adds up what is reported of each stage."""

    def __init__(self) -> None:
        self.open: list[Stage] = []
        self.totals: dict[Stage, int] = {}
        self.done: dict[Stage, int] = {}

    def started(self, stage: Stage, total: int) -> None:
        self.open.append(stage)
        self.totals[stage] = self.totals.get(stage, 0) + total

    def advanced(self, stage: Stage, nbytes: int) -> None:
        assert stage in self.open
        self.done[stage] = self.done.get(stage, 0) + nbytes

    def finished(self, stage: Stage) -> None:
        self.open.remove(stage)


@pytest.fixture
def kept(tmp_path: Path) -> Versions:
    """Make a store of which most has expired, twice; return what stays."""
    kept = expired_run(LocalStore(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    return kept


def fold(folder: Path, workers: int) -> tuple[dict[str, bytes], Progress]:
    """Collect once; return the packs that this has written, and its progress."""
    objects, progress = LocalStore(folder), Progress()
    before = {info.name for info in objects.list(names.PACKS)}
    with casweights.open(objects, workers=workers, reporter=progress) as repo:
        done = repo.gc(apply=True)
    assert done.folded is not None
    assert done.folded.chunks > 1
    new = {info.name for info in objects.list(names.PACKS)} - before
    return {name: objects.get(name) for name in new}, progress


@pytest.mark.parametrize("limit", [shortening._MAX_NEW, LEAST])
def test_packs_are_the_same_with_any_number_of_workers(
    tmp_path: Path, kept: Versions, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(shortening, "_MAX_NEW", limit)
    alone, _ = fold(tmp_path / "one", workers=1)
    encode, numbers, other = Shortening._encode, iter(range(1000)), threading.Event()

    def overtaken(self: Shortening, cache: Any, family: Family) -> Any:
        """Let the second family be done before the first one."""
        is_first = next(numbers) == 0
        assert not is_first or other.wait(WAIT), "families are encoded one after the other"
        found = encode(self, cache, family)
        other.set()
        return found

    monkeypatch.setattr(Shortening, "_encode", overtaken)
    together, _ = fold(tmp_path / "many", workers=3)
    assert next(numbers) > 2
    assert together == alone
    check_versions(LocalStore(tmp_path / "many"), kept)


def test_progress_adds_up_to_the_total(tmp_path: Path, kept: Versions) -> None:
    _, progress = fold(tmp_path / "one", workers=2)
    assert not progress.open
    assert progress.done == progress.totals
    assert progress.totals[Stage.FOLD] > 6 * CHUNK


def test_new_frames_that_wait_for_their_family_fit_into_memory(
    tmp_path: Path, kept: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many workers there are."""
    monkeypatch.setattr(shortening, "_MAX_NEW", LEAST)
    sizes = []
    batches = shortening._batches

    def noted(families: Any) -> Any:
        for batch in batches(families):
            sizes.append([family.most for family in batch])
            yield batch

    monkeypatch.setattr(shortening, "_batches", noted)
    fold(tmp_path / "one", workers=4)
    assert len(sizes) > 1
    assert all(sum(batch) <= LEAST for batch in sizes)
