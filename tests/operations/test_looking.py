"""Packs that no snapshot names to a commit: of other versions, or of a commit that was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.database import index, writer
from casweights.errors import ErrorCode, StoreError
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests.findings import Remote
from tests.histories import CHUNK, step, weights

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=CHUNK)


@pytest.fixture(params=[False, True], ids=["directory", "bucket"])
def objects(request: pytest.FixtureRequest) -> CountingStore:
    inner: ObjectStore = MemoryStore()
    return CountingStore(Remote(inner) if request.param else inner)


def packs(objects: CountingStore) -> list[str]:
    """The packs that were written since `objects.reset()`."""
    return [name for name, _ in objects.writes if name.startswith("packs/")]


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_killed_commit_is_repeated_without_writing_its_packs_again(
    objects: CountingStore, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """Cheap chunks come first, and are encoded before the look that finds them in the store."""
    monkeypatch.setattr(writer, "PACK_TARGET", CHUNK + 8 * KiB)
    before = {f"{n}": weights(1, seed=n) for n in range(5)}
    after: State = {
        n: step(w, 0.01, 9) if n < "2" else weights(1, seed=40 + int(n)) for n, w in before.items()
    }
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        repo.commit(before)

        def killed(*args: object, **options: object) -> None:
            raise StoreError(ErrorCode.UNREACHABLE, "killed")

        monkeypatch.setattr(repo.database.snapshots, "save", killed)
        objects.reset()
        with pytest.raises(StoreError):
            repo.commit(after)
    written = packs(objects)
    assert len(written) > 2
    missing = written[lost:][:1]
    for name in missing:
        objects.delete(name)
    objects.reset()
    with casweights.open(objects) as repo:
        repo.commit(after)
        again = repo.load("main")
    assert packs(objects) == missing
    assert all(again[name].equal(tensor) for name, tensor in after.items())


def test_small_costly_chunks_of_a_branch_are_not_worth_a_listing(objects: CountingStore) -> None:
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        repo.commit({"w": weights(1), "norm": torch.randn(99)})
        listed = repo.database.index._listed
        repo.commit({"w": weights(1), "norm": torch.randn(99)})
        assert repo.database.index._listed == listed


def test_an_older_state_of_a_branch_is_found(objects: CountingStore) -> None:
    states = [{"w": weights(2, seed=n)} for n in range(3)]
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        for state in states:
            repo.commit(state)
    objects.reset()
    with casweights.open(objects) as repo:
        repo.commit(states[0])
    assert packs(objects) == []


def test_what_a_version_in_the_making_relies_on_is_not_forgotten(
    objects: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_SPARE_FRAMES", 0)
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        known = repo.database.index
        first = repo.commit({"w": weights(1)})
        hold = known.hold()
        second = repo.commit({"w": weights(1, seed=1)})
        for seed in range(2, 20):
            repo.commit({"w": weights(1, seed=seed)})
        assert all(known.frames(chunk) for chunk in second.chunks())
        assert not any(known.frames(chunk) for chunk in first.chunks())
        del hold
        for seed in range(20, 40):
            repo.commit({"w": weights(1, seed=seed)})
        assert not any(known.frames(chunk) for chunk in second.chunks())
        assert repo.load(second)["w"].equal(weights(1, seed=1))
