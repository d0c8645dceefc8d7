"""Run writers that move one ref concurrently, in every order that a scheduler could choose.

Each writer is a thread that stops before every call of the store, and one writer at a time
continues. Hypothesis draws which one, so that failures shrink, or a test enumerates all orders.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from casweights.database.moves import Head, Version, version_in
from casweights.database.refs import Refs
from casweights.database.version_names import VersionNames
from casweights.errors import ConflictError, ErrorCode, StoreError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.stores.base import Capabilities, ObjectInfo, ObjectStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.system.buffers import Buffer

    Work = Callable[["Client"], object]
    Choose = Callable[[Sequence["Writer"]], "Writer"]

WHOLE = False  # whether moves are whole where that is possible; `each_kind` sets it
MAX_LAG = 5  # calls; fewer than the listings for which a writer waits for its own move
MAX_SKEW = 1000  # calls; more than any test makes


def seen_now() -> None:
    """What a move relies on was seen just now, see `Refs.advance`."""


class World(MemoryStore):
    """A store that all writers share, with its history and a clock.

    The clock ticks at every change and listing. The history allows listings to lag.

    Attributes:
        lags: Ticks by which listings lag, cyclically for each object. With a single number, a
            listing shows the whole store at an earlier time.
        skews: Ticks by which the servers' clocks are off, cyclically for each object.
        clashes: Names of existing objects that were put again with other bytes.
    """

    def __init__(self, *, exclusive: bool) -> None:
        super().__init__()
        self.capabilities = Capabilities(exclusive_create=exclusive, clock_skew=0.0)
        self.lags: Sequence[int] = (0,)
        self.skews: Sequence[int] = (0,)
        self.clashes: list[str] = []
        self._now = 0
        self._past: dict[str, list[tuple[int, bool]]] = {}  # (tick, whether it exists)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        created = super().put(name, parts)
        if created:
            self._note(name, exists=True)
        elif self.get(name) != b"".join(parts):
            self.clashes.append(name)
        return created

    def delete(self, name: str) -> None:
        existed = self.exists(name)
        super().delete(name)
        if existed:
            self._note(name, exists=False)

    def _note(self, name: str, *, exists: bool) -> None:
        self._now += 1
        self._past.setdefault(name, []).append((self._now, exists))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._now += 1
        infos = []
        for number, (name, changes) in enumerate(self._past.items()):
            if not name.startswith(prefix):
                continue
            seen = self._now - self.lags[number % len(self.lags)]
            moment, exists = next((c for c in reversed(changes) if c[0] <= seen), (0, False))
            if exists:
                skewed = MAX_SKEW + moment + self.skews[number % len(self.skews)]
                skewed = skewed * 1000 + number  # distinct for each object
                created = 0 if self.capabilities.exclusive_create else skewed
                infos.append(ObjectInfo(name, 0, created))
        return iter(sorted(infos, key=lambda info: info.name))

    def names(self) -> Sequence[str]:
        """Return the names of all objects that ever existed, in the order of `lags`."""
        return list(self._past)

    def copy(self, name: str, new_name: str) -> bool:
        return self.put(new_name, [self.get(name)])

    def holds(self, snapshot: SnapshotId) -> bool:
        """Return whether a version is in the store, without a look that advances the clock."""
        objects, name = self._objects, names.snapshot_name(snapshot)
        return name in objects or any(version_in(move) == snapshot for move in objects)

    def clone(self) -> World:
        other = World(exclusive=self.capabilities.exclusive_create)
        other._objects = dict(self._objects)
        other.skews = self.skews
        other._now, other._past = self._now, {n: list(c) for n, c in self._past.items()}
        return other


class Fate(Enum):
    """The outcome of a call."""

    DONE = "done"
    LOST = "the call does not reach the store"
    UNANSWERED = "the call is done, but its answer is lost"


class Client(WrapperStore):
    """The store of one writer, in which every call waits for the writer's turn."""

    def __init__(self, world: World, stop: Callable[[], Fate]) -> None:
        super().__init__(world)
        self._stop = stop

    batch = ObjectStore.batch
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
    """A thread that runs up to its next call of the store each time that `step` is called.

    Attributes:
        at_work: Whether the thread is waiting before a call.
        fate: Outcome of this call.
        error: The exception that the work raised.
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
        """Make the call before which the thread waits, and run up to the next one."""
        self._go.release()
        self._stopped.acquire()

    def _stop(self) -> Fate:
        if not self.at_work:  # the test uses the writer's objects after the race
            return Fate.DONE
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
    """Run writers to their end, in the order that `choose` decides call by call."""
    writers = [Writer(world, work) for work in works]
    try:
        while ready := [writer for writer in writers if writer.at_work]:
            choose(ready).step()
    finally:  # `choose` may have raised
        for writer in writers:
            while writer.at_work:
                writer.step()
    for writer in writers:
        if writer.error is not None:
            raise writer.error


def in_every_order(race: Callable[[Choose], None]) -> None:
    """Run a race in every possible order."""
    path: list[tuple[int, int]] = []  # (choice, number of options)
    while True:
        race(_follow(path))
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return
        path[-1] = (path[-1][0] + 1, path[-1][1])


def _follow(path: list[tuple[int, int]]) -> Choose:
    """Return a function that chooses as `path` says, then always the first, and extends `path`."""
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
    """Draw the next writer, the lag of listings, and up to `failures` calls that fail."""
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


@pytest.fixture(params=["named", "whole"])
def each_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with moves that name versions, and then with whole ones."""
    whole = request.param == "whole"
    if whole and request.node.callspec.params.get("exclusive"):
        pytest.skip("with exclusive create no move is whole")
    monkeypatch.setattr("tests.racing.WHOLE", whole)


