"""Helpers for tests of publishers: stores that wait or fail, and checks of histories."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.content.torch_types import identity
from casweights.errors import ErrorCode, StoreError
from casweights.stores.base import ObjectStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.states import assert_same_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casweights import Repository
    from casweights.results import PublishStats
    from casweights.stores.base import ObjectInfo
    from casweights.system.buffers import Buffer

CHUNK = 64 * KiB
PATIENCE = 60.0  # seconds, until a test that hangs fails instead

State = dict[str, Any]


class Trouble(WrapperStore):
    """A store whose calls a test can delay, or make fail, by the names of objects.

    Attributes:
        calls: Method and name of every call so far.
    """

    batch = ObjectStore.batch

    def __init__(self, inner: ObjectStore | None = None) -> None:
        super().__init__(inner or MemoryStore())
        self.calls: list[tuple[str, str]] = []
        self._failing: list[tuple[str, str, bool]] = []
        self._held = ""
        self._gate = threading.Event()
        self._reached = threading.Semaphore(0)

    def fail(self, method: str, prefix: str, *, after: bool = False) -> None:
        """Make the next call of this kind fail, before or after it has done its work."""
        self._failing.append((method, prefix, after))

    def calm(self) -> None:
        """Cancel all failures that have not happened yet."""
        self._failing.clear()

    def hold(self, prefix: str) -> None:
        """Delay puts of objects with this prefix until `release`."""
        self._held = prefix
        self._gate.clear()

    def reached(self) -> None:
        """Wait until a put is delayed."""
        assert self._reached.acquire(timeout=PATIENCE)

    def release(self) -> None:
        """Let all delayed puts continue."""
        self._held = ""
        self._gate.set()

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if self._held and name.startswith(self._held):
            self._reached.release()
            assert self._gate.wait(PATIENCE)
        after = self._strike("put", name)
        created = super().put(name, parts)
        self._end(after)
        return created

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._end(self._strike("list", prefix))
        return super().list(prefix)

    def _strike(self, method: str, name: str) -> bool:
        self.calls.append((method, name))
        for fault in self._failing:
            if fault[0] == method and name.startswith(fault[1]):
                self._failing.remove(fault)
                if fault[2]:
                    return True
                self._end(True)
        return False

    def _end(self, fails: bool) -> None:
        if fails:
            raise StoreError(ErrorCode.UNREACHABLE, "the network is gone")


class Listener(casweights.Reporter):
    """Keeps the stats of published versions."""

    def __init__(self) -> None:
        self.stats: list[PublishStats] = []

    def published(self, stats: PublishStats) -> None:
        self.stats.append(stats)


def end_of_round() -> None:
    """Wait until no maintenance runs."""
    for thread in threading.enumerate():
        if thread.name == "casweights-maintain":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def open_store(objects: ObjectStore, **options: Any) -> Repository:
    """A repository over an object store, with the smallest chunks."""
    config = StoreConfig(chunk_size=CHUNK)
    return casweights.open(objects, create=True, config=config, workers=2, **options)


def copied(state: Mapping[str, Any]) -> State:
    """A copy of a state in other memory, with the same ties."""
    known: dict[tuple[Any, ...], torch.Tensor] = {}

    def copy(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            return known.setdefault(identity(node), node.detach().clone())
        if isinstance(node, dict):
            return {key: copy(value) for key, value in node.items()}
        return type(node)(map(copy, node)) if isinstance(node, list | tuple) else node

    return {key: copy(value) for key, value in state.items()}


def assert_history(
    store: Repository, states: Mapping[int, Mapping[str, Any]], branch: str = "main"
) -> None:
    """Check that a branch has exactly these states by step, in order, and no damage."""
    versions = list(store.log(branch))[::-1]
    assert [version.metadata["step"] for version in versions] == list(states)
    before = None
    for version, state in zip(versions, states.values(), strict=True):
        assert version.parents == (() if before is None else (before.id,))
        assert [file.path for file in version.files] == ["model.safetensors"]
        assert_same_state(store.load(version), dict(state))
        before = version
    assert not store.verify().problems


def model(chunks: int = 3) -> State:
    """A state with tensors of several chunks, and small tensors of other kinds."""
    generator = torch.Generator().manual_seed(2)
    return {
        "a": noise(chunks * CHUNK // 2, seed=1),
        "b": torch.randn(chunks * CHUNK // 2, generator=generator).bfloat16(),
        "scale": torch.tensor(-0.0),
        "steps": torch.tensor([1, 2, 3]),
        "none": torch.empty(0, 4),
    }


def nudge(tensor: torch.Tensor, count: int, seed: int) -> None:
    """Change exactly `count` elements of a plain tensor in place."""
    bits = tensor.detach().view(torch.uint8).numpy().reshape(tensor.numel(), -1)
    places = np.random.default_rng(seed).choice(len(bits), count, replace=False)
    bits[places, 0] ^= 1


def noise(count: int, seed: int = 0) -> torch.Tensor:
    """Incompressible elements of 16 bits, whose chunks are stored without encoding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**15), 2**15, (count,), dtype=torch.int16, generator=generator)
