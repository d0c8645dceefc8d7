"""Buckets whose servers' clocks differ: no acknowledged version disappears unnoticed.

The writers of `tests.racing` move a branch, and each move gets its time from another clock. If no
writer stops for long, every acknowledged move is in the log, however wrong the clocks are. If
writers may stop anywhere, or die, a version can be displaced; then it is listed as displaced, and
its writer gets an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import casweights
from casweights.database.moves import encode_move
from casweights.errors import ConflictError, ErrorCode
from casweights.format import names
from casweights.stores.base import Capabilities, ObjectInfo
from casweights.stores.memory import MemoryStore
from casweights.testing.versatile import VersatileStore
from tests import racing
from tests.lengths import examples
from tests.racing import (
    NO_LAG,
    ONE_LAG,
    Branch,
    World,
    Writer,
    drawn_order,
    each_kind,
    in_every_order,
    refs_in,
    run,
    seen_now,
    version,
)
from tests.waiting import stop_waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights import Repository
    from casweights.database.moves import Head
    from casweights.database.refs import Refs
    from casweights.ids import SnapshotId
    from tests.racing import Choose

WIDE = 1.0  # seconds of clock skew that writers allow for, or 1,000 ticks: more than any test uses
SKEWS = st.lists(st.integers(-20, 20), min_size=1, max_size=7)
MOVES = st.lists(st.integers(1, 3), min_size=2, max_size=4)
FEW = settings(max_examples=examples(20), phases=[Phase.generate])  # shrinking takes minutes
LAGS = pytest.mark.parametrize("lags", [NO_LAG, ONE_LAG], ids=["no lag", "lagging"])


pytestmark = pytest.mark.usefixtures(each_kind.__name__)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_waiting(monkeypatch)


def branch(skews: Sequence[int], allowed: float = WIDE, moves: int = 0) -> Branch:
    """Return a branch in a bucket whose clocks differ.

    Args:
        skews: Errors of the clocks, in ticks; each move uses the next clock.
        allowed: Seconds of difference that writers allow for.
        moves: Number of moves that the branch has already.
    """
    world = World(exclusive=False)
    world.capabilities = Capabilities(exclusive_create=False, clock_skew=allowed)
    world.skews = skews
    main = Branch(world)
    for _ in range(moves):
        assert main.move(main.world, main.head()) is not None
    return main


def in_turns(world: World, draw: Callable[[int], tuple[int, Sequence[int]]]) -> Choose:
    """Return a scheduler in which every writer makes one call before any makes a second one.

    Args:
        world: The store that the writers share.
        draw: Chooses a number below its argument, the writer whose turn it is, and the lags of
            listings during the turn.
    """
    waiting: list[Writer] = []

    def choose(ready: Sequence[Writer]) -> Writer:
        nonlocal waiting
        waiting = [writer for writer in waiting if writer in ready] or list(ready)
        number, world.lags = draw(len(waiting))
        return waiting.pop(number)

    return choose


def versions(main: Branch) -> tuple[Sequence[SnapshotId], set[SnapshotId]]:
    """Return the versions in the log of the branch, and those off its line."""
    main.world.lags = (0,)
    head = main.head()
    log = main.history(head.snapshot if head else None)
    return log, {each.snapshot for each in refs_in(main.world).displaced().get("main", [])}


def check_nothing_vanished(main: Branch) -> set[SnapshotId]:
    """Check that each acknowledged version is in the log, or displaced and reported once.

    Returns:
        The acknowledged versions that are not in the log.
    """
    log, shown = versions(main)
    main.check_winners(log)
    gone = {moved.snapshot for _, moved in main.won} - {*log}
    assert gone <= shown
    for snapshot in gone - main.told:
        assert main.look(main.handles[snapshot])[0]
        assert snapshot in main.told
        assert not main.look(main.handles[snapshot])[0], "it is reported once"
    main.check_end()
    return gone


@LAGS
@FEW
@given(data=st.data(), skews=SKEWS, moves=MOVES)
def test_no_acknowledged_version_leaves_the_log(
    data: st.DataObject,
    lags: st.SearchStrategy[Sequence[int]],
    skews: Sequence[int],
    moves: list[int],
) -> None:
    def draw(waiting: int) -> tuple[int, Sequence[int]]:
        return data.draw(st.tuples(st.integers(0, waiting - 1), lags))

    main = branch(skews)
    run(main.world, [main.writer(number) for number in moves], in_turns(main.world, draw))
    check_nothing_left_the_log(main)


def check_nothing_left_the_log(main: Branch) -> None:
    """Check that the log has all acknowledged versions, and all versions off the line.

    A writer may withdraw a move on which another one has just built. Then the moves before it are
    off the line, although their versions are in the log.
    """
    assert not main.unsure
    assert check_nothing_vanished(main) == set()
    log, off = versions(main)
    assert off <= {*log}


# Skews; moves of each writer; and for each call two digits: the writer among those that have not
# had their turn, and the lag of listings.
SCHEDULES = {
    "a head whose writer sees that its base is gone": (
        [-2, -16, 8],
        [3, 3, 3, 1],
        (
            "30 24 05 02 14 23 13 00 02 15 05 01 14 11 04 03 30 11 05 03 13 00 01 25 10 02 23 15 "
            "00 03 04 02 25 01 05 14 14 01 13 11 01 21 12 01 05 03 04 04 03"
        ),
    ),
    "an acknowledged version that leaves the log": (
        [-16, 18],
        [2, 1, 3, 3],
        (
            "05 04 05 00 10 12 14 04 02 11 15 05 14 11 02 05 02 02 12 03 25 04 14 05 03 03 00 11 "
            "03 03 05 10 01 22 10 02 01 13 02 01 15 00 01 04 15 02"
        ),
    ),
    "rivals that withdraw for each other": (
        [3, 6, -6, -16, -4, -14, -4],
        [2, 3, 3],
        (
            "10 10 00 20 10 00 10 10 00 00 10 00 20 10 00 20 00 00 00 00 00 10 00 00 20 10 00 00 "
            "00 00 00 10 00 10 00"
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_writers_do_not_build_on_moves_that_are_about_to_be_withdrawn(name: str) -> None:
    skews, moves, turns = SCHEDULES[name]
    calls = iter(turns.split())

    def draw(waiting: int) -> tuple[int, Sequence[int]]:
        call = next(calls, "00")  # writers wait more than when the schedule was recorded
        return int(call[0]) % waiting, (int(call[1]),)

    main = branch(skews)
    run(main.world, [main.writer(number) for number in moves], in_turns(main.world, draw))
    check_nothing_left_the_log(main)
    log, off = versions(main)
    assert off == set()
    assert not {*main.lost} & {*log}, "no writer built on a withdrawn move"


@LAGS
@pytest.mark.parametrize("allowed", [0.0, WIDE], ids=["more than allowed", "as allowed"])
@FEW
@given(data=st.data(), skews=SKEWS, moves=MOVES)
def test_versions_that_leave_the_log_are_listed_and_reported_to_their_writers(
    data: st.DataObject,
    lags: st.SearchStrategy[Sequence[int]],
    allowed: float,
    skews: Sequence[int],
    moves: list[int],
) -> None:
    main = branch(skews, allowed)
    works = [main.writer(number) for number in moves]
    run(main.world, works, drawn_order(data, main.world, lags, failures=2))
    check_nothing_vanished(main)


@pytest.mark.parametrize("skews", [(0,), (0, -9, 9), (9, 0, -9), (0, 0, 0, -50)])
@pytest.mark.parametrize("allowed", [0.0, WIDE])
def test_two_writers_lose_no_version_in_any_order(skews: Sequence[int], allowed: float) -> None:
    gone = set()

    def race(choose: Choose) -> None:
        main = branch(skews, allowed, moves=1)
        run(main.world, [main.writer(1), main.writer(1)], choose)
        gone.add(len(check_nothing_vanished(main)))

    in_every_order(race)
    assert gone <= ({0} if allowed or skews == (0,) else {0, 1})


class TestDisplaced:
    """A writer's move was acknowledged, and then displaced by a move with an earlier time."""

    @pytest.fixture
    def main(self) -> Branch:
        # The third move gets an earlier time. A move that is no version comes after a version.
        skews = (0, 0, -50, 0, 0, 0) if racing.WHOLE else (0, 0, 0, 0, 0, -50)
        return branch(skews, 0.0, moves=1)

    @pytest.fixture
    def before(self, main: Branch) -> Head | None:
        return main.head()

    @pytest.fixture
    def handle(self, main: Branch, before: Head | None) -> Refs:
        """The refs of the displaced writer."""
        handle = refs_in(main.world)
        assert main.move(handle, before)
        assert main.move(refs_in(main.world), before), "its time is earlier"
        return handle

    @pytest.fixture
    def displaced(self, main: Branch, handle: Refs) -> SnapshotId:
        return main.won[1][1].snapshot

    def shown(self, main: Branch) -> list[SnapshotId]:
        return [each.snapshot for each in refs_in(main.world).displaced().get("main", [])]

    def test_it_is_listed_until_it_is_dropped(self, main: Branch, displaced: SnapshotId) -> None:
        assert main.head() == main.won[2][1]
        assert self.shown(main) == [displaced]
        assert not refs_in(main.world).drop_displaced(displaced, "other")
        assert not refs_in(main.world).drop_displaced(main.won[2][1].snapshot)
        assert refs_in(main.world).drop_displaced(displaced, "main")
        assert self.shown(main) == []
        assert main.head() == main.won[2][1]

    def test_its_writer_gets_a_conflict_when_it_looks_in_order_to_move(
        self, main: Branch, handle: Refs, displaced: SnapshotId
    ) -> None:
        assert handle.head("main") == main.head(), "reading raises nothing"
        with pytest.raises(ConflictError, match="displaced") as caught:
            handle.head("main", for_update=True)
        assert caught.value.code is ErrorCode.REF_MOVED
        assert caught.value.snapshot == displaced
        assert handle.head("main", for_update=True) == main.head()

    def test_its_writer_gets_a_conflict_when_it_moves_the_branch(
        self, main: Branch, handle: Refs, displaced: SnapshotId
    ) -> None:
        snapshot = version(main.world)
        with pytest.raises(ConflictError, match=f"displaced.*{displaced}|{displaced}.*displaced"):
            handle.advance("main", main.won[1][1], snapshot, ready=seen_now)
        assert self.shown(main) == [displaced]
        assert handle.head("main", for_update=True) == main.head()

    def test_it_survives_the_pruning_of_the_log(self, main: Branch, displaced: SnapshotId) -> None:
        refs, head = refs_in(main.world), main.head()
        for _ in range(250):
            head = refs.advance("main", head, version(main.world), ready=seen_now)
            assert len(self.shown(main)) == 1
        assert len(main.positions()) < 200
        assert self.shown(main) == [displaced]

    def test_it_is_no_longer_listed_once_the_branch_moves_to_it(
        self, main: Branch, displaced: SnapshotId
    ) -> None:
        refs_in(main.world).advance("main", main.head(), displaced, ready=seen_now)
        assert self.shown(main) == []


