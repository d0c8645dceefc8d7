"""A move whose machine sleeps after it has seen what it relies on sees it again."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Self
from unittest.mock import patch

import pytest
import torch

from casweights.config import RELIANCE_SECONDS
from casweights.content.states import StateFile
from casweights.errors import IntegrityError, NotFoundError
from casweights.format import names
from casweights.operations.commit import Description, commit_encoded
from casweights.operations.encode import encode_files
from casweights.operations.encoded_files import EncodedFiles, join
from casweights.stores.memory import MemoryStore
from casweights.system import clocks
from casweights.system.clocks import Moment
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import check_versions, weights
from tests.large_versions import packs_apart
from tests.lengths import spread
from tests.operations.collecting import LONG, abandon, commit_all, finish, open_repo
from tests.operations.turns import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore
    from casweights.system.buffers import Buffer
    from tests.operations.collecting import Versions

HOUR = 3600.0
SAID = Description(
    parents=(), time=datetime(2026, 1, 1, tzinfo=UTC), author="a", message="m", metadata={}
)


class Clock:
    """The clock of a machine, which goes on while it sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept = 0.0
        uptime = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: uptime() + self.slept)

    def sleep(self, objects: ObjectStore) -> None:
        """Sleep, while everything that nothing names is set aside, and deleted."""
        for _ in range(2):
            self.slept += LONG.total_seconds()
            age(objects, LONG)
            with open_repo(objects) as other:
                other.gc(apply=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Drowsy(Watched):
    """A store whose user sleeps after one call, unless a branch or tag has moved by then."""

    def __init__(self, inner: ObjectStore, call: int, clock: Clock) -> None:
        super().__init__(inner)
        self._sleeping, self._clock = call, clock
        self.calls_before = 0  # the move
        self._has_moved = False

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith(names.REFS) and not self._has_moved:
            self._has_moved, self.calls_before = True, self.calls
        return super().put(name, parts)

    @contextmanager
    def _call(self, *, writes: bool = False) -> Iterator[None]:
        with super()._call(writes=writes):
            yield
        if self.calls == self._sleeping and not self._has_moved:
            self._clock.sleep(self.inner)


def drowsy_commit(kind: type[MemoryStore], branch: str, call: int, clock: Clock) -> int:
    """Commit what relies on a version that nothing names, and on packs of its own.

    Returns:
        The number of calls before the branch moved.
    """
    objects = kind()
    with open_repo(objects, create=True) as repo:
        kept = commit_all(repo, "main", 1)
        lost = abandon(repo, objects, count=1)
    state = {"w": next(iter(lost.values()))["w"], "v": weights(1, seed=99)}
    drowsy = Drowsy(objects, call, clock)
    with packs_apart(), open_repo(drowsy) as writer:
        kept[writer.commit(state, branch=branch).id] = state
    with open_repo(objects) as repo:
        finish(repo, objects)
    check_versions(objects, kept)
    return drowsy.calls_before


@pytest.mark.parametrize("kind", [MemoryStore, Bucket])
@pytest.mark.parametrize("branch", ["main", "new"])
def test_a_commit_may_sleep_after_any_call_before_its_move(
    clock: Clock, kind: type[MemoryStore], branch: str
) -> None:
    calls = drowsy_commit(kind, branch, 0, clock)
    early, late = range(1, calls - 3), range(calls - 3, calls + 1)
    for call in [*spread(early, 3, (kind, branch)), *late]:
        drowsy_commit(kind, branch, call, clock)


@dataclass(frozen=True)
class Scene:
    """A store, and versions that nothing names there.

    Attributes:
        objects: The store.
        lost: Versions that lie there unnamed.
        deleted: The version of a branch ``deleted`` that was deleted.
        side: Another store, with a branch ``pushed`` and a tag ``tagged`` after these versions.
        pushed: The versions of that branch.
    """

    objects: ObjectStore
    lost: Versions
    deleted: SnapshotId
    side: ObjectStore
    pushed: Versions

    @classmethod
    def make(cls, kind: type[MemoryStore]) -> Self:
        """Make both stores."""
        objects, side = kind(), MemoryStore()
        with open_repo(objects, create=True) as repo, open_repo(side, create=True) as there:
            commit_all(repo, "main", 1)
            lost = abandon(repo, objects)
            pushed = commit_all(there, "pushed", 2, seed=7)
            repo.pull(there, ["pushed"])
            repo.delete_branch("pushed")
            pushed |= commit_all(there, "pushed", 2, seed=8)
            there.tag("tagged", "pushed")
            deleted = repo.branch("deleted", [*pushed][1])
            repo.delete_branch("deleted")
            repo.maintain()
        return cls(objects, lost, deleted, side, pushed)


# Each names one version, of those that the scene has.
MOVES: dict[str, Callable[[Repository, Scene], object]] = {
    "branch": lambda repo, scene: repo.branch("new", [*scene.lost][-1]),
    "moved branch": lambda repo, scene: repo.branch("main", [*scene.lost][-1], force=True),
    "tag": lambda repo, scene: repo.tag("new", [*scene.lost][-1]),
    "undelete": lambda repo, scene: repo.undelete("deleted"),
    "undelete a version": lambda repo, scene: repo.undelete([*scene.lost][-1], "new"),
    "undelete as a tag": lambda repo, scene: repo.undelete([*scene.lost][-1], "tags/new"),
    "push": lambda repo, scene: push_to(repo, scene, "pushed"),
    "push a tag": lambda repo, scene: push_to(repo, scene, "tagged"),
    "pull": lambda repo, scene: pull_from(repo, scene),
}


def push_to(repo: Repository, scene: Scene, ref: str) -> None:
    with open_repo(scene.side) as there:
        there.push(repo, [ref])


def pull_from(repo: Repository, scene: Scene) -> None:
    with open_repo(scene.side) as there:
        repo.pull(there)


def drowsy_move(kind: type[MemoryStore], move: str, call: int, clock: Clock) -> tuple[int, bool]:
    """Move a branch or tag; nothing may name what is gone, whether that succeeds or not.

    Returns:
        The number of calls before the move, and whether it succeeded.
    """
    scene = Scene.make(kind)
    drowsy, done = Drowsy(scene.objects, call, clock), False
    with open_repo(drowsy) as repo, suppress(NotFoundError):
        MOVES[move](repo, scene)
        done = True
    with open_repo(scene.objects) as repo:
        finish(repo, scene.objects)
        named = {*repo.branches().values(), *repo.tags().values()}
        assert repo.verify().problems == ()
    known = scene.lost | scene.pushed
    assert done == bool(named & known.keys())
    check_versions(scene.objects, {v: state for v, state in known.items() if v in named})
    return drowsy.calls_before, done


@pytest.mark.parametrize("kind", [MemoryStore, Bucket])
@pytest.mark.parametrize("move", MOVES)
def test_any_move_may_sleep_after_any_call_before_it(
    clock: Clock, kind: type[MemoryStore], move: str
) -> None:
    calls, done = drowsy_move(kind, move, 0, clock)
    assert done
    early, late = range(1, calls - 2), range(max(1, calls - 2), calls + 1)
    chosen = [*spread(early, 3, (kind, move)), *late]
    succeeded = [drowsy_move(kind, move, call, clock)[1] for call in chosen]
    if "pu" in move:  # the other store has all that is gone
        assert all(succeeded)


def encode(repo: Repository, path: str, tensor: torch.Tensor) -> EncodedFiles:
    """Encode a tensor, as one of several processes."""
    file = StateFile({f"tensor of {path}": tensor})
    file.path = path
    return encode_files(repo.database, [file], parent=None, compression="auto").durable(
        repo.database
    )


@pytest.mark.parametrize("lost", [False, True])
def test_what_other_processes_encoded_long_ago_is_seen_again(clock: Clock, lost: bool) -> None:
    objects = Bucket()
    tensors = {name: torch.randn(50, 300) for name in ("a", "b")}
    with open_repo(objects, create=True) as repo:
        commit_all(repo, "main", 1)
        parts = [encode(repo, path, tensor) for path, tensor in tensors.items()]
    if lost:
        clock.sleep(objects)
    now = time.time() + clock.slept + 7 * HOUR  # these processes have other uptimes
    with open_repo(objects) as repo, patch.object(time, "time", lambda: now):
        commit = partial(commit_encoded, repo.database, join(parts), SAID, "new", None)
        if lost:
            with pytest.raises(IntegrityError, match="nothing was committed"):
                commit()
            assert repo.branches().keys() == {"main"}
        else:
            found = commit()
            assert len(found.files) == 2
            assert repo.verify().problems == ()


def test_a_parent_that_is_gone_is_noticed(clock: Clock) -> None:
    """The parent of a new branch, which nothing else names."""
    objects = Bucket()
    with open_repo(objects, create=True) as repo:
        lost = abandon(repo, objects, count=1)
        commit = partial(repo.commit, {"w": weights(1, 5)}, branch="new", parent=next(iter(lost)))
        encode_again, asleep = Moment.age, [1]

        def age_of(moment: Moment) -> float:
            if asleep.pop() if asleep else 0:
                clock.sleep(objects)
            return encode_again(moment)

        with patch.object(Moment, "age", age_of), pytest.raises(NotFoundError):
            commit()
        assert repo.branches() == {}


def test_a_commit_that_takes_no_hours_looks_up_nothing_again() -> None:
    counts = []
    for seconds in (0.0, RELIANCE_SECONDS + 1):
        objects = Watched(Bucket())
        with open_repo(objects, create=True) as repo:
            commit_all(repo, "main", 2)
            objects.calls = 0
            ages = chain([seconds], repeat(0.0))
            with patch.object(Moment, "age", lambda _, ages=ages: next(ages)):
                repo.commit({"w": weights(2, 3)}, branch="main")
        counts.append(objects.calls)
    assert counts[0] < counts[1]


@pytest.mark.parametrize("stopped", ["time", "uptime"])
def test_either_clock_is_enough(monkeypatch: pytest.MonkeyPatch, stopped: str) -> None:
    """A virtual machine that is stopped has no uptime; a time that is set back says too little."""
    moment = Moment.now()
    assert moment.age() < HOUR
    wall, up = time.time(), clocks.uptime()
    monkeypatch.setattr(time, "time", lambda: wall + (-HOUR if stopped == "time" else 7 * HOUR))
    monkeypatch.setattr(clocks, "uptime", lambda: up + (7 * HOUR if stopped == "time" else 0))
    assert moment.age() == pytest.approx(7 * HOUR, abs=60)


def test_the_uptime_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_gettime", lambda _: 9e9)
    assert clocks.uptime() == 9e9
    monkeypatch.setattr(clocks, "_UPTIME", None)  # Windows, whose only clock counts it
    assert clocks.uptime() < 9e9
