"""Tests of thread pools with a bounded number of unfinished tasks."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from casweights.system.threads import (
    Background,
    Once,
    Recent,
    Workers,
    default_workers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=[1, 2, 5])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    pool = Workers(request.param)
    yield pool
    pool.close()


def test_map_keeps_the_order(workers: Workers) -> None:
    assert list(workers.map(lambda n: n * n, range(100))) == [n * n for n in range(100)]
    assert list(workers.map(str, [])) == []


def test_map_does_not_run_ahead(workers: Workers) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield n

    results = workers.map(lambda n: n, items())
    for n in range(20):
        assert next(results) == n
        assert taken - n <= 2 * workers.count + 1


def test_map_uses_all_threads(workers: Workers) -> None:
    together = threading.Barrier(workers.count, timeout=60)
    list(workers.map(lambda _: together.wait(), range(3 * workers.count)))


def test_map_raises_the_error_of_a_task(workers: Workers) -> None:
    def fail(n: int) -> int:
        if n == 7:
            raise LookupError("seven")
        return n

    results = workers.map(fail, range(100))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(LookupError, match="seven"):
        next(results)
    assert list(workers.map(str, range(3))) == ["0", "1", "2"]


def test_no_task_runs_after_a_map_was_closed(workers: Workers) -> None:
    running: set[int] = set()

    def work(n: int) -> int:
        running.add(n)
        threading.Event().wait(0.001)
        running.discard(n)
        return n

    results = workers.map(work, range(100))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not running


def test_the_default_number_of_workers_is_at_least_one() -> None:
    assert default_workers() >= 1


def test_background_waits_at_its_limit() -> None:
    background = Background(2)
    release, started = threading.Event(), threading.Semaphore(0)

    def task() -> None:
        started.release()
        release.wait(60)

    for _ in range(2):
        background.submit(task)
    for _ in range(2):
        assert started.acquire(timeout=60)
    third = threading.Thread(target=background.submit, args=[task])
    third.start()
    assert not started.acquire(timeout=0.05)
    release.set()
    assert started.acquire(timeout=60)
    third.join()
    background.finish()
    background.close()


def test_background_raises_the_error_of_a_task() -> None:
    def fail() -> None:
        raise OSError("disk")

    background = Background(1)
    background.submit(fail)
    with pytest.raises(OSError, match="disk"):
        background.submit(lambda: None)
    background.submit(fail)
    with pytest.raises(OSError, match="disk"):
        background.finish()
    background.close()


def test_once_calls_its_function_once_from_many_threads(workers: Workers) -> None:
    numbers = itertools.count(1)
    once = Once(lambda: next(numbers))
    assert list(workers.map(lambda _: once(), range(50))) == [1] * 50
    assert next(numbers) == 2


def test_once_calls_its_function_again_after_an_error() -> None:
    answers = iter([None, 7])

    def answer() -> int:
        found = next(answers)
        if found is None:
            raise OSError("not yet")
        return found

    once = Once(answer)
    with pytest.raises(OSError, match="not yet"):
        once()
    assert once() == once() == 7


def test_recent_keeps_the_latest_values_and_creates_others_again() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name.upper()

    recent = Recent(make, 2)
    assert [recent(name) for name in "abbabcca"] == list("ABBABCCA")
    assert made == ["a", "b", "c", "a"]
