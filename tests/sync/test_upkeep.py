"""Maintenance in the background of a publisher: it merges packs, and harms no step."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from casweights import Publisher
from casweights.errors import ErrorCode, InvalidInputError, StoreError
from casweights.format import names
from casweights.operations import maintain, merging
from casweights.stores.base import Capabilities, ObjectStore
from casweights.stores.cached import CachedStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.sync import upkeep
from casweights.sync.handoff import Handoff
from casweights.sync.upkeep import Upkeep
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.archived import archives, keep_few, own
from tests.histories import pack_names
from tests.lengths import moments
from tests.sync.states import (
    PATIENCE,
    Listener,
    State,
    Trouble,
    assert_history,
    copied,
    end_of_round,
    model,
    nudge,
    open_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights.results import PublishStats
    from casweights.stores.base import ObjectInfo
    from casweights.system.buffers import Buffer

EVERY, RECENT = 4, 2  # versions from one round to the next, and packs that are left alone


@pytest.fixture(autouse=True)
def _merges_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "_RECENT_PACKS", RECENT)
    monkeypatch.setattr(merging, "FAN_IN", 2)
    monkeypatch.setattr(merging, "LEVELS", (1 << 30,))


class Run:
    """A publisher's steps one after another, and the states that they published."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._state = model(chunks=1)
        self.states: dict[int, State] = {}

    def steps(self, number: int) -> None:
        """Publish this number of states, each with a pause for maintenance after it."""
        for _ in range(number):
            self.publish()
            self._publisher.wait()
            end_of_round()

    def publish(self) -> None:
        """Publish the next state."""
        step = len(self.states)
        nudge(self._state["a"], 3, seed=step)
        self.states[step] = copied(self._state)
        self._publisher.publish(self._state, step=step)


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("compare", ["host", "cache"])
def test_old_packs_are_merged_and_later_steps_find_everything(compare: Any) -> None:
    objects = Trouble()
    with open_store(objects) as store:
        with Publisher(store, maintain=EVERY, compare=compare) as publisher:
            run = Run(publisher)
            run.steps(EVERY)
            assert len(pack_names(objects)) == RECENT + 1
            objects.calls.clear()
            run.steps(EVERY - 1)
            assert ("list", "packs/") not in objects.calls, "the publisher knows the new pack"
            run.steps(1)
        assert len(pack_names(objects)) == RECENT + 1
        assert_history(store, run.states)
    with open_store(objects.inner) as store:
        assert_history(store, run.states)


