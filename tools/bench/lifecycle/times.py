"""Compare times in a directory with many versions and in one with few."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

import casweights
from casweights import Publisher, Subscriber
from tools.bench.harness import pair
from tools.bench.histories import SHARE, small_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tools.bench.harness import Result
    from tools.bench.histories import Run

TIME = 1.3


class _Timed(NamedTuple):
    """A call to time, and a call that prepares it."""

    prepare: Callable[[], object]
    run: Callable[[], object]


class _Side:
    """A directory with the versions of a run, and the trainer's model.

    Args:
        run: The run whose versions the directory contains.
        folder: An empty folder for the directory.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.directory, self.out = folder / "store", folder / "out"
        run.store.write(self.directory)
        self._model = small_model(1)  # other random steps than in the run
        self._model.flat[:] = run.model.flat
        self.state = self._model.tensors()

    def step(self) -> None:
        """Train for one step."""
        self._model.step(SHARE)

    def open(self) -> casweights.Repository:
        """Open the store, as another process would."""
        return casweights.open(self.directory)


@contextmanager
def _commit(side: _Side) -> Iterator[_Timed]:
    with side.open() as store:
        yield _Timed(side.step, lambda: store.commit(side.state))


@contextmanager
def _first_commit(side: _Side) -> Iterator[_Timed]:
    def run() -> None:
        with side.open() as store:
            store.commit(side.state)

    yield _Timed(side.step, run)


@contextmanager
def _publish(side: _Side) -> Iterator[_Timed]:
    with Publisher(side.directory) as publisher:

        def run() -> None:
            publisher.publish(side.state)
            publisher.wait()

        yield _Timed(side.step, run)


@contextmanager
def _sync(side: _Side) -> Iterator[_Timed]:
    live = {name: torch.zeros_like(tensor) for name, tensor in side.state.items()}
    with side.open() as trainer, Subscriber(side.directory) as subscriber:
        subscriber.sync(live)

        def prepare() -> None:
            side.step()
            trainer.commit(side.state)

        yield _Timed(prepare, subscriber.sync)
        _check(live, side)


@contextmanager
def _checkout(side: _Side) -> Iterator[_Timed]:
    def run() -> None:
        with side.open() as store:
            store.checkout("main", side.out)

    yield _Timed(lambda: shutil.rmtree(side.out, ignore_errors=True), run)
    with side.open() as store:
        _check(store.load("main"), side)


@contextmanager
def _log(side: _Side) -> Iterator[_Timed]:
    def run() -> None:
        with side.open() as store:
            next(store.log())

    yield _Timed(lambda: None, run)


class _Processor:
    """A function whose calls note the seconds of processor time that they take in all threads.

    Args:
        run: The function.

    Attributes:
        seconds: Those of each call.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """Call the function."""
        begin = time.process_time()
        self._run()
        self.seconds.append(time.process_time() - begin)


def _check(found: dict[str, torch.Tensor], side: _Side) -> None:
    for name, tensor in side.state.items():
        if not torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)):
            raise AssertionError(f"{name} came back changed")


_OPERATIONS: dict[str, Callable[[_Side], AbstractContextManager[_Timed]]] = {
    "commit, store open": _commit,
    "commit, store just opened": _first_commit,
    "publish": _publish,
    "sync": _sync,
    "checkout": _checkout,
    "log -n 1": _log,
}


def row_times(many: Run, few: Run, count: int, work: Path, rounds: int) -> list[Result]:
    """Time every operation in fresh copies of both directories."""
    return [
        _compare(f"1 {name}", operation, many, few, count, work, rounds)
        for name, operation in _OPERATIONS.items()
    ]


def _compare(
    what: str,
    operation: Callable[[_Side], AbstractContextManager[_Timed]],
    many: Run,
    few: Run,
    count: int,
    work: Path,
    rounds: int,
) -> Result:
    with (
        tempfile.TemporaryDirectory(dir=work) as ours,
        tempfile.TemporaryDirectory(dir=work) as reference,
        operation(_Side(many, Path(ours))) as timed,
        operation(_Side(few, Path(reference))) as timed_reference,
    ):
        os.sync()  # so that no timed call waits for the copies
        spent = _Processor(timed.run), _Processor(timed_reference.run)
        found = pair(
            what,
            *spent,
            prepare=timed.prepare,
            prepare_reference=timed_reference.prepare,
            target=TIME,
            rounds=rounds,
            note=f"directories with {count:,} versions of a model of {few.model.nbytes / 1e6:.1f} "
            f"MB, of which a step changes {SHARE:.0%}; reference: 10 versions, and up to "
            f"{rounds + 2} more at the end. No other command ran",
        )
        many_ms, few_ms = (min(one.seconds) * 1e3 for one in spent)
        least = f"least processor times: {many_ms:.1f} and {few_ms:.1f} ms, {many_ms / few_ms:.2f}"
        return replace(found, note=f"{least}; {found.note}")
