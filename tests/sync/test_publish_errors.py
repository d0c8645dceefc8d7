"""A publisher that the store, another writer or the caller interrupts."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest

from casweights import Publisher, Reporter
from casweights.errors import ConflictError, InvalidInputError, StoreError
from casweights.sync import changes as changes_module
from casweights.sync import state_copy
from tests.sync.states import (
    CHUNK,
    PATIENCE,
    Listener,
    State,
    Trouble,
    assert_history,
    copied,
    noise,
    nudge,
    open_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.sync.publisher import Compare

compared = pytest.mark.parametrize("compare", ["host", "cache"])

# The call at which a version fails, and whether the version is the head nevertheless.
FAILURES = {
    "snapshot": ("put", "snapshots/", False, False),
    "snapshot, answer lost": ("put", "snapshots/", True, False),
    "ref": ("put", "refs/", False, False),
    "ref, answer lost": ("put", "refs/", True, True),
    "listing after the ref": ("list", "refs/heads/main/", False, True),
}
failures = pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)


class Run:
    """A publisher on a store that fails, and the states passed to it."""

    def __init__(self, **options: Any) -> None:
        self.objects = Trouble()
        self.store = open_store(self.objects)
        self.publisher = Publisher(self.store, **options)
        self.state: State = {"w": noise(3 * CHUNK // 2), "v": noise(2 * CHUNK // 2, seed=1)}
        self.states: dict[int, State] = {}

    def publish(self, step: int, *, at: int | None = None) -> None:
        """Change some elements, one of them at a position of this step alone, and publish."""
        nudge(self.state["w"][: CHUNK // 2], 3, seed=step)
        self.state["v"][step if at is None else at] += 1
        self.states[step] = copied(self.state)
        self.publisher.publish(self.state, step=step)

    def again(self, step: int) -> None:
        """Publish the present state again."""
        self.publisher.publish(self.state, step=step)

    def fail(self, method: str, prefix: str, after: bool, landed: bool) -> None:
        """Make the next call of this kind fail; if it has landed, reading the branch as well."""
        self.objects.fail(method, prefix, after=after)
        if landed:
            self.objects.fail("list", "refs/heads/main/")

    def failed(self, call: Callable[[], object]) -> None:
        """Check that a call raises the error of the store."""
        with pytest.raises(StoreError, match="the network is gone"):
            call()

    def check(self, *steps: int) -> None:
        """Close, and check that the branch has exactly these versions."""
        self.publisher.close()
        assert_history(self.store, {step: self.states[step] for step in steps})
        self.store.close()


@compared
@failures
@pytest.mark.parametrize("how", ["publish", "wait", "close"])
def test_a_failure_is_raised_once_and_the_next_version_includes_its_changes(
    compare: Compare, failure: tuple[str, str, bool, bool], how: str
) -> None:
    method, prefix, after, landed = failure
    run = Run(compare=compare)
    run.publish(0)
    first = run.publisher.wait()
    run.fail(method, prefix, after, landed)
    run.publish(1)
    if how == "publish":
        with run.publisher._handoff._state:
            assert run.publisher._handoff._state.wait_for(
                lambda: run.publisher._handoff._failures, PATIENCE
            )
        run.failed(lambda: run.again(2))
    else:
        run.failed(run.publisher.wait if how == "wait" else run.publisher.close)
    assert run.publisher.version == (first and first.id)  # the last known version
    if how == "close":
        run.publisher = Publisher(run.store, compare=compare)
        if landed:
            assert run.publisher.version != (first and first.id)
    run.publish(2)
    run.publisher.wait()
    run.check(*([0, 1, 2] if landed else [0, 2]))


@compared
@failures
def test_the_changes_of_a_failed_first_version_are_in_the_next_one(
    compare: Compare, failure: tuple[str, str, bool, bool]
) -> None:
    method, prefix, after, landed = failure
    run = Run(compare=compare)
    run.fail(method, prefix, after, landed)
    run.publish(0)
    run.failed(run.publisher.wait)
    run.publish(1)
    run.check(*([0, 1] if landed else [1]))


@compared
def test_a_version_that_landed_in_spite_of_an_error_is_no_failure(compare: Compare) -> None:
    run = Run(compare=compare)
    run.objects.fail("put", "refs/", after=True)
    run.publish(0)
    run.publisher.wait()
    run.objects.fail("list", "refs/heads/main/")
    run.publish(1)
    run.publisher.wait()
    run.check(0, 1)


@compared
def test_failures_in_a_row_are_raised_one_by_one(compare: Compare) -> None:
    run = Run(compare=compare)
    run.publish(0)
    run.publisher.wait()
    for step in range(1, 6):
        run.objects.fail("put", ["refs/", "snapshots/"][step % 2])
        run.publish(step)
        run.failed(run.publisher.wait)
    run.publish(6)
    run.check(0, 6)


def test_changes_that_were_undone_since_a_failure_are_not_counted() -> None:
    listener = Listener()
    run = Run(reporter=listener)
    run.publish(0)
    run.publisher.wait()
    run.objects.fail("put", "refs/")
    before = copied(run.state)
    run.publish(1)
    run.failed(run.publisher.wait)
    for name, tensor in before.items():
        run.state[name].copy_(tensor)
    run.again(2)
    run.states[2] = before
    run.check(0, 2)
    assert [stats.changed_elements for stats in listener.stats] == [None, 0]


def test_a_waiting_version_includes_the_changes_of_a_failed_one() -> None:
    run = Run(policy="skip-to-latest")
    run.publish(0)
    run.publisher.wait()
    run.objects.hold("snapshots/")
    run.publish(1)
    run.objects.reached()
    run.publish(2)
    run.publish(3)
    run.objects.fail("put", "snapshots/")
    run.objects.release()
    run.failed(run.publisher.wait)
    run.check(0, 3)


@pytest.mark.parametrize("times", [1, 2])
def test_a_version_in_doubt_is_settled_when_the_store_returns(times: int) -> None:
    run = Run()
    run.publish(0)
    run.publisher.wait()
    run.fail("put", "refs/", after=True, landed=True)  # it is the head, unknown to all
    run.publish(1)
    run.failed(run.publisher.wait)
    for step in range(2, 2 + times):  # their changes are in no version that was tried
        run.objects.fail("list", "refs/heads/")
        run.publish(step)
        run.failed(run.publisher.wait)
    run.publish(9)
    run.check(0, 1, 9)


def test_a_version_in_doubt_is_settled_before_a_change_of_layout() -> None:
    run = Run()
    run.publish(0)
    run.publisher.wait()
    run.fail("put", "refs/", after=True, landed=True)
    run.publish(1)
    run.failed(run.publisher.wait)
    run.state["more"] = noise(9)
    run.publish(2)
    run.publish(3)
    run.check(0, 1, 2, 3)


def test_a_change_of_layout_fails_while_a_version_is_in_doubt() -> None:
    run = Run()
    run.publish(0)
    run.publisher.wait()
    run.fail("put", "refs/", after=True, landed=True)
    run.publish(1)
    run.failed(run.publisher.wait)
    run.state["more"] = noise(9)
    run.objects.fail("list", "refs/heads/")
    run.failed(lambda: run.publish(2))
    run.publish(3)
    run.check(0, 1, 3)


class StopError(Exception):
    """Interrupts a scan."""


def interrupt(patch: pytest.MonkeyPatch, error: type[BaseException], call: int) -> None:
    """Make the search for changes fail once, at this call counted from now."""
    find, calls = changes_module.find_change, iter(range(1, 10**6))

    def failing(*args: Any) -> Any:
        if next(calls) == call:
            raise error
        return find(*args)

    patch.setattr(state_copy, "find_change", failing)


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize("in_doubt", [False, True])
def test_a_scan_that_fails_halfway_loses_only_its_own_state(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], call: int, in_doubt: bool
) -> None:
    run = Run()
    run.publish(0)
    run.publisher.wait()
    if in_doubt:
        run.fail("put", "refs/", after=True, landed=True)
    run.publish(1)
    if in_doubt:
        run.failed(run.publisher.wait)
    run.publisher.wait()
    interrupt(monkeypatch, error, call)
    with pytest.raises(error):
        run.publish(2)
    run.publish(3)
    run.publish(4)
    run.check(0, 1, 3, 4)


def test_a_scan_that_fails_halfway_reports_the_waiting_state_as_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(policy="skip-to-latest")
    run.objects.hold("snapshots/")
    run.publish(0)
    run.objects.reached()
    run.publish(1)
    interrupt(monkeypatch, StopError, 3)
    with pytest.raises(StopError):
        run.publish(2)
    run.objects.release()
    with pytest.raises(InvalidInputError, match="step 1 was not published"):
        run.publisher.wait()
    run.publish(3)
    run.check(0, 3)


@compared
def test_a_branch_that_another_writer_moved_raises_a_conflict_in_every_call(
    compare: Compare,
) -> None:
    run = Run(compare=compare)
    run.publish(0)
    run.publisher.wait()
    theirs = run.store.commit({"w": noise(7)}, metadata={"step": 100})
    run.publish(1)
    for _ in range(2):
        with pytest.raises(ConflictError, match="moved or deleted by another writer"):
            run.publisher.wait()
        with pytest.raises(ConflictError) as caught:
            run.again(1)
    assert caught.value.snapshot is not None
    assert run.store.load(caught.value.snapshot).keys() == run.state.keys()  # it is kept
    assert run.store.branches() == {"main": theirs.id}
    with pytest.raises(ConflictError):
        run.publisher.close()
    run.publisher = Publisher(run.store, compare=compare)
    assert run.publisher.version == theirs.id
    run.states[100] = run.store.load(theirs)
    run.publish(2)
    run.check(0, 100, 2)


def test_nothing_follows_a_conflict() -> None:
    run = Run()
    run.publish(0)
    run.publisher.wait()
    run.objects.hold("refs/")
    run.publish(1)
    run.objects.reached()
    run.publish(2)  # waits
    with open_store(run.objects.inner) as other:
        theirs = other.commit({"w": noise(7)}, metadata={"step": 100})
    run.objects.calls.clear()
    run.objects.release()
    with pytest.raises(ConflictError) as caught:
        run.publisher.wait()
    assert not [name for _, name in run.objects.calls if name.startswith("snapshots/")]
    with pytest.raises(ConflictError) as again, run.publisher:
        run.again(3)
    assert again.value is caught.value
    assert not hasattr(again.value, "__notes__")  # it is not a note of itself
    assert run.store.branches() == {"main": theirs.id}


def test_a_reporter_that_fails_loses_no_version() -> None:
    class Broken(Reporter):
        def published(self, stats: object) -> None:
            raise StopError

    run = Run(reporter=Broken())
    for step in range(2):
        run.publish(step)
        with pytest.raises(StopError):
            run.publisher.wait()
    run.check(0, 1)


def test_errors_do_not_keep_copies_of_the_model() -> None:
    run = Run()
    run.objects.fail("put", "snapshots/")
    run.publish(0)
    run.failed(run.publisher.wait)
    assert run.publisher._handoff.mirror is not None
    old = weakref.ref(run.publisher._handoff.mirror)
    run.state["more"] = noise(9)
    run.publish(1)
    run.publisher.wait()
    assert old() is None
    run.check(1)