@pytest.fixture
def _archives_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let maintenance archive all versions but the head."""
    keep_few(monkeypatch)


@pytest.mark.usefixtures("_archives_early")
@pytest.mark.parametrize("compare", ["host", "cache"])
def test_old_versions_are_archived_and_later_steps_find_everything(compare: Any) -> None:
    objects = Trouble()
    with open_store(objects) as store:
        with Publisher(store, maintain=EVERY, compare=compare) as publisher:
            run = Run(publisher)
            run.steps(EVERY)
            assert len(archives(objects)) == len(own(objects)) == len(pack_names(objects)) == 1
            objects.calls.clear()
            run.steps(EVERY - 1)
            assert ("list", "packs/") not in objects.calls, "the publisher knows the new pack"
            assert ("list", "versions/") not in objects.calls
            run.steps(1)
        assert len(own(objects)) == 1
        assert_history(store, run.states)
        assert not store.verify().problems
    with open_store(objects.inner) as store:
        assert_history(store, run.states)


@pytest.mark.usefixtures("_archives_early")
def test_new_versions_name_packs_instead_of_archived_snapshots() -> None:
    objects = MemoryStore()
    with open_store(objects) as store, Publisher(store, maintain=EVERY) as publisher:
        run = Run(publisher)
        run.steps(EVERY + 1)
        assert publisher.version is not None
        table = store.database.snapshots.load_stored(publisher.version).table
        assert set(map(names.pack_name, table.packs)) <= pack_names(objects) | own(objects)


@pytest.mark.usefixtures("packs_apart")
def test_new_versions_name_the_merged_packs() -> None:
    objects = MemoryStore()
    with open_store(objects) as store, Publisher(store, maintain=EVERY) as publisher:
        run = Run(publisher)
        run.steps(EVERY + 1)
        assert publisher.version is not None
        table = store.database.snapshots.load_stored(publisher.version).table
        assert {f"packs/{pack}" for pack in table.packs} <= pack_names(objects)


@pytest.mark.usefixtures("packs_apart")
def test_without_maintenance_every_pack_stays() -> None:
    objects = MemoryStore()
    with open_store(objects) as store, Publisher(store, maintain=False) as publisher:
        Run(publisher).steps(2 * EVERY)
        assert len(pack_names(objects)) == 2 * EVERY


@pytest.mark.usefixtures("packs_apart")
def test_rounds_come_by_the_number_of_the_version_also_after_restarts() -> None:
    objects = MemoryStore()
    with open_store(objects) as store:
        for _ in range(EVERY):
            with Publisher(store, maintain=EVERY) as publisher:
                Run(publisher).steps(1)
        assert len(pack_names(objects)) <= RECENT + 1


def test_maintenance_is_on_by_default_and_numbers_are_checked() -> None:
    assert [upkeep.interval(given) for given in (True, False, 0, 7)] == [
        upkeep.DEFAULT_EVERY,
        0,
        0,
        7,
    ]
    with open_store(MemoryStore()) as store, pytest.raises(InvalidInputError, match="maintain"):
        Publisher(store, maintain=-1)


class Broken(WrapperStore):
    """A store of which one call fails, counted from `arm` on.

    Attributes:
        number: Number of calls since then.
    """

    batch = ObjectStore.batch

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.number = 0
        self._failing = 0

    def arm(self, call: int) -> None:
        """Let a call fail; 0 for none."""
        self.number, self._failing = 0, call

    @contextmanager
    def _call(self) -> Iterator[None]:
        self.number += 1
        if self.number == self._failing:
            raise StoreError(ErrorCode.UNREACHABLE, "the network is gone")
        yield

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        with self._call():
            return super().put(name, parts)

    def size(self, name: str) -> int:
        with self._call():
            return super().size(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        with self._call():
            super().readinto(name, start, out)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._call():
            return super().list(prefix)

    def delete(self, name: str) -> None:
        with self._call():
            super().delete(name)


class Watcher(Listener):
    """Calls a function after each step, before maintenance can begin, and keeps warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[tuple[str, str]] = []
        self.after_step: Callable[[], object] = lambda: None

    def published(self, stats: PublishStats) -> None:
        super().published(stats)
        self.after_step()

    def warned(self, code: str, message: str) -> None:
        self.warnings.append((code, message))