def new_id() -> SnapshotId:
    """Return the ID of a new version: a hash, so that the order of IDs is not that of creation."""
    return SnapshotId(hashlib.sha256(b"%d" % next(_ids)).digest())


def version(store: ObjectStore) -> SnapshotId:
    """Add a version to a store."""
    snapshot = new_id()
    store.put(names.snapshot_name(snapshot), [b"a version"])
    return snapshot


def refs_in(store: ObjectStore) -> Refs:
    return Refs(VersionNames(store))


class Branch:
    """The branch ``main``, and the results that its writers received.

    Attributes:
        won: For each acknowledged move, the head before it and the head after it.
        lost: Versions whose writers received a conflict.
        unsure: Versions whose writers received an error of the store.
        never: Those of `unsure` that did not reach the store.
        told: Versions whose writers learnt that they were displaced.
        handles: For each acknowledged version, the `Refs` that moved the branch.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.won: list[tuple[Head | None, Head]] = []
        self.lost: list[SnapshotId] = []
        self.unsure: list[SnapshotId] = []
        self.never: set[SnapshotId] = set()
        self.told: set[SnapshotId] = set()
        self.handles: dict[SnapshotId, Refs] = {}
        self._before: dict[SnapshotId, SnapshotId | None] = {}

    def writer(self, moves: int, *, again: bool = False) -> Work:
        """Return work that moves the branch `moves` times; `again` repeats calls that fail."""

        def work(client: Client) -> None:
            refs = refs_in(RetryStore(client, sleep=lambda _: None) if again else client)
            for _ in range(moves):
                with suppress(StoreError):
                    is_told, head = self.look(refs)
                    if not is_told:
                        self.move(refs, head)

        return work

    def look(self, refs: Refs) -> tuple[bool, Head | None]:
        """Return whether the writer learns that it was displaced, and otherwise the head."""
        try:
            return False, refs.head("main", for_update=True)
        except ConflictError as error:
            assert error.code is ErrorCode.REF_MOVED  # noqa: PT017
            assert error.snapshot is not None  # noqa: PT017
            self.told |= set(self.history(error.snapshot))
            return True, None

    def move(self, through: ObjectStore | Refs, seen: Head | None) -> Head | None:
        """Move the branch from `seen` to a new version; return None after a conflict."""
        refs = through if isinstance(through, Refs) else refs_in(through)
        whole = WHOLE and refs.takes_versions
        snapshot = new_id() if whole else version(self.world)
        self._before[snapshot] = seen.snapshot if seen else None
        try:
            head = refs.advance(
                "main", seen, snapshot, Version([b"a"]) if whole else None, ready=seen_now
            )
        except ConflictError as error:
            conflict = error
        except StoreError:
            self.unsure.append(snapshot)
            if not self.world.holds(snapshot):
                self.never.add(snapshot)
            raise
        else:
            assert head.snapshot == snapshot
            self.won.append((seen, head))
            self.handles[snapshot] = refs
            return head
        assert conflict.code is ErrorCode.REF_MOVED
        assert conflict.snapshot == snapshot
        self.lost.append(snapshot)
        if "displaced" in conflict.message:
            named = [each for each in self._before if str(each) in conflict.message]
            self.told.update(*map(self.history, named))
        return None

    def history(self, snapshot: SnapshotId | None) -> Sequence[SnapshotId]:
        """Return a version and all versions before it."""
        found = []
        while snapshot is not None:
            found.append(snapshot)
            snapshot = self._before[snapshot]
        return found

    def check(self, *, failures: bool = False) -> None:
        """Assert that acknowledged moves are in the log, one per position; nothing is lost."""
        self.world.lags = (0,)
        head = self.head()
        log = self.history(head.snapshot if head else None)
        self.check_winners(log)
        assert {moved.snapshot for _, moved in self.won} <= set(log)
        if not failures:
            assert refs_in(self.world).displaced() == {}
            assert not {*self.lost} & {*log}
        self.check_end()

    def check_winners(self, log: Sequence[SnapshotId]) -> None:
        """Assert that acknowledged moves follow their `seen`, with unique positions in the log."""
        for seen, moved in self.won:
            assert moved.position == (seen.position + 1 if seen else 1)
        winners = Counter(moved.position for _, moved in self.won if moved.snapshot in log)
        assert set(winners.values()) <= {1}

    def check_end(self) -> None:
        """Assert that no version is lost, readers agree, and repeated moves succeed."""
        assert all(map(self.world.holds, self._before.keys() - self.never))
        if not self.world.capabilities.exclusive_create:
            assert self.world.clashes == []
        world = self.world.clone()
        unsure = set(self.unsure) - self.never
        for snapshot in (*self.lost, *unsure, version(world)):
            refs = refs_in(world)
            head = refs.advance(
                "main", refs.head("main", for_update=True), snapshot, ready=seen_now
            )
            assert refs.head("main") == head
            assert refs_in(world).branches() == {"main": snapshot}

    def positions(self) -> Sequence[int]:
        """Return the positions of all moves."""
        return [int(info.name.split("/")[3][:12]) for info in self.world.list("refs/heads/main/")]

    def head(self) -> Head | None:
        return refs_in(self.world).head("main")

    def copy(self) -> Branch:
        """Return the same branch in a copy of the world, without results of writers."""
        other = Branch(self.world.clone())
        other._before = dict(self._before)
        return other


def branch(*, exclusive: bool, moves: int = 0) -> Branch:
    """Return a branch that was moved `moves` times."""
    main = Branch(World(exclusive=exclusive))
    for _ in range(moves):
        main.move(main.world, main.head())
    return main