def test_a_dead_writer_with_an_earlier_time_displaces_an_acknowledged_version() -> None:
    """Its move was put later, which no reader can know. The other version is still listed."""
    main = branch((0, 0, 0, -50, 0, 0) if racing.WHOLE else (0, 0, 0, 0, 0, -50), moves=1)
    alive, refs, before = refs_in(main.world), refs_in(main.world), main.head()
    assert before is not None
    assert main.move(alive, before)
    dead = version(main.world)
    name = names.move_name(names.HEADS, "main", 2, dead, before.snapshot)
    main.world.put(name, [encode_move(dead)])  # it dies before it lists the moves
    refs.advance("main", refs.head("main", for_update=True), version(main.world), ready=seen_now)
    displaced = main.won[1][1].snapshot
    assert [each.snapshot for each in refs.displaced()["main"]] == [displaced]
    assert main.look(alive)[0]
    assert displaced in main.told


class Bucket(MemoryStore):
    """A store without exclusive create, in which a rival may get an earlier time."""

    capabilities = Capabilities(exclusive_create=False, clock_skew=0.0)

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[str, int] = {}
        self.early: set[str] = set()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            time = 0 if info.name in self.early else self._times.setdefault(info.name, 1)
            yield ObjectInfo(info.name, info.size, time)

    def displace(self, repo: Repository) -> SnapshotId:
        """Make another writer's move that displaces the last one; return the displaced version."""
        head = repo.database.refs.head("main")
        assert head is not None
        other = repo.commit({"other": 1}, branch="side").id
        [before] = repo.snapshot(head.snapshot).parents
        name = names.move_name(names.HEADS, "main", head.position, other, before)
        self.early.add(name)
        self.put(name, [encode_move(other)])
        return head.snapshot


