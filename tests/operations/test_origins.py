"""Marks of rows, and the runs of rows that follow from them."""

from __future__ import annotations

from itertools import pairwise

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from casweights.format.dtypes import DTYPES
from casweights.format.layout import Part
from casweights.format.safetensors import TensorInfo
from casweights.operations.marks import Marks, MarkTable, marks_of, row_marks
from casweights.operations.origins import Origin, Run

COLUMNS = 32


def part_of(content: bytes, shape: tuple[int, ...], dtype: str = "BF16", start: int = 0) -> Part:
    info = TensorInfo("w", DTYPES[dtype], shape, 0, len(content))
    return Part(info, start, 0, len(content) - start)


def weights(rows: int, seed: int = 0) -> np.ndarray:
    floats = np.random.default_rng(seed).normal(size=(rows, COLUMNS)).astype(np.float32)
    return (floats.view(np.uint32) >> np.uint32(16)).astype("<u2")


def marks(rows: np.ndarray) -> Marks:
    return marks_of(part_of(rows.tobytes(), rows.shape), rows.tobytes())


def test_an_origin_without_a_match_has_no_runs() -> None:
    assert Origin(100, is_vector=False).runs([10, 20]) == []


@hypothesis.given(st.lists(st.tuples(st.integers(0, 2), st.integers(2, 60)), max_size=6))
def test_rows_of_several_tensors_are_found(cuts: list[tuple[int, int]]) -> None:
    """Neighbouring rows of each source are taken in turn, all of them known or all but a few."""
    sources = [weights(400, seed) for seed in range(3)]
    at, parts, expected = [0, 0, 0], [np.empty((0, COLUMNS), "<u2")], []
    for source, count in cuts:
        parts.append(sources[source][at[source] : at[source] + count])
        expected += [(source, row) for row in range(at[source], at[source] + count)]
        at[source] += count
    new = np.concatenate(parts)
    new[::7] ^= 1  # survives rounding
    new[5:-1:16] ^= 0x4000  # does not
    table, origin = (
        MarkTable([(0, marks(new))] if len(new) else []),
        Origin(len(new), is_vector=False),
    )
    for number, rows in enumerate(sources):
        own = marks(rows)
        match = table.find(own)
        origin.add(number, match.rows, match.sources, len(own.rows))
    runs = origin.runs([400, 400, 400])
    assert all(one.stop <= other.start for one, other in pairwise(runs))
    found = [(r.source, n - r.shift) for r in runs for n in range(r.start, r.stop)]
    wrong = sum(pair not in expected for pair in found)
    assert wrong + len(expected) - len(set(found) & set(expected)) <= 4 * len(cuts)


def test_a_border_between_heads_is_a_round_number() -> None:
    origin = Origin(256, is_vector=False)
    known = np.array([*range(120), *range(130, 256)])
    origin.add(0, known[:120], known[:120], 120)
    origin.add(1, known[120:], known[120:] - 100, 126)
    assert origin.runs([300, 300]) == [Run(0, 128, 0, 0), Run(128, 256, 1, 100)]


def test_a_run_ends_where_its_tensor_does() -> None:
    origin = Origin(100, is_vector=False)
    rows = np.arange(10, 36)
    origin.add(0, rows, rows - 4, 26)
    assert origin.runs([40]) == [Run(4, 44, 0, 4)]


def test_rows_that_one_mark_contradicts_stay_together() -> None:
    origin = Origin(50, is_vector=False)
    rows = np.delete(np.arange(50), 20)
    origin.add(0, rows, rows, 50)
    origin.add(1, np.array([20]), np.array([3]), 1)
    assert origin.runs([50, 50]) == [Run(0, 50, 0, 0)]


@pytest.mark.parametrize("start", [0, 2 * COLUMNS, 2 * COLUMNS + 10])
def test_marks_are_those_of_whole_rows(start: int) -> None:
    rows = weights(8)
    content = rows.tobytes()
    found = marks_of(part_of(content, rows.shape, start=start), content[start:])
    first = -(-start // (2 * COLUMNS))
    assert found.rows.tolist() == list(range(first, 8))
    assert found.hashes.tolist() == marks(rows).hashes[first:].tolist()


def test_constant_rows_have_no_marks() -> None:
    assert not len(marks(np.ones((9, COLUMNS), "<u2")).rows)


def test_columns_are_recognised_by_the_first_rows() -> None:
    rows = weights(20)
    left = np.ascontiguousarray(rows[:, 12:28])
    [whole, some] = (
        list(row_marks(part_of(one.tobytes(), one.shape), one.tobytes())) for one in (rows, left)
    )
    table = MarkTable([(0, own) for own in whole])
    for own in some:
        match = table.find(own)
        assert set((match.rows - match.sources).tolist()) == {12}
