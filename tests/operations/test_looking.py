"""Packs that no snapshot names to a commit: of other versions, or of a commit that was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest
import torch

import casweights
from casweights import Publisher
from casweights.config import KiB, StoreConfig
from casweights.database import index, writer
from casweights.database.packs import read_pack_index
from casweights.errors import ErrorCode, StoreError
from casweights.operations import looking
from casweights.stores.base import ObjectInfo
from casweights.stores.memory import MemoryStore
from casweights.sync.publisher import Compare
from casweights.testing import CountingStore
from tests.findings import Remote
from tests.histories import CHUNK, history, step, weights

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore
    from tests.histories import State

pytestmark = pytest.mark.usefixtures("packs_apart")

CONFIG = StoreConfig(chunk_size=CHUNK)


@pytest.fixture(params=[False, True], ids=["directory", "bucket"])
def objects(request: pytest.FixtureRequest) -> CountingStore:
    inner: ObjectStore = MemoryStore()
    return CountingStore(Remote(inner) if request.param else inner)


def packs(objects: CountingStore) -> list[str]:
    """The packs that were written since `objects.reset()`."""
    return [name for name, _ in objects.writes if name.startswith("packs/")]


def killed(*args: object, **options: object) -> None:
    raise StoreError(ErrorCode.UNREACHABLE, "killed")


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


def test_a_killed_commit_saves_one_of_other_files_from_writing_its_cheap_chunks_again(
    objects: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks are cheap, and the packs of the second commit are not those of the first."""
    for module in (writer, looking):
        monkeypatch.setattr(module, "PACK_TARGET", KiB)
    before = {f"{n}": weights(1, seed=n) for n in range(9)}
    after = {n: step(w, 0.01, 9) for n, w in before.items()}
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        repo.commit(before)
        monkeypatch.setattr(repo.database.snapshots, "save", killed)
        with pytest.raises(StoreError):
            repo.commit(after)
    objects.reset()
    with casweights.open(objects) as repo:
        repo.commit(after | {"0": step(before["0"], 0.02, 10)})
    frames = [
        read_pack_index(objects, ObjectInfo(name, objects.size(name))) for name in packs(objects)
    ]
    assert sum(map(len, frames)) == 2, "the list of chunks, and the changed one"


def test_a_step_has_the_same_packs_whichever_process_publishes_it(
    objects: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what a killed trainer has sent is not sent again, whatever its handle knew."""
    monkeypatch.setattr(index, "_SPARE_FRAMES", 16)
    states = [
        {**state, "norm": torch.full([300], float(n))} for n, state in enumerate(history(80, 0.03))
    ]
    casweights.open(objects, create=True, config=CONFIG).close()
    with casweights.open(objects) as repo, Publisher(repo, maintain=False) as publisher:
        for state in states:
            publisher.publish(state)
            publisher.wait()
    objects.reset()
    for n, state in enumerate(states):
        with casweights.open(objects) as repo:
            compare = get_args(Compare)[n % len(get_args(Compare))]
            with Publisher(repo, "again", compare=compare) as publisher:
                publisher.publish(state)
    assert packs(objects) == []
