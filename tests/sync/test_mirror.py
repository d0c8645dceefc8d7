"""The mirror: earlier content can be restored from it, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from casweights.content.states import StateFile
from casweights.stores.memory import MemoryStore
from casweights.sync.changes import ElementChange, find_change, take_back
from casweights.sync.devices import flat_patterns
from casweights.sync.kept_state import KeptState
from casweights.sync.mirror import Mirror, Scan
from casweights.system.buffers import Pool
from casweights.system.threads import Workers
from casweights.testing.states import tensor_bits
from tests.lengths import examples
from tests.sync.states import CHUNK, State, copied, noise, nudge, open_store

if TYPE_CHECKING:
    from casweights import Repository


class Kept:
    """A state and its mirror, which start at a version of a store."""

    def __init__(self, store: Repository) -> None:
        self.store = store
        self.state: State = {
            "w": noise(2 * CHUNK // 2 + 300),
            "b": torch.zeros(100, dtype=torch.uint8),
            "x": torch.zeros(3, dtype=torch.complex64),
        }
        self.mirror = Mirror(StateFile(self.state), CHUNK, store.database.workers, on_device=False)
        self.mirror.publish(store.commit(self.state))
        self.version = copied(self.state)

    def scan(self) -> Scan:
        """Scan the present state."""
        return self.mirror.scan(StateFile(self.state))

    def change(self, kind: str, seed: int) -> None:
        """Change about as many elements as `kind` says."""
        counts = {"none": 0, "few": 3, "many": CHUNK // 5, "most": CHUNK // 2}
        nudge(self.state["w"], counts[kind], seed)
        self.state["b"][seed % 100] += kind != "none"
        self.state["x"][seed % 3] *= -1 if kind == "few" else 1

    def check(self, scan: Scan) -> None:
        """Check that the mirror holds the state and, with this scan, the version before."""
        file, kept = StateFile(self.state), KeptState(self.mirror, scan)
        assert (kept.size, kept.raw_header, kept.header) == (
            file.size,
            file.raw_header,
            file.header,
        )
        hasher, pool = self.store.database.hasher, Pool(CHUNK)
        for piece in file.pieces(CHUNK):
            (now,) = kept.read([piece], pool)
            start = piece.start
            name = str(piece.name)
            assert now == tensor_bits(self.state[name])[start : start + CHUNK]
            before = tensor_bits(self.version[name])[start : start + CHUNK]
            chunk = hasher(before)
            assert chunk in kept
            found = kept.get(chunk)
            assert found is not None
            assert bytes(found) == before
            out = bytearray(len(before))
            assert kept.readinto(chunk, memoryview(out))
            assert out == before
            assert not kept.readinto(chunk, memoryview(bytearray(len(before) + 1)))
            # Exactly the chunks that did not change have an ID without being read.
            assert kept.chunk_ids([piece]) == [chunk if now == before else None]
        other = hasher(b"another chunk")
        assert other not in kept
        assert kept.get(other) is None
        assert not kept.readinto(other, memoryview(bytearray(CHUNK)))

    def differing(self) -> int:
        """The number of elements that differ from the version before."""
        return sum(
            int((flat_patterns(tensor) != flat_patterns(self.version[name])).sum())
            for name, tensor in self.state.items()
        )


KINDS = st.sampled_from(["none", "few", "few", "many", "most"])
FATES = st.sampled_from(["durable", "lost", "put off", "merged"])


@hypothesis.settings(max_examples=examples(12))
@hypothesis.given(steps=st.lists(st.tuples(KINDS, st.integers(0, 2), FATES), max_size=7))
def test_a_claim_leads_back_to_the_durable_version_whatever_happened_before(
    steps: list[tuple[str, int, str]],
) -> None:
    with open_store(MemoryStore()) as store:
        kept = Kept(store)
        merged: Scan | None = None
        for kind, seed, fate in [*steps, ("few", 1, "durable")]:
            kept.change(kind, seed)
            merged = kept.mirror.merge(merged, kept.scan())
            if fate == "merged":
                continue
            if fate == "put off":
                kept.mirror.put_off(merged)
                merged = None
                continue
            claimed, merged = kept.mirror.claim(merged), None
            kept.check(claimed)
            assert claimed.changed == kept.differing()
            if fate == "durable":
                kept.mirror.publish(store.commit(kept.state))
                kept.version = copied(kept.state)


@pytest.mark.parametrize("kind", ["few", "many", "most"])
def test_undo_changes_need_no_more_memory_than_the_model(kind: str) -> None:
    with open_store(MemoryStore()) as store:
        kept = Kept(store)
        size = sum(tensor.nbytes for tensor in kept.state.values())
        merged = kept.scan()
        for step in range(30 if kind == "few" else 8):
            kept.change(kind, step)
            merged = kept.mirror.merge(merged, kept.scan())
            taken = [change.nbytes for changes in merged.undo.values() for change in changes]
            assert sum(taken) <= size
        kept.check(kept.mirror.claim(merged))


def test_a_fresh_mirror_has_no_base() -> None:
    state = {"w": noise(CHUNK)}
    with open_store(MemoryStore()) as store:
        file = StateFile(state)
        mirror = Mirror(file, CHUNK, store.database.workers, on_device=False)
        scan = mirror.claim(mirror.first(file))
        kept = KeptState(mirror, scan)
        chunk = store.database.hasher(mirror.chunk(next(file.pieces(CHUNK))))
        assert scan.changed is None
        assert set(kept.chunk_ids(list(file.pieces(CHUNK)))) == {None}
        assert chunk not in kept


def test_the_mirror_keeps_its_own_copy() -> None:
    state = {"w": noise(CHUNK)}
    before = tensor_bits(state["w"])
    workers = Workers(2)
    mirror = Mirror(StateFile(state), CHUNK, workers, on_device=True)
    state["w"].zero_()
    pieces = list(StateFile(state).pieces(CHUNK))
    assert b"".join(mirror.chunk(piece) for piece in pieces) == before
    workers.close()


def test_layouts_differ_if_names_shapes_or_dtypes_differ() -> None:
    def of(**state: torch.Tensor) -> object:
        return StateFile(state).layout

    first = of(a=torch.zeros(2, 3), b=torch.zeros(2))
    assert of(b=torch.ones(2), a=torch.ones(2, 3).T.contiguous().T) == first
    for other in (
        of(a=torch.zeros(3, 2), b=torch.zeros(2)),
        of(a=torch.zeros(2, 3).int(), b=torch.zeros(2)),
        of(a=torch.zeros(2, 3)),
        of(a=torch.zeros(2, 3), c=torch.zeros(2)),
    ):
        assert other != first


@hypothesis.given(
    widths=st.sampled_from([1, 2, 4, 8]), versions=st.lists(st.binary(min_size=96, max_size=96))
)
def test_undoing_any_changes_restores_the_first_bits(widths: int, versions: list[bytes]) -> None:
    memory, done = bytearray(96), list[ElementChange]()
    for version in [bytes(96), *versions]:
        change = find_change(memoryview(memory), memoryview(bytearray(version)), widths)
        if change is None:
            assert memory == version
            continue
        before = bytes(memory)
        change.exchange(memoryview(memory))
        assert memory == version
        assert change.differing(memoryview(memory)) == sum(
            before[n : n + widths] != version[n : n + widths] for n in range(0, 96, widths)
        )
        done.append(change)
    for _ in range(2):  # changes can be undone more than once
        back = bytearray(memory)
        take_back(memoryview(back), done)
        assert back == bytes(96)
