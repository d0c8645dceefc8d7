"""Samples: where they lie, what they are rounded to, and what relatives share."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from casweights.config import KiB
from casweights.format.dtypes import DTYPES
from casweights.format.features import EMPTY, coarse_row, features
from casweights.format.layout import file_pieces
from casweights.format.rounding import is_rounded, rounded
from casweights.format.safetensors import build_header, parse_header
from casweights.format.sampling import (
    MAX_SAMPLES,
    Grid,
    Samples,
    cost,
    grid_of,
    positions,
    room,
    sampled_tensors,
)
from casweights.format.signatures import COARSE_HASHES, COARSE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.format.safetensors import Header

CHUNK = 64 * KiB
TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
sizes = st.integers(1, 1 << 20) | st.integers(0, 20).map(lambda bits: 1 << bits)


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * 0.02).to(torch.bfloat16)


def model(tensors: dict[str, torch.Tensor], codes: dict[torch.dtype, str]) -> tuple[Header, bytes]:
    """Return a file's header and all of its bytes."""
    rows = [(name, DTYPES[codes[t.dtype]], tuple(t.shape)) for name, t in tensors.items()]
    raw = build_header(rows, {})
    header = parse_header(raw, sum(tensor.nbytes for tensor in tensors.values()))
    flat = (tensors[info.name].contiguous().view(-1) for info in header.tensors)
    return header, raw + b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in flat)


CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}


def sample(tensors: dict[str, torch.Tensor], chunk_size: int = CHUNK, path: str = "m") -> Samples:
    """Sample a file's chunks, in random order."""
    header, content = model(tensors, CODES)
    samples = Samples([(path, len(content), header)])
    pieces = list(file_pieces(len(content), header, chunk_size))
    random.Random(0).shuffle(pieces)
    for piece in pieces:
        samples.add(path, piece, memoryview(content)[piece.offset : piece.offset + piece.nbytes])
    assert samples.is_complete
    return samples


def row_tuples(tensor: torch.Tensor) -> set[tuple[int, ...]]:
    """Return the first four samples of each sampled row."""
    samples = sample({"t": tensor})
    grid = samples.tensors[0].grid
    rows = samples.values.reshape(positions(grid.rows, grid.columns).shape)
    return {tuple(map(int, row[:4])) for row in rows}


@hypothesis.given(sizes, sizes)
def test_there_are_some_samples_and_not_many_all_within_the_tensor(rows: int, columns: int) -> None:
    found = positions(rows, columns)
    assert min(rows * columns, 4) <= found.size <= MAX_SAMPLES
    flat = found.ravel().tolist()
    assert len(set(flat)) == len(flat)
    assert min(flat) >= 0
    assert max(flat) < rows * columns


@hypothesis.given(sizes, sizes)
def test_large_tensors_have_more_samples(rows: int, columns: int) -> None:
    for elements, least in ((1 << 20, 13), (1 << 15, 6)):
        if rows * columns >= elements:
            assert positions(rows, columns).size >= least


