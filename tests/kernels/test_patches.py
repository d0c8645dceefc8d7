"""The kernels `changes` and `swap`, compiled and in numpy, compared with a simple model."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from casweights import kernels
from casweights.kernels import _compiled
from casweights.kernels.reference import patches as twins
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.system.buffers import Buffer

    Patch = tuple[bytes, bytearray] | None

WIDTHS = [1, 2, 4, 8]
COUNTS = [0, 1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129, 500, 4095, 4096, 4097, 9000]
SHARES = [0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.33, 0.5, 1]
POSITION = 4

any_width = pytest.mark.parametrize("width", WIDTHS)
any_module = pytest.mark.parametrize("module", [_compiled, twins], ids=["compiled", "twin"])


def implementations() -> Iterator[Any]:
    """Yield the compiled kernels of each target, and the twins."""
    for target in _compiled.TARGETS:
        _compiled.use(target)
        yield _compiled
    yield twins


def split(data: Buffer, width: int) -> list[bytes]:
    raw = bytes(data)
    return [raw[n : n + width] for n in range(0, len(raw), width)]


def model_changes(old: bytes, new: bytes, width: int) -> Patch:
    pairs = zip(split(old, width), split(new, width), strict=True)
    found = [(n, after) for n, (before, after) in enumerate(pairs) if before != after]
    positions = b"".join(n.to_bytes(POSITION, "little") for n, _ in found)
    values = bytearray(b"".join(after for _, after in found))
    return None if len(positions) + len(values) > len(new) else (positions, values)


def model_swap(memory: bytes, positions: bytes, values: bytes, width: int) -> tuple[bytes, bytes]:
    elements, others = split(memory, width), split(values, width)
    for n, place in enumerate(split(positions, POSITION)):
        at = int.from_bytes(place, "little")
        elements[at], others[n] = others[n], elements[at]
    return b"".join(elements), b"".join(others)


def shifted(data: Buffer, shift: int) -> memoryview:
    """Return a writable copy that begins `shift` bytes after an aligned address."""
    return memoryview(bytearray(shift) + data)[shift:]


def changed_at(old: bytes, places: np.ndarray, width: int, rng: np.random.Generator) -> bytes:
    """Flip all bits, or one, of the elements at these positions."""
    new = np.frombuffer(old, f"<u{width}").copy()
    single = np.uint64(1) << rng.integers(8 * width, size=len(places)).astype(np.uint64)
    everything = (1 << 8 * width) - 1
    flips = np.where(rng.random(len(places)) < 0.5, single, np.uint64(everything))
    new[places] ^= flips.astype(new.dtype)
    return new.tobytes()


def check(old: bytes, new: bytes, width: int, shift: int = 0) -> Patch:
    """Find, apply and undo changes with all implementations; return the patch they agree on."""
    expected = model_changes(old, new, width)
    for module in implementations():
        patch = module.changes(shifted(old, shift), shifted(new, 2 * shift), width)
        assert patch == expected
        if patch is None:
            continue
        positions, values = patch
        assert (type(positions), type(values)) == (bytes, bytearray)
        swapped = model_swap(old, positions, values, width)
        memory, places, others = (shifted(data, shift) for data in (old, positions, values))
        module.swap(memory, places, others, width)
        assert (bytes(memory), bytes(others)) == swapped
        assert bytes(memory) == new
        module.swap(memory, places, others, width)
        assert (bytes(memory), others) == (old, values)
    return expected


@any_width
@pytest.mark.parametrize("share", SHARES)
def test_any_share_of_changes_is_found_and_swapped(width: int, share: float) -> None:
    rng = np.random.default_rng(width)
    for count in COUNTS:
        old = rng.bytes(count * width)
        places = np.flatnonzero(rng.random(count) < share)
        check(old, changed_at(old, places, width, rng), width)


@hypothesis.settings(max_examples=examples(150))
@hypothesis.given(
    width=st.sampled_from(WIDTHS),
    count=st.sampled_from(COUNTS) | st.integers(0, 300),
    share=st.sampled_from(SHARES),
    shift=st.integers(0, 9),
    seed=st.integers(0, 999),
)
def test_unaligned_buffers_give_the_same_patch(
    width: int, count: int, share: float, shift: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    old = rng.bytes(count * width)
    places = np.flatnonzero(rng.random(count) < share)
    check(old, changed_at(old, places, width, rng), width, shift)


@hypothesis.given(data=st.data(), width=st.sampled_from(WIDTHS))
def test_any_bits_are_found_and_swapped(data: st.DataObject, width: int) -> None:
    size = width * data.draw(st.integers(0, 150))
    old, new = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    check(old, new, width)


@any_width
@pytest.mark.parametrize("count", [1, 2, 64, 65, 200])
def test_each_single_changed_element_is_found(width: int, count: int) -> None:
    rng = np.random.default_rng(count)
    old = rng.bytes(count * width)
    for place in range(count):
        patch = check(old, changed_at(old, np.array([place]), width, rng), width)
        if count * width >= POSITION + width:
            assert patch is not None
            assert patch[0] == place.to_bytes(POSITION, "little")


@any_width
@pytest.mark.parametrize("where", ["first", "last", "scattered"])
@pytest.mark.parametrize("count", [5, 60, 64, 120, 640, 4096, 9960, 9961, 9967])
def test_changes_beyond_the_size_of_the_elements_give_none(
    width: int, where: str, count: int
) -> None:
    rng = np.random.default_rng(count)
    old = rng.bytes(count * width)
    limit = count * width // (POSITION + width)
    for changed in (limit, limit + 1):
        places = {
            "first": np.arange(changed),
            "last": np.arange(count - changed, count),
            "scattered": rng.permutation(count)[:changed],
        }[where]
        patch = check(old, changed_at(old, places, width, rng), width)
        if changed > limit:
            assert patch is None
        else:
            assert patch is not None
            assert len(patch[0]) == POSITION * limit


@any_width
def test_equal_buffers_give_an_empty_patch(width: int) -> None:
    for size in (0, 8, 520, 8192):
        assert check(bytes(size), bytes(size), width) == (b"", bytearray())


@pytest.mark.parametrize(("dtype", "width"), [("<f2", 2), ("<f4", 4), ("<f8", 8)])
def test_bits_are_compared_and_not_numbers(dtype: str, width: int) -> None:
    old = np.array([0.0, np.nan, 1.0, 0.0] * 20, dtype)
    new = old.copy()
    new[0] = -0.0
    assert check(old.tobytes(), old.tobytes(), width) == (b"", bytearray())
    assert check(old.tobytes(), new.tobytes(), width) == (bytes(4), bytearray(new[:1].tobytes()))


def test_compiled_kernels_are_exported() -> None:
    assert kernels.changes is _compiled.changes
    assert kernels.swap is _compiled.swap


@any_module
@pytest.mark.parametrize(
    ("old", "new", "width"), [(8, 6, 2), (8, 10, 2), (3, 3, 2), (6, 6, 3), (8, 8, 0), (8, 8, -1)]
)
def test_changes_refuses_wrong_sizes(module: Any, old: int, new: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"below 2\^32 - 1, of 1, 2, 4 or 8 bytes"):
        module.changes(bytes(old), bytes(new), width)


@any_module
@pytest.mark.parametrize(
    ("memory", "positions", "values", "width"),
    [
        (8, 4, 3, 2),
        (8, 4, 4, 2),
        (8, 4, 0, 2),
        (8, 3, 2, 2),
        (8, 5, 2, 2),
        (7, 4, 2, 2),
        (9, 4, 3, 3),
        (8, 4, 0, 0),
        (8, 4, 16, 16),
        (8, 0, 2, 2),
        (8, 0, 1, 2),
    ],
)
def test_swap_refuses_wrong_sizes(
    module: Any, memory: int, positions: int, values: int, width: int
) -> None:
    before, others = bytearray(b"m" * memory), bytearray(b"v" * values)
    with pytest.raises(ValueError, match="one value for each position"):
        module.swap(before, bytes(positions), others, width)
    assert (bytes(before), bytes(others)) == (b"m" * memory, b"v" * values)


@any_width
@pytest.mark.parametrize(
    "places",
    [[40], [0, 40], [0, 1 << 31], [(1 << 32) - 1], [3, 3], [4, 3], [50, 3], [0, 50, 3], [0, 1, 0]],
)
def test_swap_refuses_hostile_positions_and_writes_nothing(width: int, places: list[int]) -> None:
    """If positions do not ascend or are out of range, no element is written."""
    positions = np.array(places, "<u4").tobytes()
    memory, values = bytearray(b"m" * 40 * width), bytearray(b"v" * len(places) * width)
    before, others = bytes(memory), bytes(values)
    for module in implementations():
        with pytest.raises(ValueError, match="must ascend and be below the number"):
            module.swap(memory, positions, values, width)
        assert (bytes(memory), bytes(values)) == (before, others)


@hypothesis.settings(max_examples=examples(150))
@hypothesis.given(
    width=st.sampled_from(WIDTHS),
    count=st.integers(0, 40),
    places=st.lists(st.integers(0, 40) | st.integers(0, (1 << 32) - 1), max_size=40),
    ordered=st.booleans(),
)
def test_swap_accepts_exactly_ascending_positions_in_range(
    width: int, count: int, places: list[int], ordered: bool
) -> None:
    """All implementations accept positions that ascend in range, and refuse all others."""
    chosen = sorted(set(places)) if ordered else places
    valid = chosen == sorted(set(chosen)) and (not chosen or chosen[-1] < count)
    positions = np.array(chosen, "<u4").tobytes()
    before, others = b"m" * width * count, b"v" * width * len(chosen)
    expected = model_swap(before, positions, others, width) if valid else (before, others)
    for module in implementations():
        memory, values = bytearray(before), bytearray(others)
        try:
            module.swap(memory, positions, values, width)
        except ValueError:
            assert not valid
        else:
            assert valid
        assert (bytes(memory), bytes(values)) == expected


@any_module
def test_swap_refuses_read_only_buffers(module: Any) -> None:
    for memory, values in [(bytes(8), bytearray(2)), (bytearray(8), bytes(2))]:
        with pytest.raises(TypeError, match="read-write"):
            module.swap(memory, bytes(4), values, 2)


@any_module
def test_more_elements_than_positions_can_address_are_refused(module: Any) -> None:
    with mmap.mmap(-1, (1 << 32) - 1, flags=mmap.MAP_PRIVATE) as untouched:
        with pytest.raises(ValueError, match="same number of elements"):
            module.changes(untouched, untouched, 1)
        with pytest.raises(ValueError, match="one value for each position"):
            module.swap(untouched, bytes(4), bytearray(1), 1)
