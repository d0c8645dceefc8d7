"""Writers that move one ref at once, in every order that a scheduler can think of.

Each writer is a thread that stops before every call of the store, and one of them at a time goes
on: which one is drawn by hypothesis, so that what fails shrinks, or enumerated. The last tests let
threads loose on the local Hub.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from itertools import count
from queue import Empty, Queue
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import casweights
from casweights.config import StoreConfig
from casweights.errors import ConflictError, ErrorCode, NotFoundError, StoreError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.refs import Head, Refs
from casweights.stores.base import Capabilities, ObjectInfo, ObjectStore
from casweights.stores.hub.store import HubStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.hub import Conditions, LocalHub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights import Repository
    from casweights.stores.base import Buffer

    Work = Callable[["Client"], object]
    Choose = Callable[[Sequence["Writer"]], "Writer"]

WRITERS, COMMITS = 4, 20
MAX_LAG = 5  # calls; less than the listings that a writer waits for its own move


class Time:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casweights.reflog.time", Time())


class World(MemoryStore):
    """What all writers share: objects, a clock that ticks at every change and listing, the past.

    Attributes:
        lags: By how many ticks listings lag, for each object in turn; one for all is a listing
            that shows the whole store as it was.
        clashes: Names that were put with other bytes while they were there.
    """

    def __init__(self, *, exclusive: bool) -> None:
        super().__init__()
        self.capabilities = Capabilities(exclusive_create=exclusive)
        self.lags: Sequence[int] = (0,)
        self.clashes: list[str] = []
        self._now = 0
        self._past: dict[str, list[tuple[int, bool]]] = {}  # when it came and went

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        created = super().put(name, parts)
        if created:
            self._note(name, there=True)
        elif self.get(name) != b"".join(parts):
            self.clashes.append(name)
        return created

    def delete(self, name: str) -> None:
        there = self.exists(name)
        super().delete(name)
        if there:
            self._note(name, there=False)

    def _note(self, name: str, *, there: bool) -> None:
        self._now += 1
        self._past.setdefault(name, []).append((self._now, there))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._now += 1
        infos = []
        for number, (name, changes) in enumerate(self._past.items()):
            if not name.startswith(prefix):
                continue
            seen = self._now - self.lags[number % len(self.lags)]
            moment, there = next((c for c in reversed(changes) if c[0] <= seen), (0, False))
            if there:
                created = 0 if self.capabilities.exclusive_create else moment
                infos.append(ObjectInfo(name, 0, created))
        return iter(sorted(infos, key=lambda info: info.name))

    def names(self) -> Sequence[str]:
        """Of all objects that ever were, in the order in which `lags` counts them."""
        return list(self._past)

    def copy(self) -> World:
        """Another one that is as this one is now."""
        other = World(exclusive=self.capabilities.exclusive_create)
        other._objects = dict(self._objects)
        other._now, other._past = self._now, {n: list(c) for n, c in self._past.items()}
        return other


class Fate(Enum):
    """What becomes of a call."""

    DONE = "done"
    LOST = "it does not reach the store"
    UNANSWERED = "it is done, but its answer does not come"


class Client(WrapperStore):
    """The store, as one writer reaches it: every call waits until it is this writer's turn."""

    def __init__(self, world: World, stop: Callable[[], Fate]) -> None:
        super().__init__(world)
        self._stop = stop

    put_all = ObjectStore.put_all
    delete_all = ObjectStore.delete_all

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        with self._turn():
            return super().put(name, parts)

    def read(self, name: str, limit: int) -> bytes:
        with self._turn():
            return self.inner.read(name, limit)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._turn():
            return super().list(prefix)

    def delete(self, name: str) -> None:
        with self._turn():
            super().delete(name)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fate = self._stop()
        if fate is Fate.LOST:
            raise StoreError(ErrorCode.UNREACHABLE, fate.value)
        yield
        if fate is Fate.UNANSWERED:
            raise StoreError(ErrorCode.UNREACHABLE, fate.value)


