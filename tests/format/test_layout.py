"""The grid of chunks, and runs of adjacent chunks."""

from __future__ import annotations

from itertools import pairwise

import hypothesis
from hypothesis import strategies as st

from casweights.config import KiB
from casweights.format.dtypes import DTYPES
from casweights.format.layout import (
    BYTES,
    Piece,
    count_chunks,
    file_pieces,
    grid,
    runs,
)
from casweights.format.safetensors import parse_header
from casweights.testing.strategies import encode_header, safetensors_files

SIZE = 64 * KiB


def spans(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(piece.offset, piece.nbytes) for piece in pieces]


def test_the_grid_begins_where_the_tensor_does() -> None:
    assert spans(list(grid(100, 0, BYTES, SIZE))) == []
    assert spans(list(grid(100, 1, BYTES, SIZE))) == [(100, 1)]
    assert spans(list(grid(100, SIZE, BYTES, SIZE))) == [(100, SIZE)]
    assert spans(list(grid(100, SIZE + 1, BYTES, SIZE))) == [(100, SIZE), (100 + SIZE, 1)]


def test_a_file_without_header_is_one_run_of_bytes() -> None:
    assert spans(list(file_pieces(SIZE + 5, None, SIZE))) == [(0, SIZE), (SIZE, 5)]
    assert {piece.dtype for piece in file_pieces(5, None, SIZE)} == {BYTES}
    assert list(file_pieces(0, None, SIZE)) == []


def test_every_tensor_has_its_own_grid() -> None:
    raw = encode_header(
        {
            "second": {"dtype": "U8", "shape": [5], "data_offsets": [SIZE + 4, SIZE + 9]},
            "first": {"dtype": "BF16", "shape": [SIZE // 2 + 2], "data_offsets": [0, SIZE + 4]},
            "none": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]},
        }
    )
    header, start = parse_header(raw, SIZE + 9), len(raw)
    pieces = list(file_pieces(len(raw) + SIZE + 9, header, SIZE))
    assert spans(pieces) == [(start, SIZE), (start + SIZE, 4), (start + SIZE + 4, 5)]
    assert [piece.dtype.code for piece in pieces] == ["BF16", "BF16", "U8"]


@hypothesis.given(safetensors_files())
def test_pieces_cover_the_data_without_gaps(file: bytes) -> None:
    length = 8 + int.from_bytes(file[:8], "little")
    header = parse_header(file[:length], len(file) - length)
    pieces = list(file_pieces(len(file), header, SIZE))
    assert len(pieces) == count_chunks(len(file), header, SIZE)
    end = length
    for piece in pieces:
        assert piece.offset == end
        assert 0 < piece.nbytes <= SIZE
        end += piece.nbytes
    assert end == len(file)


@hypothesis.given(
    sizes=st.lists(st.integers(1, 50), max_size=30),
    gaps=st.lists(st.booleans(), min_size=30, max_size=30),
    limit=st.integers(1, 100),
)
def test_runs_contain_adjacent_pieces_within_the_limit(
    sizes: list[int], gaps: list[bool], limit: int
) -> None:
    pieces, offset = [], 0
    for nbytes, gap in zip(sizes, gaps, strict=False):
        offset += gap
        pieces.append(Piece(offset, nbytes, DTYPES["U8"]))
        offset += nbytes
    found = list(runs(pieces, limit))
    assert [piece for run in found for piece in run] == pieces
    for run in found:
        assert len(run) == 1 or sum(piece.nbytes for piece in run) <= limit
        assert all(a.offset + a.nbytes == b.offset for a, b in pairwise(run))
    for left, right in pairwise(found):
        end = left[-1].offset + left[-1].nbytes
        total = sum(piece.nbytes for piece in left) + right[0].nbytes
        assert end != right[0].offset or total > limit
