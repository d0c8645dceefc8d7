"""Maintenance takes old moves out of the log of a branch, each of which may be a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights.database.moves import GONE
from casweights.database.reflog import RECENT_MOVES, RefLog
from casweights.database.refs import Refs
from casweights.errors import ConflictError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from tests.racing import seen_now

if TYPE_CHECKING:
    from casweights.database.moves import Head

LEFT = 8  # moves of a branch that stay, however old they are
SINCE = 10**6


def make_store(*, exclusive: bool = False) -> MemoryStore:
    store = MemoryStore()
    store.capabilities = Capabilities(exclusive_create=exclusive, clock_skew=0.0)
    return store


def version(number: int) -> SnapshotId:
    return SnapshotId(b"%032d" % number)


def make_moves(store: MemoryStore, count: int, young: set[int]) -> list[Head]:
    """Move a branch several times; those at some positions are made now, the others long ago."""
    refs = Refs(store)
    heads: list[Head] = []
    for position in range(1, count + 1):
        last = heads[-1] if heads else None
        heads.append(refs.advance("main", last, version(position), ready=seen_now))
        name = next(n for n in store.list_names(names.HEADS) if f"/{position:012d}" in n)
        store._created[name] = SINCE + 1 if position in young else 1
    return heads


def positions(store: MemoryStore) -> list[int]:
    return [move.position for move in RefLog(store, names.HEADS).moves("main")]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("newest", [0, 3, 12])
def test_the_last_moves_and_those_that_are_young_stay(count: int, newest: int) -> None:
    store = make_store()
    make_moves(store, count, set(range(count - newest + 1, count + 1)))
    assert list(Refs(store).trim(SINCE)) == [True]
    assert positions(store) == list(range(max(1, count - max(LEFT, newest) + 1), count + 1))


def test_no_gap_is_left_where_an_early_move_is_young() -> None:
    """A log ends above its first gap, and moves below would count as displaced."""
    store = make_store()
    make_moves(store, 20, {5})
    assert list(Refs(store).trim(SINCE)) == [True]
    assert positions(store) == list(range(5, 21))
    assert Refs(store).displaced() == {}


def test_what_has_no_time_counts_as_young() -> None:
    store = make_store()
    make_moves(store, 20, set())
    for name in store._created:
        store._created[name] = 0
    assert list(Refs(store).trim(SINCE)) == [True]
    assert len(positions(store)) == 20


def test_with_exclusive_create_the_last_moves_stay_whatever_their_age() -> None:
    """Names there do not say what a move came from: a late first move would count again."""
    store = make_store(exclusive=True)
    make_moves(store, RECENT_MOVES, set())
    assert list(Refs(store).trim(SINCE)) == [True]
    assert len(positions(store)) == RECENT_MOVES


@pytest.mark.parametrize("count", [9, 12, 30])
def test_no_late_writer_moves_a_branch_whose_old_moves_are_gone(count: int) -> None:
    """Whatever it has seen of the branch: nothing yet, or any of its versions but the newest."""
    store = make_store()
    heads = make_moves(store, count, set())
    assert list(Refs(store).trim(SINCE)) == [True]
    for seen in (None, *heads[:-1]):
        with pytest.raises(ConflictError):
            Refs(store).advance("main", seen, version(99), ready=seen_now)
        assert Refs(store).head("main") == heads[-1]
    assert Refs(store).displaced() == {}


def test_the_next_writer_need_not_wait() -> None:
    """What is left shows that nobody is about to withdraw the newest move, or its base."""
    store = make_store()
    heads = make_moves(store, 20, set())
    assert list(Refs(store).trim(SINCE)) == [True]
    log = RefLog(store, names.HEADS)
    moves = log.moves("main")
    for position in (19, 20):
        near = [move for move in moves if abs(move.position - position) <= 1]
        assert not log.is_contested(near, next(m for m in near if m.position == position))
    head = Refs(store).advance("main", heads[-1], version(21), ready=seen_now)
    assert (head.position, head.snapshot) == (21, version(21))


def test_of_a_deleted_branch_a_mark_stays() -> None:
    store = make_store()
    make_moves(store, 20, set())
    Refs(store).branch_deletions.delete("main")
    assert all(Refs(store).trim(SINCE))
    [mark] = RefLog(store, names.HEADS).moves("main")
    assert (mark.is_mark, mark.snapshot) == (True, GONE)
