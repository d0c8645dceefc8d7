"""The row on devices: finding and applying changes on one, beside copying there."""

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

    from tools.bench.hub.report import Report

    from casweights.results import PublishStats

_GB = 1e9
_NAME = "cuda"


class _Scans(Reporter):
    """Keeps how long the scans took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def published(self, stats: PublishStats) -> None:
        self.seconds.append(stats.scan_seconds)


def row_device(report: Report, work: Path, size: int, rounds: int) -> None:
    """Speeds of the scan and of the pause, in bytes of the model a second."""
    if not torch.cuda.is_available():
        print("device: this machine has no GPU that torch can use; the row is left out\n")
        return
    model = Model(size, 1)
    note_progress("device: a model")
    model.make()
    host = model.tensors()
    state = {name: tensor.to(_NAME) for name, tensor in host.items()}
    live = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    scans, copies, applies = _Scans(), [], []
    url = work / "device"
    casweights.open(url, create=True).close()
    with Publisher(url, base="device", reporter=scans) as publisher, Subscriber(url) as subscriber:
        publisher.publish(state)
        publisher.wait()
        subscriber.sync(live)
        for n in range(rounds + 1):
            note_progress(f"device: step {n}")
            model.step(SHARE)
            for name, tensor in host.items():
                state[name].copy_(tensor)
            publisher.publish(state)
            publisher.wait()
            subscriber.prefetch()
            applies.append(_seconds(subscriber.sync))
            if any(not torch.equal(live[name].cpu(), tensor) for name, tensor in host.items()):
                raise AssertionError("the weights differ on the device")
            copies.append(_seconds(lambda: _copy(state, live)))
    copied = _speed(model.nbytes, copies[1:])
    for what, seconds in (("scan in publish()", scans.seconds[2:]), ("pause", applies[1:])):
        report.add(
            compared(
                f"device: {what}",
                _speed(model.nbytes, seconds),
                copied,
                "GB/s",
                note="bytes of the model a second; reference: copy_ of all tensors on the "
                f"{torch.cuda.get_device_name()}, where each byte is read and written",
            )
        )


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
