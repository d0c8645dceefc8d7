"""Differences by factors: the library and the page agree, and merged adapters cost little."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import casweights
from casweights import StoreConfig
from casweights.format.codecs import Encoding, decode
from casweights.format.differences import encode_difference
from casweights.format.dtypes import DTYPES
from casweights.format.elements import kind_of
from casweights.format.factoring import find_factors
from casweights.format.layout import Extent
from casweights.format.low_rank import Factors, LowRank
from casweights.format.parts import split
from casweights.kernels import dense_encode, sparse_encode
from casweights.kernels.kinds import ElementKind
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from casweights.format.dtypes import DType
    from casweights.system.buffers import Buffer

BF16, F16, F32 = DTYPES["BF16"], DTYPES["F16"], DTYPES["F32"]
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
KINDS = [ElementKind(n) for n in range(4, 9)]
factor = st.integers(-32768, 32767) | st.integers(-2, 2)


def content(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return data


def merged(
    rows: int, columns: int, rank: int, dtype: DType = BF16, seed: int = 0
) -> tuple[bytes, bytes]:
    """Return a matrix, and the same with a product of this rank merged into it."""
    torch.manual_seed(seed)
    weight = (torch.randn(rows, columns) / 50).to(TORCH[dtype.code])
    product = torch.randn(rows, rank) @ torch.randn(rank, columns)
    new = weight.float() + product / 1000 / rank**0.5
    return content(weight), content(new.to(weight.dtype))


def decoded(encoding: int, payload: Buffer, base: bytes) -> bytes:
    out = bytearray(base)
    decode(encoding, payload, memoryview(out))
    return bytes(out)


def by_the_page(encoding: int, payload: Buffer, base: bytes) -> bytes:
    chunks: Any = importlib.import_module("tools.spec.chunks")
    result: bytes = chunks.decode(bytes(payload), encoding, len(base), base)
    return result


def payload_of(kind: ElementKind, data: st.DataObject) -> tuple[bytes, bytes]:
    """Return any payload of a few elements with one factor a line, and a base."""
    columns, rows = data.draw(st.integers(3, 9)), data.draw(st.integers(3, 9))
    start = data.draw(st.integers(0, columns - 1))
    count = rows * columns - start - data.draw(st.integers(0, columns - start - 1))
    if count < rows + columns:
        count, start = rows * columns, 0
    numbers = data.draw(st.lists(factor, min_size=rows + columns, max_size=rows + columns))
    left = np.array(numbers[:rows], "<i2").reshape(rows, 1)
    right = np.array(numbers[rows:], "<i2").reshape(1, columns)
    factors = Factors(left, right, data.draw(st.integers(-128, 127)), start)
    size = count * kind.width
    base, other = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    rest = sparse_encode(other, base, kind)
    return LowRank(kind, factors, (Encoding.SPARSE, rest)).join(), base


@given(st.sampled_from(KINDS), st.data())
def test_the_page_says_what_factors_predict(kind: ElementKind, data: st.DataObject) -> None:
    payload, base = payload_of(kind, data)
    content = LowRank.split(payload, len(base))
    out = bytearray(base)
    content.factors.apply(kind, memoryview(out))
    low_rank: Any = importlib.import_module("tools.spec.low_rank")
    left, right = content.factors.left.tolist(), content.factors.right.tolist()
    by_page = low_rank.Factors(left, right, content.factors.exponent, content.factors.start)
    assert by_page.predict(base, int(kind)) == bytes(out)


def test_a_product_of_zero_is_positive() -> None:
    left, right = np.full((3, 1), -3, "<i2"), np.zeros((1, 3), "<i2")
    out = bytearray(9 * b"\0\x80")
    Factors(left, right, 0, 0).apply(ElementKind.BFLOAT_16, memoryview(out))
    assert out == bytes(18)


@pytest.mark.parametrize(("rank", "fits"), [(2, True), (3, False)])
def test_there_are_no_more_factors_than_elements(rank: int, fits: bool) -> None:
    factors = Factors(np.ones((4, rank), "<i2"), np.ones((rank, 4), "<i2"), 0, 0)
    rest = sparse_encode(bytes(16), bytes(16), ElementKind.E4M3)
    payload = LowRank(ElementKind.E4M3, factors, (Encoding.SPARSE, rest)).join()
    if fits:
        assert LowRank.split(payload, 16).factors.left.shape == (4, rank)
        return
    with pytest.raises(ValueError, match="more factors than elements"):
        LowRank.split(payload, 16)


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.binary(max_size=2)), max_size=2),
    st.data(),
)
def test_both_refuse_the_same(
    kind: ElementKind, edits: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    """The payloads are valid ones with bytes replaced, inserted and removed."""
    payload, base = payload_of(kind, data)
    for at, removed, inserted in edits:
        payload = payload[:at] + inserted + payload[at + removed :]
    chunks: Any = importlib.import_module("tools.spec.chunks")
    try:
        expected: bytes | None = by_the_page(Encoding.LOW_RANK, payload, base)
    except chunks.FAILURES:
        expected = None
    try:
        found: bytes | None = decoded(Encoding.LOW_RANK, payload, base)
    except ValueError:
        found = None
    assert found == expected


@pytest.mark.parametrize("rank", [1, 8, 32, 64])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_a_merged_adapter_costs_its_factors_and_little_more(dtype: DType, rank: int) -> None:
    base, new = merged(1024, 768, rank, dtype)
    encoded = encode_difference(new, base, dtype, [Extent(len(new), 768)])
    assert encoded is not None
    assert encoded[0] is Encoding.LOW_RANK
    assert decoded(*encoded, base) == new
    factors = LowRank.split(encoded[1], len(new)).factors
    assert factors.left.shape[1] == rank
    dense = len(dense_encode(base, new, kind_of(dtype)))
    assert len(encoded[1]) - len(factors.join()) < dense / 6


def test_an_adapter_of_fp32_is_found() -> None:
    base, new = merged(512, 512, 8, F32)
    encoded = encode_difference(new, base, F32, [Extent(len(new), 512)])
    assert encoded is not None
    assert decoded(*encoded, base) == new
    assert len(encoded[1]) < len(dense_encode(base, new, kind_of(F32))) / 2


@pytest.mark.parametrize("start", [0, 1, 300, 511])
@pytest.mark.parametrize("short", [0, 2, 1022])
def test_a_chunk_may_begin_and_end_within_a_row(start: int, short: int) -> None:
    sides = merged(66, 512, 4)  # a little more than the fewest elements that are factored
    base, new = (side[2 * start : len(side) - short] for side in sides)
    encoded = encode_difference(new, base, BF16, [Extent(len(new), 512, 5 * 512 + start)])
    assert encoded is not None
    assert encoded[0] is Encoding.LOW_RANK
    assert decoded(*encoded, base) == new == by_the_page(*encoded, base)


def test_each_tensor_of_a_bundle_has_its_own_factors() -> None:
    pairs = [merged(96, 384, 4, seed=0), merged(384, 96, 8, seed=1), merged(1, 384, 1, seed=2)]
    same = content(torch.randn(80, 384).bfloat16())
    base, new = (b"".join((*side, same)) for side in zip(*pairs, strict=True))
    sizes = [*(len(one) for one, _ in pairs), len(same)]
    extents = [Extent(size, n) for size, n in zip(sizes, (384, 96, 0, 384), strict=True)]
    encoded = encode_difference(new, base, BF16, extents)
    assert encoded is not None
    assert encoded[0] is Encoding.PARTS
    assert decoded(*encoded, base) == new == by_the_page(*encoded, base)
    parts = [(part.encoding, part.nbytes) for part in split(encoded[1], len(new))]
    assert parts[:2] == [(Encoding.LOW_RANK, size) for size in sizes[:2]]
    assert all(encoding != Encoding.LOW_RANK for encoding, _ in parts[2:])
    together = encode_difference(new, base, BF16)
    assert together is not None
    assert len(encoded[1]) < len(together[1]) / 3


def test_a_change_of_full_rank_has_no_factors() -> None:
    base, new = merged(512, 512, 512)
    assert find_factors(new, base, kind_of(BF16), Extent(len(new), 512)) is None
    plain = encode_difference(new, base, BF16)
    assert encode_difference(new, base, BF16, [Extent(len(new), 512)]) == plain


@given(
    st.sampled_from(["BF16", "F16", "F32", "F8_E4M3", "F8_E5M2", "I16", "F64"]),
    st.sampled_from([(256, 160), (64, 640), (700, 64)]),
    st.integers(0, 700),
    st.sampled_from(["noise", "zeros", "infinite", "far"]),
    st.integers(0, 3),
)
def test_any_content_comes_back(
    code: str, shape: tuple[int, int], start: int, how: str, seed: int
) -> None:
    dtype, rng = DTYPES[code], np.random.default_rng(seed)
    kind = kind_of(dtype)
    count = shape[0] * shape[1]
    old = rng.integers(0, 256, count * kind.width, np.uint8)
    new = old.copy()
    if how == "noise":
        new = rng.integers(0, 256, count * kind.width, np.uint8)
    elif how == "zeros":
        new[:] = 0
    elif how == "infinite":
        old, new = (np.frombuffer(one, np.uint8).copy() for one in merged(*shape, 3, BF16, seed))
        new[:200], old[400:600] = 255, 127
    else:
        new.view(f"<u{kind.width}")[:] += np.uint8(1)
    size = min(len(old), len(new)) // kind.width * kind.width
    base, raw = old[:size].tobytes(), new[:size].tobytes()
    encoded = encode_difference(raw, base, dtype, [Extent(size, shape[1], start)])
    if encoded is not None:
        assert decoded(*encoded, base) == raw


def test_versions_with_merged_adapters_are_small_and_come_back() -> None:
    torch.manual_seed(5)
    base = {f"layer.{n}.weight": (torch.randn(512, 640) / 50).bfloat16() for n in range(2)}
    base["norm.weight"] = torch.ones(640, dtype=torch.bfloat16)
    config = StoreConfig(chunk_size=1 << 20)
    with casweights.open(MemoryStore(), create=True, config=config) as repo:
        first = repo.commit(base)
        for number in range(3):
            adapted = dict(base)
            product = torch.randn(512, 4) @ torch.randn(4, 640) / 2000
            weight = base["layer.1.weight"].float() + product
            adapted["layer.1.weight"] = weight.bfloat16()
            branch = f"adapters/{number}"
            repo.commit(adapted, branch=branch, parent=first.id if number else None)
            loaded = repo.load(branch)
            assert all(torch.equal(loaded[name], adapted[name]) for name in adapted)
        assert repo.verify().problems == ()
        stats = repo.stats()
    assert stats.encodings["low_rank"] == 3
    nbytes = base["layer.1.weight"].nbytes
    assert all(version.stored_bytes < nbytes / 8 for version in stats.versions[1:])
    assert all(version.longest_chain == 2 for version in stats.versions[1:])
