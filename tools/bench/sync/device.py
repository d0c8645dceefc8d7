"""The row on devices: speeds of finding and applying changes on a GPU, compared with copying."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

import casweights
from casweights.events import Reporter
from casweights.sync.publisher import Publisher
from casweights.sync.subscriber import Subscriber
from tools.bench.harness import compared
from tools.bench.hub.clients import note_progress
from tools.bench.hub.model import Model
from tools.bench.sync.steps import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights.results import PublishStats
    from tools.bench.hub.report import Report

_GB = 1e9
_NAME = "cuda"


def row_device(report: Report, work: Path, size: int, rounds: int) -> None:
    """Add rows on the speeds of the scan and of the pause, in GB of model data per second."""
    if not torch.cuda.is_available():
        print("device: skipped, because torch finds no GPU on this machine\n")
        return
    note_progress("device: a model")
    url, scans = work / "device", _Scans()
    casweights.open(url, create=True).close()
    with (
        Publisher(url, compare="device", reporter=scans) as publisher,
        Subscriber(url) as subscriber,
    ):
        model = Model(size, 1)
        device = _Device(publisher, subscriber, model)
        for n in range(rounds + 1):
            note_progress(f"device: step {n}")
            device.step()
    copied = _speed(model.nbytes, device.copies[1:])
    for what, seconds in (("scan in publish()", scans.seconds[2:]), ("pause", device.pauses[1:])):
        report.add(
            compared(
                f"device: {what}",
                _speed(model.nbytes, seconds),
                copied,
                "GB/s",
                note="GB of model data per second; reference: copy_ of all tensors on the "
                f"{torch.cuda.get_device_name()}, where each byte is read and written",
            )
        )


class _Scans(Reporter):
    """Keeps the seconds of each scan."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def published(self, stats: PublishStats) -> None:
        self.seconds.append(stats.scan_seconds)


class _Device:
    """A model on the device, and a replica on the same device.

    Attributes:
        pauses: Seconds of each step in which the replica's tensors were written.
        copies: Seconds of a copy of all tensors after each step.
    """

    def __init__(self, publisher: Publisher, subscriber: Subscriber, model: Model) -> None:
        self._publisher, self._subscriber, self._model = publisher, subscriber, model
        model.make()
        self._host = model.tensors()
        self._state = {name: tensor.to(_NAME) for name, tensor in self._host.items()}
        self._live = {name: torch.zeros_like(tensor) for name, tensor in self._state.items()}
        self.pauses: list[float] = []
        self.copies: list[float] = []
        self._publish()
        subscriber.sync(self._live)

    def step(self) -> None:
        """Publish a step, apply it, and compare the replica with the model.

        Raises:
            AssertionError: The replica differs.
        """
        self._model.step(SHARE)
        _copy(self._host, self._state)
        self._publish()
        self._subscriber.prefetch()
        self.pauses.append(_seconds(self._subscriber.sync))
        if any(not torch.equal(self._live[name].cpu(), x) for name, x in self._host.items()):
            raise AssertionError("the weights differ on the device")
        self.copies.append(_seconds(lambda: _copy(self._state, self._live)))

    def _publish(self) -> None:
        self._publisher.publish(self._state)
        self._publisher.wait()


def _copy(state: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        target[name].copy_(tensor)


def _seconds(function: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _speed(nbytes: int, seconds: list[float]) -> float:
    return nbytes / statistics.median(seconds) / _GB