class Writer:
    """A thread that goes on to its next call of the store when it is told to, and no further.

    Attributes:
        at_work: Whether there is a next call.
        fate: What becomes of it.
        error: What its work raised.
    """

    def __init__(self, world: World, work: Work) -> None:
        self.at_work = True
        self.fate = Fate.DONE
        self.error: BaseException | None = None
        self._go, self._stopped = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._stopped.acquire()
        self._work, self._client = work, Client(world, self._stop)
        threading.Thread(target=self._run, daemon=True).start()
        self._stopped.acquire()

    def step(self) -> None:
        """Make the call at which it stands, and go on up to the next one."""
        self._go.release()
        self._stopped.acquire()

    def _stop(self) -> Fate:
        self._stopped.release()
        self._go.acquire()
        fate, self.fate = self.fate, Fate.DONE
        return fate

    def _run(self) -> None:
        try:
            self._work(self._client)
        except BaseException as error:  # the test's thread raises it
            self.error = error
        self.at_work = False
        self._stopped.release()


def run(world: World, works: Sequence[Work], choose: Choose) -> None:
    """Let writers work, in the order that is chosen call by call."""
    writers = [Writer(world, work) for work in works]
    try:
        while ready := [writer for writer in writers if writer.at_work]:
            choose(ready).step()
    finally:  # whoever chooses may have given up
        for writer in writers:
            while writer.at_work:
                writer.step()
    for writer in writers:
        if writer.error is not None:
            raise writer.error


def in_every_order(race: Callable[[Choose], None]) -> None:
    """Run a race in every order that there is."""
    path: list[tuple[int, int]] = []  # what was chosen, of how many
    while True:
        race(_follow(path))
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return
        path[-1] = (path[-1][0] + 1, path[-1][1])


def _follow(path: list[tuple[int, int]]) -> Choose:
    """Choose as the path says, and then always the first, which is added to the path."""
    numbers = count()

    def choose(ready: Sequence[Writer]) -> Writer:
        number = next(numbers)
        if number == len(path):
            path.append((0, len(ready)))
        return ready[path[number][0]]

    return choose


def drawn_order(
    data: st.DataObject, world: World, lags: st.SearchStrategy[Sequence[int]], failures: int = 0
) -> Choose:
    """Draws who is next, how listings lag then, and up to so many calls that fail."""
    fates = st.sampled_from([Fate.DONE] * 6 + [Fate.LOST, Fate.UNANSWERED])
    left = failures

    def choose(ready: Sequence[Writer]) -> Writer:
        nonlocal left
        number, world.lags = data.draw(st.tuples(st.integers(0, len(ready) - 1), lags))
        if left:
            ready[number].fate = data.draw(fates)
            left -= ready[number].fate is not Fate.DONE
        return ready[number]

    return choose


NO_LAG: st.SearchStrategy[Sequence[int]] = st.just((0,))
ONE_LAG: st.SearchStrategy[Sequence[int]] = st.tuples(st.integers(0, MAX_LAG))
OWN_LAGS: st.SearchStrategy[Sequence[int]] = st.lists(
    st.integers(0, MAX_LAG), min_size=1, max_size=6
)
CONSISTENT = pytest.mark.parametrize(
    ("exclusive", "lags"),
    [(True, NO_LAG), (False, NO_LAG), (False, ONE_LAG)],
    ids=["exclusive", "by the clock", "lagging"],
)
EXCLUSIVE = pytest.mark.parametrize("exclusive", [True, False], ids=["exclusive", "by the clock"])

_ids = count()


def version(store: ObjectStore) -> SnapshotId:
    """A new version in a store; the order of IDs has nothing to do with that of their making."""
    snapshot = SnapshotId(hashlib.sha256(b"%d" % next(_ids)).digest())
    store.put(names.snapshot_name(snapshot), [b"a version"])
    return snapshot


