"""A machine that makes random sequences of everything that writes and collects, with faults.

The model knows the content and the parents of every version that was acknowledged, what names it,
and when it was last reachable.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import casweights
from casweights import Keep, Publisher
from casweights.database import reflog
from casweights.errors import (
    CasweightsError,
    ConflictError,
    ErrorCode,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from casweights.operations import collections, maintain, merging
from casweights.testing.states import assert_same_state
from tests.ages import DAY, GRACE, age
from tests.histories import State, step, weights
from tests.large_versions import packs_apart
from tests.operations.collect_side import FAULTS, Side
from tests.operations.collecting import open_repo, undelete_all
from tests.operations.turns import Watched

if TYPE_CHECKING:
    from casweights import SnapshotId
    from casweights.results import CollectStats
    from casweights.stores.base import ObjectStore

branches = st.sampled_from(["main", "a", "b"])
handles = st.integers(0, 1)
sides = st.sampled_from(["here", "there"])
waits = st.sampled_from([GRACE + DAY, GRACE + DAY, DAY, timedelta(hours=7)])


class CollectMachine(RuleBasedStateMachine):
    """Two stores that push to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        for target, name, value in (
            (merging, "FAN_IN", 2),
            (maintain, "_RECENT_PACKS", 0),
            (reflog, "RECENT_MOVES", 2),
        ):
            self.patches.enter_context(patch.object(target, name, value))
        self.folder = Path(self.patches.enter_context(tempfile.TemporaryDirectory()))
        self.clock = datetime(2026, 1, 1, tzinfo=UTC)
        self.passed = timedelta()
        self.states: dict[SnapshotId, State] = {}
        self.parents: dict[SnapshotId, SnapshotId | None] = {}

    def make_objects(self, name: str) -> ObjectStore:
        raise NotImplementedError

    @initialize()
    def create(self) -> None:
        self.sides = {name: Side(self.make_objects(name)) for name in ("here", "there")}
        for name in self.sides:
            for seed, branch in enumerate(("main", "a", "a", "b", "b", "b"), 1):
                self.commit(name, 0, branch, seed, seed % 2 == 0)

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        for side in self.sides.values():
            self.check(side)
            for closing in (*side.subscribers, *side.repos):
                closing.close()
        self.patches.close()

    @property
    def now(self) -> datetime:
        """The time of the model."""
        return datetime(2026, 1, 1, tzinfo=UTC) + self.passed

    def ancestry(self, version: SnapshotId | None) -> list[SnapshotId]:
        found = []
        while version is not None:
            found.append(version)
            version = self.parents[version]
        return found

    def reachable(self, side: Side) -> set[SnapshotId]:
        tips = [*side.branches.values(), *side.tags.values()]
        found = {version for tip in tips for version in self.ancestry(tip)}
        return found - (side.expired - set(tips))

    def read_expired(self, side: Side) -> None:
        """Let the model know what a store has recorded as expired."""
        rows = side.repos[0].database.expired.load()
        side.expired = {version for version in self.states if rows.find(version) is not None}

    @invariant()
    def note_reachable(self) -> None:
        for side in getattr(self, "sides", {}).values():
            for version in self.reachable(side):
                side.seen[version] = self.now

    def check(self, side: Side) -> None:
        """Check all that was promised of a store."""
        with open_repo(side.objects) as repo:
            assert repo.verify().problems == ()
            assert repo.branches() == side.branches
            assert repo.tags() == side.tags
            for version in self.reachable(side):
                assert repo.snapshot(version).parents == (
                    () if self.parents[version] is None else (self.parents[version],)
                )
                assert_same_state(repo.load(version), self.states[version])
            for version, last in side.seen.items():
                if self.now - last < GRACE:
                    assert_same_state(repo.load(version), self.states[version])

    def tick(self) -> datetime:
        self.clock += timedelta(seconds=1)
        return self.clock

    @rule(side=sides, handle=handles, branch=branches, seed=st.integers(1, 6), apart=st.booleans())
    def commit(self, side: str, handle: int, branch: str, seed: int, apart: bool) -> None:
        here = self.sides[side]
        head = here.branches.get(branch)
        # States recur, so that commits use chunks again that are about to be collected.
        base = weights(2, seed=seed % 3)
        state = {"w": step(base, 0.02, seed)} if seed < 5 else {"w": base, "v": weights(1, seed)}
        with packs_apart() if apart else ExitStack():
            made = here.repos[handle].commit(state, branch=branch, time=self.tick())
        assert made.parents == (() if head is None else (head,))
        self.states[made.id], self.parents[made.id] = state, head
        here.branches[branch] = made.id

    @rule(side=sides, handle=handles, name=branches, data=st.data(), tag=st.booleans())
    def name_again(self, side: str, handle: int, name: str, data: st.DataObject, tag: bool) -> None:
        """Name any version that was ever in the store: it must be there, or refused."""
        here = self.sides[side]
        if not here.seen or (tag and name in here.tags):
            return
        version = data.draw(st.sampled_from(sorted(here.seen)))
        repo = here.repos[handle]
        try:
            if tag:
                repo.tag(name, version)
                here.tags[name] = version
            else:
                repo.branch(name, version, force=True)
                here.branches[name] = version
        except casweights.NotFoundError:
            # Only what was unreachable when a collection began can be refused.
            assert version not in self.reachable(here)

    @rule(side=sides, handle=handles, data=st.data())
    def delete(self, side: str, handle: int, data: st.DataObject) -> None:
        here, repo = self.sides[side], self.sides[side].repos[handle]
        if not (names := [*(f"b{n}" for n in here.branches), *(f"t{n}" for n in here.tags)]):
            return
        kind, name = (chosen := data.draw(st.sampled_from(sorted(names))))[0], chosen[1:]
        if kind == "b":
            repo.delete_branch(name)
            here.deleted[name] = here.branches.pop(name)
        else:
            repo.delete_tag(name)
            del here.tags[name]

    @rule(
        handle=handles,
        back=st.booleans(),
        branch=branches,
        pulls=st.booleans(),
        with_expired=st.booleans(),
    )
    def push(self, handle: int, back: bool, branch: str, pulls: bool, with_expired: bool) -> None:
        source, target = self.sides["here"], self.sides["there"]
        if back:
            source, target = target, source
        if branch not in source.branches:
            return
        if pulls:
            target.repos[handle].pull(
                source.repos[handle], [f"heads/{branch}"], force=True, with_expired=with_expired
            )
        else:
            source.repos[handle].push(
                target.repos[handle], [f"heads/{branch}"], force=True, with_expired=with_expired
            )
        self.read_expired(target)
        found = target.repos[handle].branches()[branch]
        assert found in {source.branches[branch], target.branches.get(branch)}
        target.branches[branch] = found

    @rule(
        side=sides, handle=handles, verb=st.sampled_from(["repack", "maintain", "verify", "repair"])
    )
    def tidy(self, side: str, handle: int, verb: str) -> None:
        repo = self.sides[side].repos[handle]
        assert repo.repair(apply=True).lost == () if verb == "repair" else getattr(repo, verb)()

    @rule(
        side=sides, handle=handles, branch=branches, seed=st.integers(1, 4), count=st.integers(1, 3)
    )
    def publish(self, side: str, handle: int, branch: str, seed: int, count: int) -> None:
        here = self.sides[side]
        with Publisher(here.repos[handle], branch, maintain=False) as publisher:
            for number in range(count):
                state = {"w": step(weights(2, seed=seed % 3), 0.02, seed + number)}
                publisher.publish(state)
                made, head = publisher.wait(), here.branches.get(branch)
                assert made is not None
                if made.id != head:  # else this is the state that it has
                    self.states[made.id], self.parents[made.id] = state, head
                    here.branches[branch] = made.id
                    self.note_reachable()

    @rule(side=sides, handle=handles)
    def sync(self, side: str, handle: int) -> None:
        here = self.sides[side]
        head = here.branches.get("main")
        if head is None:
            return
        live = {name: torch.zeros_like(tensor) for name, tensor in self.states[head].items()}
        assert here.subscribers[handle].sync(live).snapshot == head
        assert_same_state(live, self.states[head])

    @rule(side=sides, handle=handles, branch=branches, last=st.integers(1, 2))
    def expire(self, side: str, handle: int, branch: str, last: int) -> None:
        here = self.sides[side]
        before = self.reachable(here)
        here.repos[handle].expire(Keep(branches=branch, last=last), apply=True)
        self.read_expired(here)
        gone = before - self.reachable(here)
        assert gone <= set(self.ancestry(here.branches.get(branch))[last:])

    @rule(side=sides, handle=handles, branch=branches)
    def undelete_branch(self, side: str, handle: int, branch: str) -> None:
        here = self.sides[side]
        version = here.deleted.get(branch)
        if version is None or branch in here.branches:
            return
        try:
            assert here.repos[handle].undelete(f"heads/{branch}") == version
        except NotFoundError:
            assert self.now - here.seen[version] >= GRACE
        else:
            here.branches[branch] = version

    @rule(
        side=sides,
        fault=st.sampled_from(["lost", "killed before", "killed after"]),
        number=st.integers(1, 30),
        branch=branches,
        pushes=st.booleans(),
        apart=st.booleans(),
    )
    def fail(
        self, side: str, fault: str, number: int, branch: str, pushes: bool, apart: bool
    ) -> None:
        """A commit or a push fails, and may have been made."""
        here, there = self.sides[side], self.sides["there" if side == "here" else "here"]
        head, state = here.branches.get(branch), {"w": step(weights(2, seed=1), 0.02, number % 5)}
        view = FAULTS[fault](here.objects, number)
        form = packs_apart() if apart else nullcontext()
        with open_repo(view) as repo, suppress(StoreError), form:
            if not pushes:
                repo.commit(state, branch=branch, time=self.tick())
            elif branch in there.branches:
                there.repos[0].push(repo, [f"heads/{branch}"], force=True)
        with open_repo(here.objects) as repo:
            new = repo.branches().get(branch)
        if new is not None and new != head:
            if not pushes:
                self.states[new], self.parents[new] = state, head
            assert not pushes or new == there.branches[branch]
            here.branches[branch] = new
        self.read_expired(here)
        self.note_reachable()
        self.check(here)

    @rule(
        side=sides,
        fault=st.sampled_from(sorted(FAULTS)),
        number=st.integers(1, 70),
        verb=st.sampled_from([*["gc"] * 3, "maintain", "repack", "repair", "expire", "undelete"]),
    )
    def disturb(self, side: str, fault: str, number: int, verb: str) -> None:
        """A process that rearranges a store is killed, or the store fails or lags."""
        here = self.sides[side]
        view = FAULTS[fault](here.objects, number)
        with suppress(CasweightsError), open_repo(view) as repo:
            if verb == "undelete":
                undelete_all(repo)
            elif verb == "expire":
                repo.expire(Keep(last=2), apply=True)
            elif verb in ("gc", "repair"):
                getattr(repo, verb)(apply=True)
            else:
                getattr(repo, verb)()
        self.read_expired(here)
        self.check(here)

    @rule(side=sides, handle=handles, tag=st.booleans(), data=st.data())
    def undelete_version(self, side: str, handle: int, tag: bool, data: st.DataObject) -> None:
        """Bring any version back that was ever in the store; it is there, or was deleted."""
        here = self.sides[side]
        if not here.seen or "back" in (here.tags if tag else here.branches):
            return
        version = data.draw(st.sampled_from(sorted(here.seen)))
        try:
            here.repos[handle].undelete(version, "tags/back" if tag else "back")
        except NotFoundError:
            assert self.now - here.seen[version] >= GRACE
        else:
            (here.tags if tag else here.branches)["back"] = version

    @rule(side=sides, handle=handles, hours=st.sampled_from([-2, 2]))
    def jump(self, side: str, handle: int, hours: int) -> None:
        """The clock of this machine is wrong."""
        here = self.sides[side]
        before = {info.name for info in here.objects.list()}
        wrong = collections.machine_time() + hours * 3600
        with patch.object(collections, "machine_time", lambda: wrong), suppress(UnsupportedError):
            here.repos[handle].gc(apply=True)
            raise AssertionError("a wrong clock was believed")
        assert before == {info.name for info in here.objects.list()}

    @rule(by=waits)
    def wait(self, by: timedelta) -> None:
        self.passed += by
        self.pass_time(by)

    def pass_time(self, by: timedelta) -> None:
        """Let time pass for both stores."""
        for side in self.sides.values():
            age(side.objects, by)

    @rule(
        side=sides,
        handle=handles,
        wait=st.none() | waits,
        lose=st.booleans(),
        finish_only=st.sampled_from([False, False, True]),
        data=st.data(),
    )
    def collect(
        self,
        side: str,
        handle: int,
        wait: timedelta | None,
        lose: bool,
        finish_only: bool,
        data: st.DataObject,
    ) -> None:
        if lose:
            self.delete(side, handle, data)
        if wait is not None:
            self.wait(wait)
        repo = self.sides[side].repos[handle]
        try:
            said = repo.gc(finish_only=finish_only)
            done = repo.gc(apply=True, finish_only=finish_only)
        except ConflictError as error:
            assert error.code is ErrorCode.BUSY  # noqa: PT017  a killed one blocks for six hours
            return
        assert facts(done) == facts(said)
        assert (done.collection is None) == (done.objects == ())
        for _ in range(4):  # what a run writes again, the next one finds in two places
            last, done = done, repo.gc(apply=True, finish_only=finish_only)
            assert last.folded or not (done.objects or done.finished)
            if not done.folded:
                break
        assert not done.folded
        self.check(self.sides[side])

    @rule(
        side=sides,
        handle=handles,
        call=st.integers(1, 40),
        verb=st.sampled_from(["commit", "name", "repack", "maintain", "gc", "undelete"]),
        seed=st.integers(1, 6),
        apart=st.booleans(),
        data=st.data(),
    )
    def interrupt(
        self,
        side: str,
        handle: int,
        call: int,
        verb: str,
        seed: int,
        apart: bool,
        data: st.DataObject,
    ) -> None:
        """Collect in the middle of something else."""
        other = (here := self.sides[side]).repos[handle]

        def collect(now: int) -> None:
            if now == call:
                with suppress(ConflictError):
                    other.gc(apply=True)

        watched = Watched(here.objects)
        with open_repo(watched) as repo:
            before, here.repos[0] = here.repos[0], repo
            watched.before = collect
            try:
                if verb == "commit":
                    self.commit(side, 0, "main", seed, apart)
                elif verb == "name":
                    self.name_again(side, 0, "main", data, False)
                elif verb == "gc":
                    with suppress(ConflictError):
                        repo.gc(apply=True)
                elif verb == "undelete":
                    self.undelete(side, 0)
                else:
                    getattr(repo, verb)()
            finally:
                watched.before = lambda _: None
                here.repos[0] = before
        self.check(here)

    @rule(side=sides, handle=handles)
    def undelete(self, side: str, handle: int) -> None:
        here = self.sides[side]
        for pending in here.repos[handle].gc().pending:
            done = here.repos[handle].undelete_collection(pending.id)
            for version in done.versions:
                here.repos[handle].branch("undeleted", version, force=True)
                assert_same_state(here.repos[handle].load("undeleted"), self.states[version])
                here.repos[handle].delete_branch("undeleted")
                here.seen[version] = self.now
        self.check(here)


def facts(done: CollectStats) -> tuple[object, ...]:
    return done.objects, done.kept, sorted(done.restored), done.finished, done.finished_bytes
