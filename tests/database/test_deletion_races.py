"""Handles that commit, delete, bring back and create one branch at the same time."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.database.moves import GONE, Head, line
from casweights.database.reflog import RefLog
from casweights.database.refs import Refs
from casweights.errors import ConflictError, ErrorCode, NotFoundError
from casweights.format import names
from tests.add_only import AddOnly
from tests.racing import (
    CONSISTENT,
    EXCLUSIVE,
    drawn_order,
    each_kind,
    in_every_order,
    refs_in,
    run,
    seen_now,
    version,
)
from tests.racing import branch as racing_branch
from tests.waiting import stop_waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.racing import Branch, Choose, Client, Work


pytestmark = pytest.mark.usefixtures(each_kind.__name__)

LAW = st.lists(
    st.lists(st.sampled_from(["move", "delete", "undelete", "trim"]), min_size=1, max_size=3),
    min_size=2,
    max_size=3,
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_waiting(monkeypatch)


class TestDeletion:
    """A branch is deleted, and perhaps created again, while a writer is about to move it."""

    def race(self, main: Branch, moves: int, choose: Choose) -> tuple[bool, int]:
        """Move a branch while it is deleted and created again.

        Args:
            main: The branch.
            moves: Number of moves of the new branch.
            choose: The scheduler.

        Returns:
            Whether the late move succeeded, and the number of successful moves after it was
            deleted; -1 if it was not deleted.
        """
        before = main.head()
        late: list[Head | None] = []
        again: list[Head | None] = []

        def delete(client: Client) -> None:
            refs = refs_in(client)
            try:
                refs.branch_deletions.delete("main")
            except ConflictError as error:
                assert error.code is ErrorCode.REF_MOVED  # noqa: PT017
                return
            except NotFoundError:  # the listing that it looked at lagged
                return
            again.append(None)
            for _ in range(moves):
                refs.head("main", for_update=True)
                if (head := main.move(refs, again[-1])) is None:
                    return
                again.append(head)

        def move(client: Client) -> None:
            late.append(main.move(client, before))

        run(main.world, [move, delete], choose)
        main.world.lags = (0,)
        assert before is not None
        [moved] = late
        if again:
            # The deletion followed the move, or else the move failed.
            deletion = refs_in(main.world).branch_deletions.last("main")
            assert deletion is not None
            assert deletion.snapshot == (moved or before).snapshot
            assert deletion.position == (moved or before).position + 1
            assert main.head() == again[-1]
        elif moved:
            assert main.head() == moved
        main.check_end()
        return moved is not None, len(again) - 1

    @EXCLUSIVE
    @pytest.mark.parametrize("moves", [0, 1])
    def test_the_move_or_the_deletion_succeeds_in_every_order(
        self, exclusive: bool, moves: int
    ) -> None:
        ends = set()

        def race(choose: Choose) -> None:
            ends.add(self.race(racing_branch(exclusive=exclusive, moves=2), moves, choose))

        in_every_order(race)
        assert {(True, -1), (False, moves), (True, moves)} <= ends

    @CONSISTENT
    @given(data=st.data(), length=st.integers(1, 3), moves=st.integers(1, 4))
    def test_the_move_or_the_deletion_succeeds_in_random_orders(
        self,
        data: st.DataObject,
        exclusive: bool,
        lags: st.SearchStrategy[Sequence[int]],
        length: int,
        moves: int,
    ) -> None:
        main = racing_branch(exclusive=exclusive, moves=length)
        self.race(main, moves, drawn_order(data, main.world, lags))

    @EXCLUSIVE
    def test_readers_see_the_old_head_or_no_branch_during_a_deletion(self, exclusive: bool) -> None:
        ends = set()

        def race(choose: Choose) -> None:
            main = racing_branch(exclusive=exclusive, moves=2)
            before = main.head()
            assert before is not None

            def read(client: Client) -> None:
                head, heads = refs_in(client).head("main"), refs_in(client).branches()
                assert head in (None, before)
                assert heads in ({}, {"main": before.snapshot})
                ends.add((head is None, heads == {}))

            run(
                main.world,
                [lambda client: refs_in(client).branch_deletions.delete("main"), read],
                choose,
            )

        in_every_order(race)
        assert ends == {(False, False), (False, True), (True, True)}

    @EXCLUSIVE
    def test_deleting_a_branch_twice_at_once_deletes_it(self, exclusive: bool) -> None:
        def race(choose: Choose) -> None:
            main = racing_branch(exclusive=exclusive, moves=2)

            def delete(client: Client) -> None:
                with suppress(NotFoundError, ConflictError):
                    refs_in(client).branch_deletions.delete("main")

            run(main.world, [delete, delete], choose)
            assert main.head() is None
            main.check_end()

        in_every_order(race)


class TestAtOnce:
    """Handles that commit, delete, bring back and create a branch at the same time."""

    @CONSISTENT
    @given(data=st.data(), plans=LAW, moves=st.integers(0, 2))
    def test_every_success_is_a_move_on_the_line(
        self,
        data: st.DataObject,
        exclusive: bool,
        lags: st.SearchStrategy[Sequence[int]],
        plans: list[list[str]],
        moves: int,
    ) -> None:
        main = racing_branch(exclusive=exclusive, moves=moves)
        done: list[str] = []
        works = [self.work(main, plan, done) for plan in plans]
        run(main.world, works, drawn_order(data, main.world, lags))
        main.world.lags = (0,)
        self.check(main, done, trimmed="trim" in itertools.chain(*plans))
        main.check_end()

    def work(self, main: Branch, plan: Sequence[str], done: list[str]) -> Work:
        def work(client: Client) -> None:
            refs = refs_in(client)
            for verb in plan:
                with suppress(ConflictError, NotFoundError):
                    self.do(main, refs, verb)
                    done.append(verb)

        return work

    def do(self, main: Branch, refs: Refs, verb: str) -> None:
        """Make a change of the branch; raise an error if it was not made."""
        deletions = refs.branch_deletions
        if verb == "delete":
            deletions.delete("main")
        elif verb == "trim":
            list(refs.trim())
        elif verb == "undelete":
            last = deletions.last("main")
            if last is None:
                raise NotFoundError(ErrorCode.REF_NOT_FOUND, "never deleted")
            deletions.undelete("main", last, ready=seen_now)
        elif main.move(refs, refs.head("main", for_update=True)) is None:
            raise ConflictError(ErrorCode.REF_MOVED, "another writer was faster")

    def check(self, main: Branch, done: Sequence[str], *, trimmed: bool) -> None:
        """Assert that the line of the branch has the moves of all that succeeded."""
        log = RefLog(main.world, names.HEADS)
        moves = log.moves("main")
        on_line = sorted(line(moves).items())
        path = [log.snapshot(move) for _, move in on_line]
        for (_, move), before in zip(on_line[1:], path, strict=False):
            if (came_from := log.deleted(move)) is not None:
                assert came_from == before
        head = main.head()
        assert (head.snapshot if head else GONE) == (path[-1] if path else GONE)
        acknowledged = {moved.snapshot for _, moved in main.won}
        assert refs_in(main.world).displaced().keys() <= {"main"}
        off = [each.snapshot for each in refs_in(main.world).displaced().get("main", ())]
        assert not acknowledged & {*off}
        if trimmed:
            return
        assert acknowledged <= {*path}
        deletions = path.count(GONE)
        if main.world.capabilities.exclusive_create:
            assert deletions == done.count("delete")
        else:  # several may make the same move at once
            assert deletions <= done.count("delete") + len(main.lost) + done.count("undelete")
            assert deletions >= min(1, done.count("delete"))

    @EXCLUSIVE
    @given(data=st.data())
    def test_of_two_that_bring_a_branch_back_and_create_it_one_succeeds(
        self, data: st.DataObject, exclusive: bool
    ) -> None:
        main = racing_branch(exclusive=exclusive, moves=2)
        before = main.head()
        refs_in(main.world).branch_deletions.delete("main")
        if data.draw(st.booleans()):
            list(refs_in(main.world).trim())
        done: list[str] = []
        works = [self.work(main, [verb], done) for verb in ("undelete", "move")]
        run(main.world, works, drawn_order(data, main.world, st.just((0,))))
        assert before is not None
        head = main.head()
        # Either is the first; a commit may follow the branch that came back.
        assert len(done) <= 2
        if done == ["undelete"]:
            assert head is not None
            assert head.snapshot == before.snapshot
        elif done:
            assert head is not None
            assert [moved.snapshot for _, moved in main.won[2:]] == [head.snapshot]
        main.check_end()

    @EXCLUSIVE
    @pytest.mark.parametrize("moves", [1, 2, 3])
    def test_a_late_writer_finds_every_earlier_position_taken(
        self, exclusive: bool, moves: int
    ) -> None:
        """It saw the branch at any earlier time, and puts its move after the log was trimmed."""
        main = racing_branch(exclusive=exclusive)
        seen = [None, *(main.move(main.world, main.head()) for _ in range(moves))]
        refs = refs_in(main.world)
        refs.branch_deletions.delete("main")
        list(refs.trim())
        for head in seen:
            assert main.move(main.world, head) is None
        assert main.head() is None
        again = refs.advance(
            "main", refs.head("main", for_update=True), version(main.world), ready=seen_now
        )
        list(refs.trim())
        for head in seen:
            assert main.move(main.world, head) is None
        assert main.head() == again
        assert refs.displaced() == {}

    @EXCLUSIVE
    @pytest.mark.parametrize("moves", [1, 2, 3])
    def test_a_late_move_that_cannot_be_withdrawn_changes_nothing(
        self, exclusive: bool, moves: int
    ) -> None:
        main = racing_branch(exclusive=exclusive)
        seen = [None, *(main.move(main.world, main.head()) for _ in range(moves))]
        refs = refs_in(main.world)
        refs.branch_deletions.delete("main")
        list(refs.trim())
        late = AddOnly(main.world)
        for head in seen:
            with pytest.raises(ConflictError):
                Refs(late).advance("main", head, version(main.world), ready=seen_now)
        assert late.refused == moves + 1
        assert main.head() is None
        assert refs.displaced() == {}
        assert refs.branch_deletions.all().keys() == {"main"}
        assert main.move(refs, refs.head("main", for_update=True)) is not None
        assert refs.displaced() == {}