class CopyingBucket(Bucket, VersatileStore):
    """The same, in which moves are versions."""


class TestCallers:
    """The errors that users of a repository get when their version was displaced."""

    @pytest.fixture
    def bucket(self) -> Bucket:
        return CopyingBucket() if racing.WHOLE else Bucket()

    @pytest.fixture
    def repo(self, bucket: Bucket) -> Iterator[Repository]:
        with casweights.open(bucket, create=True) as repo:
            repo.commit({"n": 0})
            yield repo

    def test_the_next_commit_raises_once(self, bucket: Bucket, repo: Repository) -> None:
        repo.commit({"n": 1})
        displaced = bucket.displace(repo)
        with pytest.raises(ConflictError, match="was displaced") as caught:
            repo.commit({"n": 2})
        assert caught.value.snapshot == displaced
        assert repo.displaced() == {"main": (displaced,)}
        repo.commit({"n": 2})
        assert [int(repo.load(v).get("n", -1)) for v in repo.log()] == [2, -1]

    def test_the_next_move_of_the_branch_raises_once(
        self, bucket: Bucket, repo: Repository
    ) -> None:
        first = repo.resolve("main")
        repo.commit({"n": 1})
        displaced = bucket.displace(repo)
        with pytest.raises(ConflictError, match="was displaced"):
            repo.branch("main", first, force=True)
        repo.branch("main", first, force=True)
        assert repo.displaced() == {"main": (displaced,)}
        repo.tag("kept", displaced)
        assert repo.displaced() == {}

    def test_a_publisher_stops_with_an_error(self, bucket: Bucket, repo: Repository) -> None:
        publisher = casweights.Publisher(repo, "main")
        publisher.publish({"w": torch.zeros(3)})
        publisher.wait()
        displaced = bucket.displace(repo)
        publisher.publish({"w": torch.ones(3)})
        for call in (publisher.wait, lambda: publisher.publish({"w": torch.ones(3)})):
            with pytest.raises(ConflictError, match=f"{displaced} was displaced") as caught:
                call()
        assert caught.value.snapshot is not None
        assert repo.snapshot(caught.value.snapshot).parents == (displaced,)
        with pytest.raises(ConflictError):
            publisher.close()
        assert repo.displaced() == {"main": (displaced,)}

    def test_a_version_that_replicas_were_told_of_stays_readable(
        self, bucket: Bucket, repo: Repository
    ) -> None:
        publisher = casweights.Publisher(repo, "main")
        publisher.publish({"w": torch.zeros(3)})
        publisher.wait()
        live = {"w": torch.ones(3)}
        with casweights.Subscriber(bucket, "main") as replica:
            told = replica.sync(live).snapshot
        displaced = bucket.displace(repo)
        assert told == displaced
        publisher.publish({"w": torch.ones(3)})
        with pytest.raises(ConflictError):  # every later call raises it, too
            publisher.wait()
        with pytest.raises(ConflictError):
            publisher.wait()
        with pytest.raises(ConflictError):
            publisher.close()
        for drop in (False, True):
            with casweights.open(bucket) as fresh:
                if drop:
                    fresh.drop_displaced("main", displaced)
                assert torch.equal(fresh.load(displaced)["w"], live["w"])
                assert fresh.verify().problems == ()
