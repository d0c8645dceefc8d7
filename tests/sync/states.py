"""What tests of publishers share: stores that wait or fail, and histories to compare with."""

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
    """Another store, whose calls a test may hold up or let fail by the objects' names.

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
        """Let the next such call fail, maybe once it has done its work."""
        self._failing.append((method, prefix, after))

    def calm(self) -> None:
        """Let nothing fail any more."""
        self._failing.clear()

    def hold(self, prefix: str) -> None:
        """From now on, objects of such names are not put before `release`."""
        self._held = prefix
        self._gate.clear()

    def reached(self) -> None:
        """Wait until a put is held up."""
        assert self._reached.acquire(timeout=PATIENCE)

    def release(self) -> None:
        """Let everything go on."""
        self._held = ""
        self._gate.set()

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        if self._held and name.startswith(self._held):
            self._reached.release()
            assert self._gate.wait(PATIENCE)
        after = self._strike("put", name)
        created = super().put(name, parts)
        self._end(after)
        return created

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
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
    """Keeps what it is told of versions that were published."""

    def __init__(self) -> None:
        self.stats: list[PublishStats] = []

    def published(self, stats: PublishStats) -> None:
        """See `Reporter.published`."""
        self.stats.append(stats)


def open_store(objects: ObjectStore, **options: Any) -> Repository:
    """A repository over an object store, with the smallest chunks."""
    config = StoreConfig(chunk_size=CHUNK)
    return casweights.open(objects, create=True, config=config, workers=2, **options)


def copied(state: Mapping[str, Any]) -> State:
    """The same state in memory of its own, ties and all."""
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
    """The branch has these states, by step, one on top of the other, and nothing is damaged."""
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
    """Tensors of some chunks each, and small ones of other kinds."""
    generator = torch.Generator().manual_seed(2)
    return {
        "a": noise(chunks * CHUNK // 2, seed=1),
        "b": torch.randn(chunks * CHUNK // 2, generator=generator).bfloat16(),
        "scale": torch.tensor(-0.0),
        "steps": torch.tensor([1, 2, 3]),
        "none": torch.empty(0, 4),
    }


def nudge(tensor: torch.Tensor, count: int, seed: int) -> None:
    """Change as many elements of a plain tensor in place, each for sure."""
    bits = tensor.detach().view(torch.uint8).numpy().reshape(tensor.numel(), -1)
    places = np.random.default_rng(seed).choice(len(bits), count, replace=False)
    bits[places, 0] ^= 1


def noise(count: int, seed: int = 0) -> torch.Tensor:
    """Elements of 16 bits that do not compress: chunks of them are stored as they are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**15), 2**15, (count,), dtype=torch.int16, generator=generator)
