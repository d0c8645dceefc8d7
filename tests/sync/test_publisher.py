"""A publisher makes a history of the values that live tensors had at each call."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import casweights
from casweights import Publisher
from casweights.errors import InvalidInputError, NotFoundError, StoreError
from casweights.operations.shortcuts import Schedule
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.sync.kept_state import KeptState
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_tensor, tensor_bits
from casweights.testing.strategies import TORCH_DTYPES, from_bytes, state_dicts
from tests.large_versions import packs_apart
from tests.lengths import examples
from tests.sync.states import (
    CHUNK,
    Listener,
    State,
    Trouble,
    assert_history,
    copied,
    model,
    noise,
    nudge,
    open_store,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casweights.format.layout import Piece
    from casweights.sync.publisher import Compare, Policy
    from casweights.system.buffers import Pool

COMPARE: list[Compare] = ["host", "device", "cache"]
compared = pytest.mark.parametrize("compare", COMPARE)


@compared
@pytest.mark.parametrize("remote", [False, True])
def test_a_run_becomes_an_ordinary_history(compare: Compare, remote: bool) -> None:
    objects = Trouble()
    objects.capabilities = Capabilities(
        exclusive_create=not remote, listing_lags=remote, cheap_reads=not remote
    )
    state, states = model(), {}
    with open_store(objects) as store:
        with Publisher(store, compare=compare, author="me") as publisher:
            assert (publisher.version, publisher.wait()) == (None, None)
            for step in range(5):
                states[step] = copied(state)
                publisher.publish(
                    state, step=step, message=f"step {step}", metadata={"loss": step / 2}
                )
                nudge(state["a"], 40 * step + 1, seed=step)
                state["b"] *= 1.5
                state["steps"] += 1
            version = publisher.wait()
        assert version is not None
        assert version.id == publisher.version == store.branches()["main"]
        assert version.metadata == {"step": 4, "loss": 2.0}
        assert [found.number for found in store.log()] == [5, 4, 3, 2, 1]
        assert (version.author, version.message) == ("me", "step 4")
        assert_history(store, states)
    with open_store(objects.inner) as store:  # by a reader without any knowledge of it
        assert_history(store, states)


def change(state: State, kind: str, seed: int) -> None:
    for tensor in state.values():
        if kind != "none" and tensor.numel() > 2:
            count = tensor.numel() if kind == "dense" else 1 + seed % 2
            nudge(tensor, count if kind != "back" else 1, seed if kind != "back" else 0)


KINDS = st.sampled_from(["none", "sparse", "dense", "back"])
FAULTS = st.sampled_from(
    [
        ("put", "packs/", False),
        ("put", "packs/", True),
        ("put", "snapshots/", False),
        ("put", "snapshots/", True),
        ("put", "refs/", False),
        ("put", "refs/", True),
        ("list", "refs/", False),
    ]
)


@hypothesis.settings(max_examples=examples(15))
@hypothesis.given(
    steps=st.lists(
        st.tuples(KINDS, st.booleans(), st.none() | st.none() | FAULTS), min_size=2, max_size=8
    ),
    compare=st.sampled_from(COMPARE),
    policy=st.sampled_from(["block", "skip-to-latest"]),
    compression=st.sampled_from(["auto", "fast"]),
    apart=st.booleans(),
)
def test_versions_hold_the_published_tensors_in_any_schedule(
    steps: list[tuple[str, bool, tuple[str, str, bool] | None]],
    compare: Compare,
    policy: Policy,
    compression: Any,
    apart: bool,
) -> None:
    objects, state, states = Trouble(), model(chunks=2), dict[int, State]()
    with packs_apart() if apart else nullcontext(), open_store(objects) as store:
        publisher = Publisher(store, compare=compare, policy=policy, compression=compression)

        def publish(step: int) -> None:
            states[step] = copied(state)
            while True:
                try:
                    return publisher.publish(state, step=step)
                except StoreError:
                    pass

        for step, (kind, held, fault) in enumerate(steps):
            change(state, kind, step)
            if fault is not None:
                objects.fail(fault[0], fault[1], after=fault[2])
            if compare == "cache" or policy == "block":
                objects.release()
            publish(step)
            if held:  # the tensors change before it continues
                objects.hold("snapshots/")
            else:
                objects.release()
        objects.release()
        objects.calm()
        publish(len(steps))
        last = None
        while last is None or last.metadata["step"] < len(steps):
            try:
                last = publisher.wait()
            except StoreError:
                publish(len(steps))
        publisher.close()
        found = [version.metadata["step"] for version in store.log()][::-1]
        if policy == "block" and not any(fault for *_, fault in steps):
            assert found == [*range(len(steps) + 1)]
        assert_history(store, {step: states[step] for step in found})


@hypothesis.settings(max_examples=examples(20))
@hypothesis.given(state=state_dicts(), compare=st.sampled_from(["host", "cache"]), data=st.data())
def test_any_state_is_published_as_it_is(
    state: State, compare: Compare, data: st.DataObject
) -> None:
    other = redrawn(state, data)
    with open_store(MemoryStore()) as store:
        with Publisher(store, compare=compare) as run:
            for step, source in enumerate([state, other, other, state]):
                run.publish(source, step=step)
        assert_history(store, {0: state, 1: other, 2: other, 3: state})


def redrawn(node: Any, data: st.DataObject) -> Any:
    """The same structure, with other bits in some tensors."""
    known: dict[int, torch.Tensor] = {}

    def redraw(tensor: torch.Tensor) -> torch.Tensor:
        bits = bytearray(tensor_bits(tensor))
        for place in data.draw(st.lists(st.integers(0, len(bits) - 1), max_size=3)) if bits else ():
            bits[place] ^= 1
        return from_bytes(bytes(bits), tensor.dtype, tuple(tensor.shape))

    def visit(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            if id(node) not in known:
                known[id(node)] = redraw(node)
            return known[id(node)]
        if isinstance(node, dict):
            return {key: visit(value) for key, value in node.items()}
        return type(node)(map(visit, node)) if isinstance(node, list | tuple) else node

    return visit(node)


@compared
@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_every_bit_of_every_dtype_is_published(dtype: torch.dtype, compare: Compare) -> None:
    words = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)  # NaNs and -0.0 of all kinds
    bits = bytearray(words.numpy().tobytes() * (dtype.itemsize // 2 or 1))
    states = {}
    with open_store(MemoryStore()) as store:
        with Publisher(store, compare=compare) as run:
            for step in range(3):
                if dtype == torch.bool:
                    bits = bytearray(place % 2 for place in range(step, step + 2**16))
                states[step] = {"w": from_bytes(bytes(bits), dtype, (-1, 8))}
                run.publish(states[step], step=step)
                bits[step * 777] ^= 1
        assert_history(store, states)


class Tied(torch.nn.Module):
    """A module with tied weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.head = torch.nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight


@compared
def test_an_attached_module_is_published_after_optimizer_steps(compare: Compare) -> None:
    torch.manual_seed(0)
    module = Tied()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    states = {}
    with open_store(MemoryStore()) as store:
        with Publisher(store, compare=compare) as run:
            handle = run.attach(optimizer, module, every=2)
            for step in range(1, 7):
                module.head(module.norm(module.embed(torch.arange(20)))).square().sum().backward()
                optimizer.step()
                if step % 2 == 0:
                    states[step] = copied(module.state_dict())
            handle.remove()
            optimizer.step()
            with pytest.raises(InvalidInputError, match="every must be at least 1 step, got 0"):
                run.attach(optimizer, module, every=0)
        assert list(states) == [2, 4, 6]
        assert_history(store, states)
        loaded = store.load("main")
        assert loaded["head.weight"] is loaded["embed.weight"]
        assert loaded["norm.num_batches_tracked"] == 6


@pytest.mark.parametrize("compare", ["host", "device"])
def test_unchanged_chunks_are_neither_read_nor_hashed_nor_stored(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, read = list[int](), list[tuple[str | None, int]]()
    original = KeptState.read
    monkeypatch.setattr(Schedule, "passed", lambda *_: None)  # a shortcut reads its base

    def reading(self: Any, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        read.extend((piece.name, piece.number) for piece in run)
        return original(self, run, buffers)

    monkeypatch.setattr(KeptState, "read", reading)
    objects = CountingStore(MemoryStore())
    state = {name: noise(4 * CHUNK // 2, seed) for seed, name in enumerate("abc")}
    with open_store(objects) as store, Publisher(store, compare=compare) as run:
        hasher = store.database.hasher

        def hashing(data: Any) -> Any:
            hashed.append(len(data))
            return hasher(data)

        store.database.hasher = hashing
        run.publish(state, step=0)
        run.wait()
        assert len(hashed) == len(read) == 12
        for step in range(1, 4):
            nudge(state["b"][CHUNK // 2 :][: CHUNK // 2], 3, seed=step)
            hashed.clear()
            read.clear()
            objects.reset()
            run.publish(state, step=step)
            run.wait()
            assert hashed == [CHUNK]
            assert read == [("b", 1)]
            assert objects.reads == [] or all("refs/" in name for name, _ in objects.reads)
            assert [name.split("/")[0] for name, _ in objects.writes] == ["snapshots", "refs"]
            assert objects.writes[0][1] < 1000  # with the list of chunks, manifest and pack table
        hashed.clear()
        objects.reset()
        run.publish(state, step=4)  # nothing changed
        run.wait()
        assert hashed == []
        assert [name.split("/")[0] for name, _ in objects.writes] == ["snapshots", "refs"]


@compared
def test_a_new_publisher_stores_only_what_changed(compare: Compare) -> None:
    objects, state, states = CountingStore(MemoryStore()), model(), {}
    for step in range(3):
        states[step] = copied(state)
        objects.reset()
        with open_store(objects) as store, Publisher(store, compare=compare) as run:
            assert (run.version is None) == (step == 0)
            run.publish(state, step=step)
        if step:
            assert sum(n for name, n in objects.writes if name.startswith("snapshots/")) < 1200
        nudge(state["a"], 5, seed=step)
    with open_store(objects) as store:
        assert_history(store, states)


@compared
def test_tensors_are_published_in_the_cast_dtypes(compare: Compare) -> None:
    generator = torch.Generator().manual_seed(0)
    masters = {
        "layer.weight": torch.randn(300, 400, generator=generator),
        "layer.norm.weight": torch.randn(300, generator=generator),
        "half": torch.randn(40, generator=generator).half().t(),
        "ids": torch.arange(5),
        "mask": torch.tensor([True, False]),
    }
    masters["tied"] = masters["layer.weight"]
    masters["layer.weight"][0, 0] = float("nan")
    cast = {"*.norm.*": torch.float32, "layer.*": torch.bfloat16, "*": torch.float64}
    wanted = {"layer.weight": torch.bfloat16, "tied": torch.bfloat16, "half": torch.float64}
    listener, states = Listener(), {}
    with open_store(MemoryStore()) as store:
        with Publisher(store, compare=compare, cast=cast, reporter=listener) as run:
            for step in range(3):
                states[step] = {
                    name: tensor.to(wanted.get(name, tensor.dtype))
                    for name, tensor in masters.items()
                }
                states[step]["tied"] = states[step]["layer.weight"]
                run.publish(masters, step=step)
                masters["layer.weight"][1, step] += 1
                masters["layer.weight"][2] *= 1 + 1e-7  # too little to be seen in bf16
        assert_history(store, states)
    if compare != "cache":
        assert [stats.changed_elements for stats in listener.stats] == [None, 1, 1]


def test_extra_files_are_part_of_every_version(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "sub" / "tokenizer.txt").write_text("t")
    for name in ("model.safetensors", "x.bin", "model.safetensors.index.json", "sub/y.safetensors"):
        (tmp_path / name).write_bytes(b"left out")
    state = model()
    with open_store(MemoryStore()) as store:
        with Publisher(store, extra=tmp_path) as run:
            for step in range(2):
                run.publish(state, step=step)
                run.wait()
                (tmp_path / "config.json").write_text('{"a": 2}')
                nudge(state["a"], 1, seed=step)
        versions = list(store.log())[::-1]
        for n, version in enumerate(versions, 1):
            assert [file.path for file in version.files] == [
                "config.json",
                "model.safetensors",
                "sub/tokenizer.txt",
            ]
            assert json.loads(b"".join(store.read(version, "config.json"))) == {"a": n}
        nudge(state["a"], 1, seed=1)
        assert_same_tensor(store.load("main")["a"], state["a"])


def test_publish_stats_count_bytes_and_changed_elements() -> None:
    listener, state = Listener(), model(chunks=4)
    elements = sum(tensor.numel() for tensor in state.values())
    with open_store(MemoryStore()) as store:
        counts = [0, 7, 20_000, 60_000, 0]  # the last ones change nearly all of their chunks
        with Publisher(store, reporter=listener) as run:
            for step, count in enumerate(counts):
                nudge(state["a"], count, seed=step)
                run.publish(state, step=step)
        for step, (stats, version) in enumerate(
            zip(listener.stats, list(store.log())[::-1], strict=True)
        ):
            assert stats.snapshot == version.id
            assert (stats.step, stats.skipped) == (step, ())
            assert stats.total_bytes == version.size
            assert stats.elements == elements
            assert min(stats.scan_seconds, stats.encode_seconds, stats.upload_seconds) > 0
            assert stats.changed_elements == (counts[step] if step else None)
        stored = [stats.stored_bytes for stats in listener.stats]
        assert stored[0] > stored[3] > stored[2] > stored[1] > stored[4] == 0
        assert sum(stored) == pytest.approx(store.stats().pack_bytes, rel=0.01)


def test_a_publisher_opens_a_store_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Publisher(tmp_path / "nothing")
    casweights.open(tmp_path / "store", create=True).close()
    state = model()
    with Publisher(tmp_path / "store", "run") as run:
        run.publish(state, step=0)
        assert repr(run) == f"Publisher({str(tmp_path / 'store')!r}, 'run')"
    with casweights.open(tmp_path / "store") as store:
        assert_history(store, {0: state}, "run")


def test_sources_and_options_that_cannot_be_published_are_refused() -> None:
    with open_store(MemoryStore()) as store, Publisher(store) as run:
        for wrong in ([torch.ones(2)], {"w": object()}, None):
            with pytest.raises(InvalidInputError):
                run.publish(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="compare must be one of host, device, cache"):
            Publisher(store, compare="disk")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="float dtype"):
            Publisher(store, cast={"*": torch.int8})
        run.publish({"w": torch.ones(2)}, metadata={"a": object()})
        with pytest.raises(InvalidInputError, match=r"metadata\.a is object"):
            run.wait()
        run.publish({"w": torch.ones(2)}, step=1)