@pytest.mark.parametrize("form", ["packs_apart", "_archives_early"])
def test_a_failure_at_any_call_of_maintenance_is_a_warning_and_the_next_round_succeeds(
    form: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(form)
    for call in moments(3, form):
        objects, watcher = Broken(MemoryStore()), Watcher()
        with open_store(objects) as store:
            with Publisher(store, maintain=EVERY, reporter=watcher) as publisher:
                run = Run(publisher)
                run.steps(EVERY - 1)
                watcher.after_step = lambda: objects.arm(call)  # noqa: B023  used in this round
                run.steps(1)
                calls = objects.number
                watcher.after_step = lambda: None
                objects.arm(0)
                run.steps(EVERY)
            failed = [code for code, _ in watcher.warnings]
            assert failed == [ErrorCode.UNREACHABLE] * (calls >= call)
            assert len(pack_names(objects)) <= RECENT + 1
            assert len(own(objects)) == (1 if form == "_archives_early" else 2 * EVERY)
            assert_history(store, run.states)
        if not failed:
            break
    assert call > 8, "the calls of a round"


def test_failures_in_a_row_leave_out_more_and_more_rounds() -> None:
    objects, watcher = Trouble(), Watcher()
    with (
        open_store(objects) as store,
        Publisher(store, maintain=1, reporter=watcher) as publisher,
    ):
        run, tried = Run(publisher), []

        def break_off() -> None:
            objects.calls.clear()
            objects.fail("list", "packs/")

        watcher.after_step = break_off
        for number in range(1, 17):
            run.steps(1)
            tried += [number] * (("list", "packs/") in objects.calls)
            objects.calm()
        # After failures, 0, 1, 3 and 7 rounds are left out.
        pauses = [b - a for a, b in pairwise(tried)]
        assert pauses == [1, 2, 4, 8][: len(pauses)]
        assert len(tried) >= 4
        assert "again" in watcher.warnings[0][1]


def test_a_step_that_is_ready_goes_first() -> None:
    """A round begins while a step waits: it does nothing until the step is durable."""
    objects, watcher = Trouble(), Watcher()
    with (
        open_store(objects) as store,
        Publisher(store, maintain=EVERY, reporter=watcher) as publisher,
    ):
        run = Run(publisher)
        run.steps(EVERY - 1)
        objects.hold("snapshots/")
        run.publish()
        objects.reached()
        run.publish()  # waits in the queue while the one before it is held
        watcher.after_step = lambda: objects.hold("snapshots/")
        objects.calls.clear()
        objects.release()
        objects.reached()
        assert len(watcher.stats) == EVERY, "the round has begun, and the next step is held"
        assert ("list", "packs/") not in objects.calls
        watcher.after_step = lambda: None
        objects.release()
        publisher.wait()
        end_of_round()
        assert ("list", "packs/") in objects.calls
        assert_history(store, run.states)


@pytest.mark.usefixtures("packs_apart")
def test_closing_leaves_a_hanging_upload_behind_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "_END_SECONDS", 0.01)
    objects, watcher = Trouble(), Watcher()
    with open_store(objects) as store:
        publisher = Publisher(store, maintain=EVERY, reporter=watcher)
        run = Run(publisher)
        run.steps(EVERY - 1)
        watcher.after_step = lambda: objects.hold("packs/")
        run.publish()
        publisher.wait()
        objects.reached()  # the merged pack
        before = pack_names(objects)
        publisher.close()
        assert pack_names(objects) == before
        objects.release()
        end_of_round()
        assert before < pack_names(objects), "it was written after all, and nothing was deleted"
        assert_history(store, run.states)
        with Publisher(store, maintain=1) as publisher:
            run = Run(publisher)
            run.steps(1)
        assert len(pack_names(objects)) == RECENT + 1
        assert_same_state(store.load("main"), run.states[0])
        assert not store.verify().problems


def test_no_slice_begins_after_close() -> None:
    objects, paused, going = Trouble(), threading.Event(), threading.Event()

    def pause(_: float) -> None:
        paused.set()
        assert going.wait(PATIENCE)

    with open_store(objects) as store:
        work = Upkeep(store.database, 1, pause)
        objects.calls.clear()
        work.stored(1, 0)
        assert paused.wait(PATIENCE)
        work.stop()
        going.set()
        work.close()
        end_of_round()
        assert objects.calls == []
        work.stored(2, 0)
        assert objects.calls == []


def test_a_pause_ends_with_the_steps_or_with_the_queue() -> None:
    queue = Handoff(replaces=False, check_open=lambda: None)
    queue.pause(0.0)  # nothing is in progress
    queue.acquire({})
    waiting = threading.Thread(target=queue.pause, args=[PATIENCE])
    waiting.start()
    assert waiting.is_alive()
    queue.abandon()
    waiting.join(PATIENCE / 2)
    assert not waiting.is_alive()
    queue.acquire({})
    waiting = threading.Thread(target=queue.pause, args=[PATIENCE])
    waiting.start()
    queue.close()
    waiting.join(PATIENCE / 2)
    assert not waiting.is_alive()


@pytest.mark.usefixtures("packs_apart")
def test_with_a_disk_cache_maintenance_downloads_nothing(tmp_path: Path) -> None:
    remote = CountingStore(MemoryStore())
    remote.capabilities = Capabilities(exclusive_create=True, cheap_reads=False)
    cached = CachedStore(remote, tmp_path, 1 << 30, "test")
    with open_store(cached) as store, Publisher(store, maintain=EVERY) as publisher:
        run = Run(publisher)
        run.steps(2 * EVERY)
        assert len(pack_names(remote)) <= RECENT + 2
        assert remote.read_bytes("packs/") == 0
        assert_history(store, run.states)
