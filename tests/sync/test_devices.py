"""Changes of tensors by torch, on the CPU: the code is the same for every device."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from casweights.sync import devices
from casweights.sync.changes import POSITION, ElementChange, find_change
from casweights.sync.devices import (
    device_changes,
    device_exchange,
    flat_patterns,
    host_patterns,
)
from casweights.testing.states import tensor_bits
from casweights.testing.strategies import TORCH_DTYPES, from_bytes
from tests.lengths import examples

CHUNK = 64  # bytes
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
widths = st.sampled_from([1, 2, 4, 8])


@st.composite
def versions(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two versions of flat patterns, with changes anywhere and at the borders of chunks."""
    width, count = draw(widths), draw(st.integers(0, 200))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    data = torch.randint(256, (count * width,), dtype=torch.uint8, generator=generator)
    old = data.view(_INTS[width])
    new = old.clone()
    border = CHUNK // width
    for place in draw(
        st.lists(st.integers(0, 200) | st.sampled_from([0, border - 1, border, 2 * border, 199]))
        | st.just(range(200))
    ):
        if place < count:
            new[place] ^= 1
    return old, new


@pytest.mark.parametrize("segment", [1, CHUNK, 3 * CHUNK, 1 << 20])
def test_device_changes_match_the_differences_of_each_chunk(
    monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    monkeypatch.setattr(devices, "_SEGMENT_BYTES", segment)

    @hypothesis.given(both=versions())
    def check(both: tuple[torch.Tensor, torch.Tensor]) -> None:
        old, new = both
        width, per_chunk = old.element_size(), CHUNK // old.element_size()
        found = list(device_changes(new, old, CHUNK))
        numbers = [number for number, _ in found]
        assert numbers == sorted(set(numbers))
        changes = dict(found)
        for number in range(-(-len(old) // per_chunk)):
            part = slice(number * per_chunk, (number + 1) * per_chunk)
            places = (old[part] != new[part]).nonzero().flatten()
            change = changes.pop(number, None)
            assert (change is None) == (len(places) == 0)
            if change is None:
                continue
            assert change.width == width
            assert change.positions == places.numpy().astype(POSITION).tobytes()
            assert bytes(change.values) == tensor_bits(new[part][places])
            memory = bytearray(tensor_bits(old[part]))
            change.exchange(memoryview(memory))
            assert memory == tensor_bits(new[part])
        assert not changes

    check()


@st.composite
def layouts(draw: st.DrawFn) -> torch.Tensor:
    """Integers in any shape and strides, without overlapping elements."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    kind = draw(st.sampled_from(["plain", "transposed", "strided"]))
    stored = [*shape[:-1], 2 * shape[-1] + 1] if kind == "strided" else shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    size = math.prod(stored) * (width := draw(widths))
    data = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
    tensor = data.view(_INTS[width])
    if kind == "transposed":
        return tensor.reshape(shape[::-1]).permute(tuple(reversed(range(len(shape)))))
    return tensor.reshape(stored)[..., 1::2] if kind == "strided" else tensor.reshape(shape)


@hypothesis.settings(max_examples=examples(100))
@hypothesis.given(live=layouts(), data=st.data())
def test_an_exchange_keeps_storage_and_undoes_itself(
    live: torch.Tensor, data: st.DataObject
) -> None:
    count, width = live.numel(), live.element_size()
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    flat = live.flatten().clone()
    around = live._base.clone() if live._base is not None else None
    places = list(range(stop - start))
    if data.draw(st.booleans()):
        places = sorted(data.draw(st.sets(st.sampled_from(places), min_size=1)))
        positions = torch.tensor(places).numpy().astype(POSITION).tobytes()
    else:
        positions = None
    wanted = flat.clone()
    for place in places:
        wanted[start + place] ^= -1 if width > 1 else 255
    index = torch.tensor([start + place for place in places])
    change = ElementChange(positions, bytearray(tensor_bits(wanted[index])), width)
    address = live.data_ptr()
    device_exchange(live, start, stop, change)
    assert live.data_ptr() == address
    assert torch.equal(live.flatten(), wanted)
    assert isinstance(change.values, bytearray)
    assert bytes(change.values) == tensor_bits(flat[index])
    device_exchange(live, start, stop, change)  # it undoes itself
    assert torch.equal(live.flatten(), flat)
    assert bytes(change.values) == tensor_bits(wanted[index])
    if around is not None:
        assert live._base is not None
        assert torch.equal(live._base, around)  # memory between its elements is unchanged


@pytest.mark.parametrize("positions", [False, True])
def test_device_exchange_accepts_changes_found_on_the_host(positions: bool) -> None:
    old, new = bytearray(range(64)), bytearray(range(64))
    for place in [3, 17] if positions else range(64):
        new[place] ^= 7
    change = find_change(memoryview(old), memoryview(new), 1)
    assert change is not None
    assert (change.positions is not None) == positions
    live = torch.frombuffer(bytearray(100), dtype=torch.uint8)
    live[20:84] = torch.frombuffer(old, dtype=torch.uint8)
    device_exchange(live, 20, 84, change)
    assert tensor_bits(live) == bytes(20) + new + bytes(16)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_flat_patterns_have_the_bits_of_any_dtype(dtype: torch.dtype) -> None:
    data = bytes(n % 2 if dtype == torch.bool else n for n in range(96))
    tensor = from_bytes(data, dtype, (-1, 2))
    flat = flat_patterns(tensor.requires_grad_(dtype.is_floating_point and dtype.itemsize > 1))
    assert (flat.dim(), flat.dtype) == (1, _INTS[dtype.itemsize])
    assert flat.data_ptr() == tensor.data_ptr()
    assert tensor_bits(flat) == data
    part = flat_patterns(tensor.detach()[3:])  # not at the start of its storage
    assert tensor_bits(part) == data[3 * 2 * dtype.itemsize :]


def test_flat_patterns_of_lazy_tensors_and_single_elements_have_their_bits() -> None:
    lazy = torch.tensor([[1 + 2j, 3 - 4j]]).conj()
    assert tensor_bits(flat_patterns(lazy)) == tensor_bits(lazy)
    assert flat_patterns(torch.tensor(-0.0)).tolist() == [-(2**31)]
    assert flat_patterns(torch.zeros(4, 1)[:1]).shape == (1,)


@pytest.mark.parametrize("count", [0, 5])
def test_host_patterns_share_the_memory(count: int) -> None:
    memory = bytearray(2 * count)
    kept = host_patterns(memoryview(memory), torch.zeros(count, dtype=torch.int16))
    assert kept.dtype == torch.int16
    assert kept.shape == (count,)
    kept += 1
    assert memory == b"\1\0" * count