class Branch:
    """The branch ``main``, and what those who moved it were told.

    Attributes:
        won: Where they saw it, and where they moved it.
        lost: The versions of those who were told of a conflict.
        unsure: The versions of those who were told that the store failed.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.won: list[tuple[Head | None, Head]] = []
        self.lost: list[SnapshotId] = []
        self.unsure: list[SnapshotId] = []
        self._versions: list[SnapshotId] = []

    def writer(self, moves: int, *, again: bool = False) -> Work:
        """Moves it some times from where it is; `again` repeats calls that fail."""

        def work(client: Client) -> None:
            store = RetryStore(client, sleep=lambda _: None) if again else client
            for _ in range(moves):
                with suppress(StoreError):
                    self.move(store, Refs(store).head("main"))

        return work

    def move(self, store: ObjectStore, seen: Head | None) -> Head | None:
        """Move it from where it was seen to a new version; None if others were first."""
        snapshot = version(self.world)
        self._versions.append(snapshot)
        try:
            head = Refs(store).advance("main", seen, snapshot)
        except ConflictError as error:
            conflict = error
        except StoreError:
            self.unsure.append(snapshot)
            raise
        else:
            assert head.snapshot == snapshot
            self.won.append((seen, head))
            return head
        assert conflict.code is ErrorCode.REF_MOVED
        assert conflict.snapshot == snapshot
        self.lost.append(snapshot)
        return None

    def way(self) -> dict[int, SnapshotId]:
        """Where it was at each position, read from the objects themselves."""
        moves = defaultdict(list)
        for info in self.world.list("refs/heads/main/"):
            moves[int(info.name.split("/")[3][:12])].append((info.created, info.name))
        way = {}
        for position, names_ in moves.items():
            data = self.world.get(min(names_)[1])
            (way[position],) = (snapshot for snapshot in self._versions if bytes(snapshot) in data)
        return way

    def check(self, *, failures: bool = False) -> None:
        """Who was told that they moved it did, one at each position; and nothing is lost."""
        self.world.lags = (0,)
        way = self.way()
        assert sorted(way) == list(range(1, len(way) + 1))
        for seen, head in self.won:
            assert head.position == (seen.position + 1 if seen else 1)
            assert way[head.position] == head.snapshot
            assert seen is None or way[seen.position] == seen.snapshot
        winners = Counter(head.position for _, head in self.won)
        assert set(winners.values()) <= {1}
        unclaimed = {way[position] for position in way.keys() - winners.keys()}
        assert unclaimed <= {*self.lost, *self.unsure} if failures else not unclaimed
        self.check_end()
        if way:
            assert self.head() == Head("main", len(way), way[len(way)])

    def check_end(self) -> None:
        """No version is lost, readers agree, and who repeats a move on the head succeeds."""
        for snapshot in self._versions:
            assert self.world.exists(names.snapshot_name(snapshot))
        if not self.world.capabilities.exclusive_create:
            assert self.world.clashes == []
        world = self.world.copy()
        for snapshot in (*self.lost, *self.unsure, version(world)):
            refs = Refs(world)
            head = refs.advance("main", refs.head("main"), snapshot)
            assert refs.head("main") == head
            assert Refs(world).branches() == {"main": snapshot}

    def head(self) -> Head | None:
        return Refs(self.world).head("main")

    def copy(self) -> Branch:
        """The same branch in another world; nobody was told anything there."""
        other = Branch(self.world.copy())
        other._versions = list(self._versions)
        return other


def branch(*, exclusive: bool, moves: int = 0) -> Branch:
    """A branch that was moved some times already."""
    main = Branch(World(exclusive=exclusive))
    for _ in range(moves):
        main.move(main.world, main.head())
    return main


@pytest.mark.usefixtures("no_waiting")
class TestOneWinner:
    """Of those who move a branch from one position, one is told that they did, and only one."""

    @pytest.mark.parametrize("moves", [0, 2])
    @pytest.mark.parametrize(
        ("exclusive", "lag"), [(True, 0), (False, 0), (False, 1), (False, 2), (False, 3)]
    )
    def test_two_writers_in_every_order(self, exclusive: bool, lag: int, moves: int) -> None:
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
    def test_any_order(
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
    def test_any_order_with_failures(
        self,
        data: st.DataObject,
        exclusive: bool,
        lags: st.SearchStrategy[Sequence[int]],
        again: list[bool],
    ) -> None:
        """Whose answer was lost may be told of a conflict with themselves, but not the opposite."""
        main = branch(exclusive=exclusive)
        works = [main.writer(2, again=each) for each in again]
        run(main.world, works, drawn_order(data, main.world, lags, failures=3))
        main.check(failures=True)

    @EXCLUSIVE
    def test_two_who_move_it_to_one_version(self, exclusive: bool) -> None:
        """Where the store cannot tell them apart, both did."""

        def race(choose: Choose) -> None:
            main = branch(exclusive=exclusive, moves=1)
            seen, snapshot = main.head(), version(main.world)
            told = []

            def move(client: Client) -> None:
                try:
                    told.append(Refs(client).advance("main", seen, snapshot))
                except ConflictError as error:
                    assert error.snapshot == snapshot  # noqa: PT017  not every order raises it

            run(main.world, [move, move], choose)
            assert told == [Head("main", 2, snapshot)] * (1 if exclusive else 2)
            assert main.head() == told[0]

        in_every_order(race)


@pytest.mark.usefixtures("no_waiting")
class TestObjectsThatLagOnTheirOwn:
    """A listing may show what was added later, and not what was added before it.

    This is where the promise ends: two writers may both be told that they moved the branch. Readers
    still agree on one of them, nothing is overwritten, and both versions are there.
    """

    @given(data=st.data(), moves=st.lists(st.integers(1, 3), min_size=2, max_size=4))
    def test_readers_agree(self, data: st.DataObject, moves: list[int]) -> None:
        main = branch(exclusive=False, moves=1)
        works = [main.writer(number) for number in moves]
        run(main.world, works, drawn_order(data, main.world, OWN_LAGS))
        main.world.lags = (0,)
        told = {head.snapshot for _, head in main.won} | set(main.unsure)
        head = main.head()
        assert head is not None
        assert head.snapshot in told
        assert {main.head() for _ in range(3)} == {head}
        assert Refs(main.world).branches() == {"main": head.snapshot}
        main.check_end()

    def test_two_may_win(self) -> None:
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
    """A tag has one target, and who was told that they made it sees that one."""

    def make(self, world: World, targets: Sequence[SnapshotId], choose: Choose) -> list[SnapshotId]:
        """Make the tag several times at once; the targets of those who succeeded."""
        made: list[SnapshotId] = []

        def writer(target: SnapshotId) -> Work:
            def work(client: Client) -> None:
                try:
                    Refs(client).create_tag("v1", target)
                except ConflictError as error:
                    assert error.code is ErrorCode.ALREADY_EXISTS  # noqa: PT017
                else:
                    made.append(target)

            return work

        run(world, [writer(target) for target in targets], choose)
        world.lags = (0,)
        assert Refs(world).tags() == {"v1": made[0]}
        assert Refs(world).tag("v1") == made[0]
        assert len(list(world.list(names.TAGS))) == 1
        assert set(made) == {made[0]}
        return made

    @pytest.mark.parametrize(
        ("exclusive", "lag"), [(True, 0), (False, 0), (False, 1), (False, 2), (False, 3)]
    )
    def test_two_writers_in_every_order(self, exclusive: bool, lag: int) -> None:
        def race(choose: Choose) -> None:
            world = World(exclusive=exclusive)
            targets = [version(world), version(world)]
            world.lags = (lag,)
            assert len(self.make(world, targets, choose)) == 1

        in_every_order(race)

    @CONSISTENT
    @given(data=st.data(), targets=st.lists(st.integers(0, 2), min_size=2, max_size=4))
    def test_any_order(
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

    def test_a_conflict_with_one_that_is_not_listed_yet(self) -> None:
        """Whoever has seen it once does not take it for made because it does not show again."""
        world = World(exclusive=False)
        targets = [version(world), version(world)]

        def writer(target: SnapshotId) -> Writer:
            return Writer(world, lambda client: Refs(client).create_tag("v1", target))

        first, late = map(writer, targets)
        late.step()  # there is none yet
        while first.at_work:
            first.step()
        for _ in range(3):  # puts its own, lists both, deletes its own
            late.step()
        world.lags = (len(world.names()) * MAX_LAG,)
        late.step()
        assert not late.at_work
        assert isinstance(late.error, ConflictError)
        world.lags = (0,)
        assert Refs(world).tags() == {"v1": targets[0]}

    @EXCLUSIVE
    def test_one_that_is_deleted_meanwhile(self, exclusive: bool) -> None:
        """Who is told that they made it did; who is told of a conflict did not."""
        ends = set()

        def race(choose: Choose) -> None:
            world = World(exclusive=exclusive)
            theirs, ours = version(world), version(world)
            Refs(world).create_tag("v1", theirs)
            told = []

            def delete(client: Client) -> None:
                Refs(client).delete_tag("v1")
                told.append("deleted")

            def create(client: Client) -> None:
                try:
                    Refs(client).create_tag("v1", ours)
                    told.append("made")
                except ConflictError:
                    told.append("conflict")

            run(world, [delete, create], choose)
            assert Refs(world).tag("v1") == (ours if "made" in told else None)
            ends.add(tuple(told))

        in_every_order(race)
        assert {("deleted", "made"), ("conflict", "deleted")} <= ends


@pytest.mark.usefixtures("no_waiting")
class TestDeletion:
    """A branch that is deleted, and maybe made anew, under a writer who is about to move it."""

    def race(self, main: Branch, moves: int, choose: Choose) -> tuple[bool, int]:
        """Move it while it is deleted and made anew with some moves; what of it succeeded."""
        before = main.head()
        late: list[Head | None] = []
        anew: list[Head | None] = [None]

        def delete(client: Client) -> None:
            Refs(client).delete_branch("main")
            for _ in range(moves):
                if (head := main.move(client, anew[-1])) is None:
                    return
                anew.append(head)

        def move(client: Client) -> None:
            with suppress(StoreError):  # its move was deleted before it was listed
                late.append(main.move(client, before))

        run(main.world, [move, delete], choose)
        # If both succeeded, deleting it under a writer was the mistake: either may be the head.
        heads = {head for head in (anew[-1], *late) if head is not None}
        assert main.head() in (heads if anew[-1] is not None else {None, *heads})
        main.check_end()
        return late not in ([], [None]), len(anew) - 1

    @EXCLUSIVE
    @pytest.mark.parametrize("moves", [0, 1])
    def test_every_order(self, exclusive: bool, moves: int) -> None:
        ends = set()

        def race(choose: Choose) -> None:
            ends.add(self.race(branch(exclusive=exclusive, moves=2), moves, choose))

        in_every_order(race)
        assert {(True, moves), (False, moves)} <= ends

    @given(data=st.data(), length=st.integers(1, 3), moves=st.integers(1, 4))
    def test_any_order(self, data: st.DataObject, length: int, moves: int) -> None:
        """Not with exclusive create: there moves of the old and the new branch share names."""
        main = branch(exclusive=False, moves=length)
        self.race(main, moves, drawn_order(data, main.world, NO_LAG))

    @EXCLUSIVE
    def test_readers_meanwhile(self, exclusive: bool) -> None:
        """They see the branch as it was, or none."""
        ends = set()

        def race(choose: Choose) -> None:
            main = branch(exclusive=exclusive, moves=2)
            before = main.head()
            assert before is not None

            def read(client: Client) -> None:
                head, heads = Refs(client).head("main"), Refs(client).branches()
                assert head in (None, before)
                assert heads in ({}, {"main": before.snapshot})
                ends.add((head is None, heads == {}))

            run(main.world, [lambda client: Refs(client).delete_branch("main"), read], choose)

        in_every_order(race)
        assert ends == {(False, False), (False, True), (True, True)}

    @EXCLUSIVE
    def test_two_who_delete_it(self, exclusive: bool) -> None:
        def race(choose: Choose) -> None:
            main = branch(exclusive=exclusive, moves=2)

            def delete(client: Client) -> None:
                with suppress(NotFoundError):
                    Refs(client).delete_branch("main")

            run(main.world, [delete, delete], choose)
            assert main.head() is None
            main.check_end()

        in_every_order(race)


@pytest.mark.usefixtures("no_waiting")
class TestPruning:
    """Of a long branch the last moves stay; who is far behind is told, as everybody is."""

    BEHIND = (0, 1, 2, 49, 98, 99, 100, 101, 150, 198)  # positions that somebody may have seen

    @EXCLUSIVE
    def test_length(self, exclusive: bool) -> None:
        main = branch(exclusive=exclusive)
        heads: list[Head | None] = [None]
        lengths = []
        for _ in range(350):
            heads.append(main.move(main.world, heads[-1]))
            lengths.append(len(list(main.world.list(names.HEADS))))
        assert sorted(main.way()) == list(range(201, 351))
        assert max(lengths) == 199
        assert min(lengths[200:]) == 100
        before = list(main.world.list(names.HEADS))
        for seen in heads[:-1]:  # one is 150 moves behind, one is at a position that is gone
            assert main.move(main.world, seen) is None
        assert list(main.world.list(names.HEADS)) == before
        main.check_end()

    @EXCLUSIVE
    def test_who_is_behind_while_it_is_pruned(self, exclusive: bool) -> None:
        """They come between two deletions with all that they do."""
        main = branch(exclusive=exclusive, moves=199)
        heads = self.heads(main)
        pruner = Writer(main.world, lambda client: main.move(client, heads[199]))
        while True:
            for position in self.BEHIND:
                other = main.copy()
                assert other.move(other.world, heads.get(position)) is None
            if not pruner.at_work:
                break
            pruner.step()
        assert pruner.error is None
        assert sorted(main.way()) == list(range(101, 201))

    @EXCLUSIVE
    @pytest.mark.parametrize("position", BEHIND)
    def test_who_looks_while_it_is_pruned(self, exclusive: bool, position: int) -> None:
        """They have put their move before, and see what came of it between two deletions."""
        long = branch(exclusive=exclusive, moves=199)
        heads = self.heads(long)
        for steps in (1, 2, 3, 4, 5, 6, 50, 98, 99, 100, 101, 102):
            main = long.copy()
            pruner = Writer(main.world, partial(main.move, seen=heads[199]))
            late = Writer(main.world, partial(main.move, seen=heads.get(position)))
            late.step()
            for _ in range(steps):
                pruner.step()
            for writer in (late, pruner):
                while writer.at_work:
                    writer.step()
                assert writer.error is None
            assert len(main.lost) == 1
            assert sorted(main.way()) == list(range(101, 201))

    def heads(self, main: Branch) -> dict[int, Head]:
        return {head.position: head for _, head in main.won}


def commit_at_once(open_repo: Callable[[], Repository], commits: int) -> None:
    """Several clients commit so many versions to one branch; each gets there, and once."""
    waiting = Queue[int]()
    for number in range(commits):
        waiting.put(number)

    def work(_: int) -> None:
        with open_repo() as repo:
            while True:
                try:
                    number = waiting.get_nowait()
                except Empty:
                    return
                while True:
                    try:
                        repo.commit({"number": number}, message=str(number))
                        break
                    except ConflictError as error:
                        assert error.snapshot is not None  # noqa: PT017

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, range(WRITERS)))
    with open_repo() as repo:
        deadline = time.monotonic() + 10
        while len(log := list(repo.log())) < commits and time.monotonic() < deadline:
            time.sleep(0.1)  # until listings show it
        assert sorted(int(snapshot.message) for snapshot in log) == list(range(commits))
        assert {repo.load(snapshot)["number"] for snapshot in log} == set(range(commits))


class TestLocalHub:
    """The same with the real client of the Hub, and threads that nobody controls."""

    @pytest.fixture
    def hub(self) -> Iterator[LocalHub]:
        with LocalHub() as hub:
            hub.create_bucket("me/weights")
            yield hub

    @pytest.mark.parametrize("lag", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
    def test_refs_in_the_bucket(self, hub: LocalHub, lag: float) -> None:
        casweights.open(self.store(hub), create=True).close()
        hub.conditions = Conditions(listing_lag=lag)
        commit_at_once(lambda: casweights.open(self.store(hub), workers=1), COMMITS)

    def test_refs_in_a_repository(self, hub: LocalHub) -> None:
        config = StoreConfig(refs="datasets/me/refs")
        casweights.open(self.store(hub), create=True, config=config).close()
        commit_at_once(lambda: casweights.open(self.store(hub), workers=1), COMMITS)
        assert not [info for info in self.store(hub).list() if info.name.startswith("refs/")]

    def store(self, hub: LocalHub) -> HubStore:
        return HubStore("me/weights", "run", endpoint=hub.url)
