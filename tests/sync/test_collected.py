"""Publishers and subscribers that stay open while their store expires, is maintained and collected.

Weeks pass between their calls, and within them.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from typing import TYPE_CHECKING

import pytest
import torch

from casweights import Publisher, Subscriber
from casweights.config import Keep
from casweights.database import reflog
from casweights.errors import ErrorCode, NotFoundError
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.copying_bucket import Bucket
from tests.driven import KINDS, Driven
from tests.histories import check_versions
from tests.large_versions import packs_apart
from tests.operations.collecting import LONG, open_repo
from tests.operations.turns import Watched
from tests.sync.states import copied, nudge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import SnapshotId
    from casweights.stores.base import ObjectStore
    from tests.sync.states import State

SIZES = {"w": 40_000, "v": 500}  # elements: two chunks
EARLY = 7  # versions, after which a replica begins
EVERY = 100


def weights(seed: int = 5) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator).bfloat16() for name, size in SIZES.items()}


class Run:
    """What a publisher has written.

    Attributes:
        versions: The versions.
        first: The state of the first version.
        last: That of the last.
        early: The store after `EARLY` versions.
        late: The store at the end.
    """

    def __init__(self, late: MemoryStore, steps: int) -> None:
        self.versions: list[SnapshotId] = []
        self.early, self.late = type(late)(), late
        state = weights()
        with open_repo(late, create=True) as repo, Publisher(repo, maintain=False) as publisher:
            for number in range(1, steps + 1):
                nudge(state["w"], 20, number)
                publisher.publish(state)
                version = publisher.wait()
                assert version is not None
                self.versions.append(version.id)
                if number == 1:
                    self.first = copied(state)
                if number == EARLY:
                    fill(self.early, late)
        self.last = state


@cache
def run_of(kind: str, steps: int) -> Run:
    """Return a run, which is made once: tests copy its objects."""
    return Run(Bucket() if kind in ("bucket", "hub") else MemoryStore(), steps)


def fill(objects: ObjectStore, source: MemoryStore) -> None:
    """Give a store the objects of another one, and no others."""
    objects.create()
    wanted, there = ({info.name for info in store.list()} for store in (source, objects))
    objects.copy_from(source, sorted(wanted - there))
    objects.delete_all(sorted(there - wanted))


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def driven(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driven]:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 2)  # so that old moves do not keep versions
    driven = Driven(kind, tmp_path)
    with driven.at_work():
        yield driven


every_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


def tidy(driven: Driven, keep: Keep) -> None:
    """Let everything go that a policy lets go, in the grace times that this takes."""
    with open_repo(driven.objects) as repo:
        repo.expire(keep, apply=True)
        for _ in repo.database.refs.trim():  # in a bucket, old versions are moves until then
            pass
        for _ in range(2):
            driven.wait(LONG)
            repo.gc(apply=True)
            repo.maintain()  # later, as an archive would keep what is in it together


@pytest.mark.parametrize("kind", ["directory", "hub"], indirect=True)
def test_a_replica_a_thousand_versions_behind_reaches_the_head(kind: str, driven: Driven) -> None:
    run = run_of(kind, 1000)
    fill(driven.objects, run.early)
    live = copied(run.first)
    with open_repo(driven.objects) as repo, Subscriber(repo) as subscriber:
        assert subscriber.sync(live).snapshot == run.versions[EARLY - 1]
        fill(driven.objects, run.late)
        tidy(driven, Keep(every=EVERY))
        assert len(list(driven.objects.list())) < len(list(run.late.list())) / 2
        with pytest.raises(NotFoundError, match="expired") as caught:
            subscriber.sync(to=run.versions[EARLY])
        assert "sync again" in caught.value.__notes__[0]
        assert subscriber.version == run.versions[EARLY - 1]
        assert subscriber.sync().snapshot == run.versions[-1]
        assert_same_state(live, run.last)
        subscriber.verify()


@pytest.mark.parametrize("kind", ["memory", "bucket"], indirect=True)
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_sync_reaches_the_head_whatever_goes_while_it_runs(
    kind: str, driven: Driven, moves: bool, memory: int
) -> None:
    """Every version but the newest goes at each call of the store that a sync makes.

    If its memory for changes is too small, it may have begun to write by then. Then the error says
    what to do.
    """
    run = run_of(kind, 30)
    for call in count(1):
        driven.objects = type(run.early)()
        if not sync_while_versions_go(driven, run, call, moves=moves, memory=memory):
            break
    assert call > 10


def sync_while_versions_go(
    driven: Driven, run: Run, call: int, *, moves: bool, memory: int
) -> bool:
    """Sync, and let versions go at a call; return whether it made that call."""
    objects, gone = driven.objects, False
    last = weights(6) if moves else run.last
    fill(objects, run.early)

    def let_go() -> None:
        nonlocal gone
        gone = True
        if moves:
            with open_repo(objects) as other:
                other.commit(last)
        tidy(driven, Keep(last=1))

    with (
        open_repo(watched := Watched(objects)) as repo,
        Subscriber(repo, memory=memory) as subscriber,
    ):
        live = copied(run.first)
        subscriber.sync(live)
        fill(objects, run.late)
        begun = watched.calls
        watched.before = lambda now: let_go() if now == begun + call else None
        try:
            subscriber.sync()
        except NotFoundError as error:
            failure: NotFoundError | None = error
        else:
            failure = None
        if failure is not None:
            assert memory == 0
            assert failure.code is ErrorCode.EXPIRED
            assert "sync again" in failure.__notes__[-1]
        if not gone:
            return False
        if moves:  # it may have reached the head of the moment at which it began
            subscriber.sync()
        subscriber.verify()
    assert_same_state(live, last)
    return True


@every_kind
def test_a_publisher_that_stays_open_relies_on_nothing_that_went(kind: str, driven: Driven) -> None:
    """It publishes states again whose versions expired and were removed since."""
    states = [weights(seed) for seed in range(3)]
    with (
        packs_apart(),
        open_repo(driven.objects, create=True) as own,
        Publisher(own, maintain=False) as publisher,
    ):
        for state in (*states, *states, states[1]):
            publisher.publish(state)
            version = publisher.wait()
            assert version is not None
            tidy(driven, Keep(last=1))
            check_versions(driven.objects, {version.id: state})
    with open_repo(driven.objects) as repo:
        assert [version.number for version in repo.log()] == [7]


@every_kind
def test_a_commit_that_takes_days_looks_again_at_what_it_found(kind: str, driven: Driven) -> None:
    """Between its first pack and its version, another client removes chunks that it reuses."""
    objects = driven.objects
    old, new = (weights(seed)["w"] for seed in (1, 2))
    with open_repo(objects, create=True) as repo, packs_apart():
        repo.commit({"w": weights(9)["w"]})
        repo.commit({"old": old}, branch="lost")
        repo.delete_branch("lost")
        driven.wait(LONG)

        def remove(write: int) -> None:
            if write == 1:
                tidy(driven, Keep(last=1))

        state = {"old": old, "w": new}
        with open_repo(Watched(objects, after=remove)) as slow:
            version = slow.commit(state).id
    check_versions(objects, {version: state})
