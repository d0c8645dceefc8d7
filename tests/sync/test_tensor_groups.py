"""Batches report which tensors changed, and the change that undoes each."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from casweights.content.states import StateFile
from casweights.sync import tensor_groups
from casweights.sync.tensor_groups import make_batches
from casweights.testing.states import tensor_bits

_LIMIT = 16 << 10  # bytes of a batch
_DTYPES = [torch.uint8, torch.bool, torch.float16, torch.float32, torch.complex64]

sizes = st.lists(st.tuples(st.sampled_from(_DTYPES), st.integers(1, 40)), min_size=1, max_size=8)


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("on_host", [True, False])
def test_each_change_is_undone_in_no_more_memory_than_its_tensor(
    monkeypatch: pytest.MonkeyPatch, on_host: bool, on_device: bool
) -> None:
    monkeypatch.setattr(tensor_groups, "is_on_host", lambda _: on_host)

    @hypothesis.given(sizes=sizes, data=st.data())
    def check(sizes: list[tuple[torch.dtype, int]], data: st.DataObject) -> None:
        state = {f"{n}": torch.zeros(size, dtype=dtype) for n, (dtype, size) in enumerate(sizes)}
        made = list(make_batches(StateFile(state), _LIMIT, on_device=on_device))
        kept = {name: memory for batch in made for name, memory in batch.parts()}
        assert kept.keys() == state.keys()
        for _ in range(2):
            before = {name: tensor_bits(tensor) for name, tensor in state.items()}
            for tensor in state.values():
                count = data.draw(st.integers(0, len(tensor)))
                tensor[:count].view(torch.uint8).bitwise_xor_(1)
            after = {name: tensor_bits(tensor) for name, tensor in state.items()}
            changes = dict(change for batch in made for change in batch.update(StateFile(state)))
            assert {name: bytes(memory) for name, memory in kept.items()} == after
            assert changes.keys() == {name for name in state if before[name] != after[name]}
            for name, change in changes.items():
                copy = bytearray(after[name])
                change.write(memoryview(copy))
                assert copy == before[name]
                assert change.nbytes <= len(copy)

    check()


def test_batches_are_no_larger_than_the_limit() -> None:
    state = {f"{n:03}": torch.full((1000,), float(n)) for n in range(20)}
    made = list(make_batches(StateFile(state), _LIMIT, on_device=False))
    parts = [[len(memory) for _, memory in batch.parts()] for batch in made]
    assert max(map(sum, parts)) <= _LIMIT
    assert [nbytes for part in parts for nbytes in part] == 20 * [4000]


def test_tensors_of_one_dtype_share_a_batch_regardless_of_their_order() -> None:
    state = {f"{n}": torch.zeros(4, dtype=_DTYPES[n % 2]) for n in range(6)}
    made = list(make_batches(StateFile(state), _LIMIT, on_device=False))
    assert sorted(len(list(batch.parts())) for batch in made) == [3, 3]
