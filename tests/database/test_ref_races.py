"""Writers that change one ref at the same time, in every order of their calls.

`tests.racing` has the writers and the schedulers.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.database.moves import Head
from casweights.errors import ConflictError, ErrorCode
from casweights.format import names
from tests import racing
from tests.lengths import spread
from tests.racing import (
    CONSISTENT,
    EXCLUSIVE,
    MAX_LAG,
    OWN_LAGS,
    Branch,
    World,
    Writer,
    branch,
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
    from collections.abc import Sequence

    from casweights.ids import SnapshotId
    from tests.racing import Choose, Client, Work


pytestmark = pytest.mark.usefixtures(each_kind.__name__)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_waiting(monkeypatch)


@pytest.mark.usefixtures("no_waiting")
class TestOneWinner:
    """Of several writers that move a branch from one position, exactly one succeeds."""

    @pytest.mark.parametrize("moves", [0, 2])
    @pytest.mark.parametrize(
        ("exclusive", "lag"), [(True, 0), (False, 0), (False, 1), (False, 2), (False, 3)]
    )
    def test_each_position_has_one_winner_in_every_order_of_two_writers(
        self, exclusive: bool, lag: int, moves: int
    ) -> None:
        conflicts = set()

        def race(choose: Choose) -> None:
            main = branch(exclusive=exclusive, moves=moves)
            main.world.lags = (lag,)
            run(main.world, [main.writer(1), main.writer(1)], choose)
            main.check()
            conflicts.add(len(main.lost))

        in_every_order(race)
        assert conflicts == {0, 1} if lag == 0 else 1 in conflicts

    @CONSISTENT
    @given(data=st.data(), moves=st.lists(st.integers(1, 3), min_size=2, max_size=4))
    def test_each_position_has_one_winner_in_random_orders(
        self,
        data: st.DataObject,
        exclusive: bool,
        lags: st.SearchStrategy[Sequence[int]],
        moves: list[int],
    ) -> None:
        main = branch(exclusive=exclusive)
        works = [main.writer(number) for number in moves]
        run(main.world, works, drawn_order(data, main.world, lags))
        assert not main.unsure
        main.check()

    @CONSISTENT
    @given(data=st.data(), again=st.lists(st.booleans(), min_size=2, max_size=4))
    def test_each_position_has_at_most_one_winner_when_calls_fail(
        self,
        data: st.DataObject,
        exclusive: bool,
        lags: st.SearchStrategy[Sequence[int]],
        again: list[bool],
    ) -> None:
        """A writer whose answer was lost may conflict with its own move, but not the opposite."""
        main = branch(exclusive=exclusive)
        works = [main.writer(2, again=each) for each in again]
        run(main.world, works, drawn_order(data, main.world, lags, failures=3))
        main.check(failures=True)

    @EXCLUSIVE
    def test_two_writers_may_move_it_to_the_same_version(self, exclusive: bool) -> None:
        """Both succeed, except with exclusive create, where the second one gets a conflict."""

        def race(choose: Choose) -> None:
            main = branch(exclusive=exclusive, moves=1)
            seen, snapshot = main.head(), version(main.world)
            heads = []

            def move(client: Client) -> None:
                try:
                    heads.append(refs_in(client).advance("main", seen, snapshot, ready=seen_now))
                except ConflictError as error:
                    assert error.snapshot == snapshot  # noqa: PT017  not every order raises it

            run(main.world, [move, move], choose)
            assert heads == [Head("main", 2, snapshot)] * (1 if exclusive else 2)
            assert main.head() == heads[0]

        in_every_order(race)


@pytest.mark.usefixtures("no_waiting")
class TestObjectsThatLagOnTheirOwn:
    """A listing may show an object and leave out another one that was put before it.

    Here the promise of one winner ends: two writers may both succeed. Readers still agree on one of
    their versions, nothing is overwritten, and both versions are in the store.
    """

    @given(data=st.data(), moves=st.lists(st.integers(1, 3), min_size=2, max_size=4))
    def test_readers_agree_on_one_version(self, data: st.DataObject, moves: list[int]) -> None:
        main = branch(exclusive=False, moves=1)
        works = [main.writer(number) for number in moves]
        run(main.world, works, drawn_order(data, main.world, OWN_LAGS))
        main.world.lags = (0,)
        known = {head.snapshot for _, head in main.won} | set(main.unsure)
        head = main.head()
        assert head is not None
        assert head.snapshot in known
        assert {main.head() for _ in range(3)} == {head}
        assert refs_in(main.world).branches() == {"main": head.snapshot}
        main.check_end()

    def test_two_writers_may_both_succeed(self) -> None:
        main = branch(exclusive=False, moves=1)
        world, seen = main.world, main.head()
        one, two = (Writer(world, lambda client: main.move(client, seen)) for _ in range(2))
        one.step()  # both put their moves
        two.step()
        first, second = world.names()[-2:]
        world.lags = [MAX_LAG if name == first else 0 for name in world.names()]
        two.step()  # lists, and sees its own move, but not that of the other
        world.lags = (0,)
        one.step()  # sees both
        assert not one.at_work
        assert not two.at_work
        assert main.lost == []
        (_, head_of_two), (_, head_of_one) = main.won[1:]
        assert head_of_two.position == head_of_one.position == 2
        assert str(head_of_two.snapshot) in second
        assert main.head() == head_of_one
        main.check_end()


@pytest.mark.usefixtures("no_waiting")
class TestTags:
    """A tag has one target, and every writer that succeeded sees its own target."""

    def make(self, world: World, targets: Sequence[SnapshotId], choose: Choose) -> list[SnapshotId]:
        """Create the tag several times at once; return the targets of successful writers."""
        made: list[SnapshotId] = []

        def writer(target: SnapshotId) -> Work:
            def work(client: Client) -> None:
                try:
                    refs_in(client).create_tag("v1", target, ready=seen_now)
                except ConflictError as error:
                    assert error.code is ErrorCode.ALREADY_EXISTS  # noqa: PT017
                else:
                    made.append(target)

            return work

        run(world, [writer(target) for target in targets], choose)
        world.lags = (0,)
        assert refs_in(world).tags() == {"v1": made[0]}
        assert refs_in(world).tag("v1") == made[0]
        assert len(list(world.list(names.TAGS))) <= len(made)  # each may have put an object
        assert set(made) == {made[0]}
        return made

    @pytest.mark.parametrize(
        ("exclusive", "lag"), [(True, 0), (False, 0), (False, 1), (False, 2), (False, 3)]
    )
    def test_one_of_two_writers_succeeds_in_every_order(self, exclusive: bool, lag: int) -> None:
        def race(choose: Choose) -> None:
            world = World(exclusive=exclusive)
            targets = [version(world), version(world)]
            world.lags = (lag,)
            assert len(self.make(world, targets, choose)) == 1

        in_every_order(race)

    @CONSISTENT
    @given(data=st.data(), targets=st.lists(st.integers(0, 2), min_size=2, max_size=4))
    def test_successful_writers_have_the_same_target_in_random_orders(
        self,
        data: st.DataObject,
        exclusive: bool,
        lags: st.SearchStrategy[Sequence[int]],
        targets: list[int],
    ) -> None:
        world = World(exclusive=exclusive)
        versions = [version(world) for _ in range(3)]
        choose = drawn_order(data, world, lags)
        self.make(world, [versions[target] for target in targets], choose)

    def test_a_tag_that_a_later_listing_does_not_show_is_still_a_conflict(self) -> None:
        """The late writer has seen the other tag once, so it has not made the tag itself."""
        world = World(exclusive=False)
        targets = [version(world), version(world)]

        def writer(target: SnapshotId) -> Writer:
            return Writer(
                world, lambda client: refs_in(client).create_tag("v1", target, ready=seen_now)
            )

        first, late = map(writer, targets)
        late.step()  # lists no tag yet
        while first.at_work:
            first.step()
        for _ in range(4):  # lists all names, puts its own, lists both, deletes its own
            late.step()
        world.lags = (len(world.names()) * MAX_LAG,)
        late.step()
        assert not late.at_work
        assert isinstance(late.error, ConflictError)
        world.lags = (0,)
        assert refs_in(world).tags() == {"v1": targets[0]}

    @EXCLUSIVE
    def test_creating_a_tag_during_its_deletion_succeeds_or_conflicts(
        self, exclusive: bool
    ) -> None:
        """The tag points to the new version if and only if its creation succeeded."""
        ends = set()

        def race(choose: Choose) -> None:
            world = World(exclusive=exclusive)
            theirs, ours = version(world), version(world)
            refs_in(world).create_tag("v1", theirs, ready=seen_now)
            results = []

            def delete(client: Client) -> None:
                refs_in(client).tag_deletions.delete("v1")
                results.append("deleted")

            def create(client: Client) -> None:
                try:
                    refs_in(client).create_tag("v1", ours, ready=seen_now)
                    results.append("made")
                except ConflictError:
                    results.append("conflict")

            run(world, [delete, create], choose)
            assert refs_in(world).tag("v1") == (ours if "made" in results else None)
            ends.add(tuple(results))

        in_every_order(race)
        assert {("deleted", "made"), ("conflict", "deleted")} <= ends


@cache
def long_branch(*, exclusive: bool, whole: bool) -> Branch:
    """Return a branch whose next move prunes it; tests copy it."""
    assert whole is racing.WHOLE
    return branch(exclusive=exclusive, moves=199)


@pytest.mark.usefixtures("no_waiting")
class TestPruning:
    """Old moves of a long branch are removed; writers that are far behind still get a conflict."""

    BEHIND = (0, 1, 2, 49, 98, 99, 100, 101, 150, 198)  # positions that late writers have seen
    STEPS = (*range(1, 7), 50, *range(98, 104), 150, *range(199, 203))  # of pruning

    @EXCLUSIVE
    def test_a_log_has_100_to_199_moves_and_late_writers_get_a_conflict(
        self, exclusive: bool
    ) -> None:
        main = branch(exclusive=exclusive)
        heads: list[Head | None] = [None]
        lengths = []
        for _ in range(350):
            heads.append(main.move(main.world, heads[-1]))
            lengths.append(len(list(main.world.list(names.HEADS))))
        assert main.positions() == list(range(201, 351))
        assert max(lengths) == 199
        assert min(lengths[200:]) == 100
        before = list(main.world.list(names.HEADS))
        for seen in spread(
            heads[:-1], 60
        ):  # up to 350 moves behind, also at positions that are gone
            assert main.move(main.world, seen) is None
        assert list(main.world.list(names.HEADS)) == before
        main.check_end()

    @EXCLUSIVE
    def test_a_late_writer_that_runs_during_pruning_gets_a_conflict(self, exclusive: bool) -> None:
        """The late writer makes all its calls between two deletions."""
        long = long_branch(exclusive=exclusive, whole=racing.WHOLE)
        main, heads = long.copy(), self.heads(long)
        pruner = Writer(main.world, lambda client: main.move(client, heads[199]))
        for step in count():
            for position in spread(self.BEHIND, 3, step):
                other = main.copy()
                assert other.move(other.world, heads.get(position)) is None
            if not pruner.at_work:
                break
            pruner.step()
        assert pruner.error is None
        assert main.positions() == list(range(101, 201))

    @EXCLUSIVE
    @pytest.mark.parametrize("position", BEHIND)
    def test_a_late_move_that_was_put_before_pruning_is_a_conflict(
        self, exclusive: bool, position: int
    ) -> None:
        """The late writer puts its move before the pruning, and lists moves after some of it."""
        long = long_branch(exclusive=exclusive, whole=racing.WHOLE)
        heads = self.heads(long)
        for steps in spread(self.STEPS, 5, position):
            main = long.copy()
            pruner = Writer(main.world, partial(main.move, seen=heads[199]))
            late = Writer(main.world, partial(main.move, seen=heads.get(position)))
            late.step()
            for _ in range(steps):
                if pruner.at_work:
                    pruner.step()
            for writer in (late, pruner):
                while writer.at_work:
                    writer.step()
                assert writer.error is None
            assert len(main.lost) == 1
            assert main.positions() == list(range(101, 201))

    def heads(self, main: Branch) -> dict[int, Head]:
        return {head.position: head for _, head in main.won}