def test_the_positions_are_those_of_the_specification() -> None:
    found = positions(6144, 4096)
    assert (found[:, 0] // 4096).tolist() == [21, 1045, 2069, 3093, 4117, 5141]
    assert (found[0] % 4096).tolist() == [2531, 966, 3498, 1933]
    assert positions(768, 1).ravel().tolist() == [21, 149, 277, 405, 533, 661]
    assert positions(1, 5).tolist() == [[3, 1, 4, 2]]


@hypothesis.given(
    st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(4, 4096)
)
def test_parts_of_a_fused_tensor_share_its_samples(
    before: int, parts: list[int], columns: int
) -> None:
    """Every sampled row of the whole that lies in a part is sampled of this part, too."""
    unit = 1 << 10
    heights = [before * unit, *(part * unit for part in parts)]
    whole = positions(sum(heights), columns)
    every = int(whole[1, 0] - whole[0, 0]) // columns if len(whole) > 1 else 0
    start = 0
    for height in heights:
        rows = {int(row) // columns for row in positions(height, columns)[:, 0]}
        shared = {int(row) // columns - start for row in whole[:, 0]} & set(range(height))
        if every and start % every == 0:
            largest = max(every, _every(height, columns))
            assert {row for row in shared if row % largest == _OFFSET % largest} <= rows
            if every >= _every(height, columns):
                assert shared <= rows
        start += height


_OFFSET = 0x9E3779B97F4A7C15


def _every(rows: int, columns: int) -> int:
    found = positions(rows, columns)
    return int(found[1, 0] - found[0, 0]) // columns if len(found) > 1 else rows


def test_a_fused_tensor_has_the_values_of_its_parts() -> None:
    query, key, value = weights(2048, 512, 1), weights(512, 512, 2), weights(512, 512, 3)
    fused = row_tuples(torch.cat([query, key, value]))
    for part in (query, key, value):
        assert len(fused & row_tuples(part)) >= 1
    assert not fused & row_tuples(weights(1024, 512, 4))


@pytest.mark.parametrize("code", TORCH)
def test_floats_of_all_widths_are_the_nearest_bf16(code: str) -> None:
    dtype = DTYPES[code]
    elements = np.random.default_rng(0).integers(
        0, 1 << min(63, dtype.bits), 200_000, dtype=np.uint64
    )
    elements = elements.astype(f"<u{dtype.width}")
    if dtype.width == 1:
        elements = np.arange(256, dtype=np.uint8)
    if dtype.width > 2:  # halfway between two, and next to it
        high = (elements >> elements.dtype.type(8 * dtype.width - 16)).astype(np.uint64)
        if code == "F32":
            halves = [(high << np.uint64(16)) + np.uint64(n) for n in (0x7FFF, 0x8000, 0x8001)]
            elements = np.concatenate([elements, *(half.astype("<u4") for half in halves)])
    tensor = torch.from_numpy(elements.copy()).view(TORCH[code])
    expected = tensor.to(torch.float32).to(torch.bfloat16)
    found = torch.from_numpy(rounded(elements, dtype).astype(np.int16)).view(torch.bfloat16)
    is_nan = expected.isnan()
    assert torch.equal(found.isnan(), is_nan)
    assert torch.equal(found[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))


def test_integers_are_equal_in_all_widths() -> None:
    for code in ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"):
        dtype = DTYPES[code]
        assert not is_rounded(dtype)
        numbers = np.array([0, 1, 100], f"<u{dtype.width}")
        assert rounded(numbers, dtype).tolist() == [0, 1, 100]
    assert rounded(np.array([0x1234_0001_0000_0070], "<u8"), DTYPES["I64"]).tolist() == [0x1245]
    assert rounded(np.array([0x4000_0001_3F80_0000], "<u8"), DTYPES["C64"]).tolist() == [0x3F80]


def test_casts_share_all_samples_of_floats() -> None:
    exact = weights(512, 256).float() * 1.001
    wide, narrow = sample({"t": exact}), sample({"t": exact.to(torch.bfloat16)})
    assert np.array_equal(wide.values, narrow.values)
    grids = [[tensor.grid for tensor in samples.tensors] for samples in (wide, narrow)]
    rows = [coarse_row(features(g, s.values)) for g, s in zip(grids, (wide, narrow), strict=True)]
    assert rows[0] == rows[1]


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40)
def test_samples_are_the_elements_at_their_positions(data: st.DataObject) -> None:
    """However the file is cut into chunks, and whichever tensors share one."""
    shapes = data.draw(
        st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=9)
    )
    dtypes = [data.draw(st.sampled_from(list(CODES))) for _ in shapes]
    tensors = {
        f"t.{n}": (weights(*shape, n) * 100).to(dtype)
        for n, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }
    samples = sample(tensors, chunk_size=1 << data.draw(st.integers(10, 20)))
    at = 0
    for sampled in samples.tensors:
        assert sampled.tensor is not None
        tensor = tensors[sampled.tensor.name]
        flat = positions(*sampled.grid[:2]).ravel()
        values = tensor.reshape(-1)[torch.from_numpy(flat.copy())]
        expected = values.to(torch.int16) if values.dtype == torch.uint8 else values.float()
        if values.dtype != torch.uint8:
            expected = expected.to(torch.bfloat16).view(torch.int16)
        found = samples.values[at : at + len(flat)].astype(np.int16)
        assert found.tolist() == expected.tolist()
        at += len(flat)
    assert at == len(samples.values)


def test_chunks_whose_samples_are_not_known_are_wanted() -> None:
    tensors = {"a": weights(30, 400, 1), "b": weights(10, 10, 2), "c": weights(9, 9, 3)}
    header, content = model(tensors, CODES)
    samples = Samples([("m", len(content), header)])
    for piece in file_pieces(len(content), header, CHUNK):
        assert samples.wants("m", piece)
        assert not samples.wants("other", piece)
        samples.add("m", piece, content[piece.offset : piece.offset + piece.nbytes])
        assert not samples.wants("m", piece)
    assert samples.is_complete


def test_chunks_without_samples_are_not_wanted() -> None:
    header, content = model({"a": weights(4096, 64)}, CODES)
    samples = Samples([("m", len(content), header)])
    wanted = [samples.wants("m", piece) for piece in file_pieces(len(content), header, CHUNK)]
    assert sum(wanted) == 2  # of 8: the tensor has two sampled rows


def test_files_without_tensors_are_sampled_as_bytes() -> None:
    content = bytes(range(256)) * 1000
    samples = Samples([("b", len(content), None), ("empty", 0, None)])
    for piece in file_pieces(len(content), None, CHUNK):
        samples.add("b", piece, content[piece.offset : piece.offset + piece.nbytes])
    assert samples.is_complete
    flat = positions(len(content) // 64, 64).ravel().tolist()
    assert samples.values.tolist() == [content[at] for at in flat]


def test_packed_elements_count_as_bytes() -> None:
    raw = build_header([("t", DTYPES["F4"], (6, 10)), ("u", DTYPES["F4"], (2, 3, 3))], {})
    header = parse_header(raw, 39)
    by_name = {tensor.name: grid_of(tensor)[:2] for tensor in header.tensors}
    assert by_name == {"t": (6, 5), "u": (9, 1)}


def headers(shapes: Sequence[tuple[int, ...]]) -> list[tuple[str, int, Header | None]]:
    raw = build_header([(f"t{n:05}", DTYPES["U8"], s) for n, s in enumerate(shapes)], {})
    size = sum(int(np.prod(shape)) for shape in shapes)
    return [("m", len(raw) + size, parse_header(raw, size))]


def test_a_version_of_very_many_tensors_has_samples_of_the_largest() -> None:
    shapes = [(8,)] * 3000 + [(64, 64)] * 50 + [(8,)] * 3000
    found = sampled_tensors(headers(shapes))
    assert sum(cost(sampled.grid) for sampled in found) <= room(0)
    assert sum(sampled.grid.rows == 64 for sampled in found) == 50
    small = [n for n, sampled in enumerate(found) if sampled.grid.rows == 8]
    names = [int(found[n].tensor.name[1:]) for n in small]  # type: ignore[union-attr]
    assert names == sorted(names)
    assert 0.4 < sum(name < 3000 for name in names) / len(names) < 0.6  # spread over the file


def test_a_signature_of_a_large_model_has_a_millionth_of_its_bytes() -> None:
    shapes = [(4096, 4096)] * 128 + [(11008, 4096)] * 96 + [(32000, 4096)] * 2 + [(4096,)] * 65
    found = sampled_tensors(headers(shapes))
    assert len(found) == len(shapes)
    assert sum(cost(sampled.grid) for sampled in found) < 10_000


def family(change: float, seed: int) -> dict[str, torch.Tensor]:
    """Return a model of 40 matrices, of which a share of the elements is one step larger."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for n in range(40):
        tensor = weights(256, 128, n)
        steps = torch.rand(tensor.shape, generator=generator) < change
        tensors[f"{n}"] = (tensor.view(torch.int16) + steps).view(torch.bfloat16)
    return tensors


def features_of(tensors: dict[str, torch.Tensor]) -> tuple[set[int], set[int]]:
    samples = sample(tensors)
    found = features([tensor.grid for tensor in samples.tensors], samples.values)
    return set(found.exact.tolist()), set(found.rough.tolist())


def test_relatives_share_features_and_others_none() -> None:
    exact, rough = features_of(family(0, 0))
    for change, least, most in ((0.05, 0.7, 1.0), (0.5, 0.03, 0.3)):
        tuned_exact, tuned_rough = features_of(family(change, 1))
        assert least <= len(exact & tuned_exact) / len(exact) <= most
        assert len(rough & tuned_rough) / len(rough) > 0.8
    other = {f"{n}": weights(256, 128, 1000 + n) for n in range(40)}
    other_exact, other_rough = features_of(other)
    assert not exact & other_exact
    assert len(rough & other_rough) / len(rough) < 0.02


def test_names_files_and_order_do_not_matter_for_features() -> None:
    tensors = family(0, 0)
    renamed = {f"other.{name}": tensors[name] for name in reversed(tensors)}
    assert features_of(renamed) == features_of(tensors)


def test_constant_rows_have_no_features() -> None:
    for value in (0.0, 1.0, -2.5):
        constant = {"t": torch.full((512, 64), value, dtype=torch.bfloat16)}
        assert features_of(constant) == (set(), set())


def test_a_coarse_row_has_the_smallest_features() -> None:
    samples = sample(family(0, 0))
    found = features([tensor.grid for tensor in samples.tensors], samples.values)
    row = np.frombuffer(coarse_row(found), "<u4")
    assert len(row) == COARSE_HASHES
    assert len(row.tobytes()) == COARSE_SIZE
    assert row[:32].tolist() == sorted(found.exact.tolist())[:32]
    assert row[32:].tolist() == sorted(found.rough.tolist())[:32]
    few = features([Grid(1, 4, DTYPES["BF16"])], np.array([1, 200, 3000, 40000], np.uint16))
    row = np.frombuffer(coarse_row(few), "<u4")
    assert (row == EMPTY).sum() == COARSE_HASHES - 2
