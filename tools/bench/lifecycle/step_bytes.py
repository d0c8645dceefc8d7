"""Measure all bytes that a step adds to a store."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import safetensors
import torch

import casweights
from casweights.config import KiB
from casweights.stores.memory import MemoryStore
from tools.bench.encodings.data import to_bf16
from tools.bench.encodings.states import DTYPES, read_state
from tools.bench.encodings.synthetic import Synthetic
from tools.bench.harness import measured
from tools.bench.hub.clients import note_progress
from tools.bench.lifecycle.parts import Parts, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tools.bench.encodings.states import State
    from tools.bench.harness import Result

STEPS = 10


class _Rate(NamedTuple):
    """A learning rate of the real runs.

    Attributes:
        name: The rate.
        value: The same as a number.
        folder: The folder of the run in the data.
        target: Maximum bytes for each changed element.
        share: Share of the elements that a step of the real run changes; synthetic steps change as
            many.
    """

    name: str
    value: float
    folder: str
    target: float
    share: float


_RATES = (
    _Rate("1e-6", 1e-6, "family/rl", 1.02, 0.0028),
    _Rate("3e-6", 3e-6, "rl_3e-6", 0.92, 0.0062),
)
SMALL = 20_000  # tensors
_SMALL_ELEMENTS = 16  # of fp32: 64 bytes
_SMALL_BYTES = 4 * KiB


def real_steps(data: Path) -> list[Result]:
    """Measure steps of a real model in training; train it if the data lack them."""
    from tools.models import training  # with torch and transformers, which take seconds

    return [
        row
        for rate in _RATES
        for row in _rows(
            f"5 lr {rate.name}",
            training.rl_steps(data / rate.folder, rate=rate.value),
            rate.target,
            "real steps of all-MiniLM-L6-v2 in bf16",
        )
    ]


def stand_in_steps(work: Path, steps: int) -> list[Result]:
    """Measure synthetic steps of the real model."""
    return [
        row
        for rate in _RATES
        for row in _rows(
            f"5 stand-in for lr {rate.name}",
            _made_up(work / "model.safetensors", rate.share, steps),
            rate.target,
            "A STAND-IN: the weights of all-MiniLM-L6-v2 in bf16 under synthetic steps, which "
            "change as many elements as real ones; `--data` measures real ones",
        )
    ]


class _MiniLM(Synthetic):
    """The real model in bf16, with flat tensors, under synthetic steps."""

    def __init__(self) -> None:
        from tools.models.variants import base_directory

        self._rng = np.random.Generator(np.random.SFC64(0))
        with safetensors.safe_open(base_directory() / "model.safetensors", "np") as file:
            names = [n for n in sorted(file.keys()) if file.get_slice(n).get_dtype() in DTYPES]
            parts = [to_bf16(file.get_tensor(n).reshape(-1).view(np.uint32)) for n in names]
        self.flat = np.concatenate(parts)
        ends = np.cumsum([len(part) for part in parts])
        self.state = dict(zip(names, np.split(self.flat, ends[:-1]), strict=True))


def _made_up(path: Path, share: float, steps: int) -> Iterator[Path]:
    """Write one step after another to the same file."""
    model = _MiniLM()
    model.write(path)
    yield path
    for _ in range(steps):
        model.step(share)
        model.write(path)
        yield path


def _rows(what: str, files: Iterable[Path], target: float, note: str) -> list[Result]:
    """Return the rows of a run whose versions are files; the first version does not count."""
    store = MemoryStore()
    states: list[State] = []
    found: list[Parts] = []
    with casweights.open(store, create=True) as repository:
        known = {info.name for info in store.list()}
        for n, path in enumerate(files):
            note_progress(f"{what}: step {n}")
            states.append(read_state(path))
            parts, known = parts_of(store, known, [repository.commit(path)])
            found.append(parts)
    changed, steps = _changed(states), len(found) - 1
    total = sum(found[1:], Parts())
    elements = sum(map(len, states[0].values()))
    note = (
        f"{note}. {steps} steps, {changed / steps / elements:.2%} of {elements:,} elements each; "
        f"bytes of all steps: {total}"
    )
    everything = measured(
        f"{what}: everything", total.total / changed, "B/change", target=target, note=note
    )
    return [
        everything,
        *(
            measured(f"{what}: {part}", nbytes / changed, "B/change", note=note)
            for part, nbytes in total.items().items()
        ),
    ]


def _changed(states: Sequence[State]) -> int:
    """Return the number of changed elements, summed over all steps."""
    return sum(
        int(np.count_nonzero(before[name] != after[name]))
        for before, after in pairwise(states)
        for name in before
    )


def row_small_tensors(count: int = SMALL) -> list[Result]:
    """Measure a step that changes three elements of many small tensors."""
    state = {f"layer.{n}.scale": torch.full((_SMALL_ELEMENTS,), float(n)) for n in range(count)}
    store = MemoryStore()
    with casweights.open(store, create=True) as repository:
        repository.commit(state)
        known = {info.name for info in store.list()}
        for n in (0, count // 2, count - 1):
            state[f"layer.{n}.scale"][n % _SMALL_ELEMENTS] += 1
        parts, _ = parts_of(store, known, [repository.commit(state)])
    return [
        measured(
            f"6 {count:,} tensors of 64 bytes, three elements changed",
            parts.total / KiB,
            "KiB",
            target=_SMALL_BYTES / KiB,
            note=f"bytes that the step adds: {parts}",
        )
    ]
