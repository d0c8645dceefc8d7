"""Several states in progress at once: their order, and the waits between threads."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from casweights import Publisher
from casweights.stores.memory import MemoryStore
from casweights.sync import changes as changes_module
from casweights.sync import publisher as publisher_module
from casweights.sync import state_copy
from casweights.sync.kept_state import KeptState
from casweights.sync.mirror import Mirror
from tests.sync.states import (
    CHUNK,
    PATIENCE,
    Listener,
    Trouble,
    assert_history,
    copied,
    model,
    noise,
    nudge,
    open_store,
)

if TYPE_CHECKING:
    from casweights.sync.publisher import Compare, Policy


@pytest.mark.parametrize("compare", ["host", "cache"])
@pytest.mark.parametrize("compression", ["auto", "fast", "small"])
def test_tensors_may_change_while_their_version_is_written(
    compare: Compare, compression: Any
) -> None:
    objects, state, states = Trouble(), {"w": noise(CHUNK)}, {}
    with (
        open_store(objects) as store,
        Publisher(store, compare=compare, compression=compression) as run,
    ):
        objects.hold("snapshots/")
        states[0] = copied(state)
        run.publish(state, step=0)
        objects.reached()
        nudge(state["w"], CHUNK, seed=0)  # the frames of incompressible chunks are their bytes
        if compare == "host":
            states[1] = copied(state)
            run.publish(state, step=1)
            nudge(state["w"], CHUNK, seed=1)
        objects.release()
        run.wait()
        assert_history(store, states)


def test_metadata_is_copied_when_publish_is_called() -> None:
    objects, tags = Trouble(), ["a"]
    with open_store(objects) as store, Publisher(store) as run:
        objects.hold("snapshots/")
        run.publish({"w": noise(CHUNK)}, step=0)
        objects.reached()
        run.publish({"w": noise(CHUNK, 1)}, step=1, metadata={"tags": tags})
        tags.append("b")
        objects.release()
        version = run.wait()
        assert version is not None
        assert version.metadata == {"step": 1, "tags": ["a"]}


@pytest.mark.parametrize("policy", ["block", "skip-to-latest"])
def test_a_change_of_layout_waits_for_versions_in_progress(policy: Policy) -> None:
    objects, state, states = Trouble(), model(), {}
    with (
        open_store(objects) as store,
        Publisher(store, policy=policy) as run,
        ThreadPoolExecutor(1) as pool,
    ):
        for step in range(8):
            if step == 2:
                state["more"] = noise(CHUNK, seed=9)
            if step == 4:
                state["a"] = state["a"].reshape(2, -1)[:, 1:]
            if step == 6:
                state["b"] = state["b"].half()
            states[step] = copied(state)
            objects.hold("snapshots/")
            done = pool.submit(run.publish, state, step=step)
            if step % 2:  # waits for the writer; otherwise layouts change while nothing is delayed
                objects.reached()
            objects.release()
            done.result(PATIENCE)
            state["steps"] += 1
            nudge(state["a"] if step < 4 else state["b"], 3, seed=step)
            if policy != "block":
                run.wait()
    with open_store(objects) as store:
        assert_history(store, states)


def test_there_is_one_mirror_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    others: list[int] = []

    class Watched(Mirror):
        def __init__(self, *args: Any, **options: Any) -> None:
            others.append(len(alive))
            alive.add(self)
            super().__init__(*args, **options)

    monkeypatch.setattr(publisher_module, "Mirror", Watched)
    gc.disable()
    try:
        with open_store(MemoryStore()) as store, Publisher(store) as run:
            for step in range(4):
                run.publish({f"w{step}": noise(CHUNK)}, step=step)
    finally:
        gc.enable()
    assert others == [0, 0, 0, 0]


def test_blocking_keeps_every_step() -> None:
    objects, state, states = Trouble(), model(), {}
    with open_store(objects) as store:
        with Publisher(store) as run, ThreadPoolExecutor(1) as pool:
            objects.hold("snapshots/")
            for step in range(2):  # one is being written, one waits
                states[step] = copied(state)
                run.publish(state, step=step)
                objects.reached() if step == 0 else None
                nudge(state["a"], 2, seed=step)
            states[2] = copied(state)
            third = pool.submit(run.publish, state, step=2)
            with pytest.raises(TimeoutError):
                third.result(0.1)
            with pytest.raises(TimeoutError, match=r"after 0.01 s"):
                run.wait(0.01)
            objects.release()
            third.result(PATIENCE)
        assert_history(store, states)


def test_skipping_leaves_out_versions_but_no_changes() -> None:
    objects, state, listener = Trouble(), model(), Listener()
    with open_store(objects) as store:
        before = copied(state)
        with Publisher(store, policy="skip-to-latest", reporter=listener) as run:
            run.publish(state, step=0)
            run.wait()
            for step in range(1, 5):  # the first is delayed; the others wait behind it
                if step == 1:
                    objects.hold("snapshots/")
                state["a"][step] += 1
                state["a"][-1] += 1
                state["b"].view(torch.int16)[7] ^= 1  # changes, back, and again
                if step == 2:
                    state["a"][2:4000] += 1
                run.publish(state, step=step if step != 3 else None)
                if step == 1:
                    objects.reached()
                    first = copied(state)
            last = copied(state)
            state["a"] += 1
            objects.release()
            version = run.wait()
        assert version is not None
        assert version.metadata == {"step": 4, "skipped": [2]}
        assert [stats.skipped for stats in listener.stats] == [(), (), (2, None)]
        changed = int((last["a"] != first["a"]).sum()) + 1
        assert [stats.changed_elements for stats in listener.stats] == [None, 3, changed]
        assert_history(store, {0: before, 1: first, 4: last})


def test_encoding_waits_for_a_scan_of_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    objects, state = Trouble(), {"w": noise(2 * CHUNK)}
    reading, scanning = threading.Event(), threading.Event()
    read, find = KeptState.read, changes_module.find_change

    def watched_read(self: Any, run: Any, buffers: Any) -> Any:
        reading.set()
        return read(self, run, buffers)

    def slow_find(*args: Any) -> Any:
        if scanning.is_set():
            objects.release()  # the first version finishes; the next one waits
            assert not reading.wait(0.1)
        return find(*args)

    with open_store(objects) as store:
        with Publisher(store, policy="skip-to-latest") as run:
            objects.hold("refs/")
            run.publish(state, step=0)
            objects.reached()
            states = {0: copied(state)}
            nudge(state["w"], CHUNK, seed=1)
            run.publish(state, step=1)
            nudge(state["w"], CHUNK, seed=2)
            monkeypatch.setattr(KeptState, "read", watched_read)
            monkeypatch.setattr(state_copy, "find_change", slow_find)
            scanning.set()
            run.publish(state, step=2)
            scanning.clear()
            states[2] = copied(state)
        assert_history(store, states)


def test_states_of_many_threads_are_all_published() -> None:
    states = {step: model(chunks=1) for step in range(24)}
    for step, state in states.items():
        nudge(state["a"], 50, seed=step)
    with open_store(MemoryStore()) as store:
        with Publisher(store) as run, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda step: run.publish(states[step], step=step), states))
        found = [version.metadata["step"] for version in store.log()][::-1]
        assert sorted(found) == [*states]
        assert_history(store, {step: states[step] for step in found})
