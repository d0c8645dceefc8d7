"""The grid of chunks, bundles of small tensors, and runs of adjacent chunks."""

from __future__ import annotations

import random
from itertools import pairwise

import hypothesis
import pytest
import xxhash
from hypothesis import strategies as st

from casweights.config import KiB
from casweights.format.dtypes import DTYPES
from casweights.format.layout import (
    BYTES,
    Piece,
    bundles,
    count_chunks,
    file_pieces,
    grid,
    runs,
)
from casweights.format.safetensors import TensorInfo, build_header, parse_header
from casweights.testing.strategies import encode_header, safetensors_files

SIZE = 64 * KiB
SMALL = SIZE // 2  # the first size that is not small
FULL = SIZE // 8


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


def end_to_end(rows: list[tuple[str, str, int]]) -> list[TensorInfo]:
    """Tensors with these names, dtypes and bytes, one after the other in a file."""
    tensors, start = [], 0
    for name, code, nbytes in rows:
        tensors.append(TensorInfo(name, DTYPES[code], (nbytes,), start, nbytes))
        start += nbytes
    return tensors


def names(tensors: list[TensorInfo], chunk_size: int = SIZE) -> list[str]:
    return ["".join(one.name for one in bundle.tensors) for bundle in bundles(tensors, chunk_size)]


def begins(name: str) -> bool:
    return xxhash.xxh3_64_intdigest(name.encode()) % 64 == 0


FENCE = next(name for name in map(chr, range(0x4E00, 0x9FFF)) if begins(name))
NUMBER = next(str(n) for n in range(1000) if begins(str(n)))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "U8", 1), ("b", "U8", 2), ("c", "U8", 3)], ["abc"]),
        ([("a", "U8", 1), ("b", "I8", 2), ("c", "I8", 3)], ["a", "bc"]),
        ([("a", "U8", 1), ("b", "I8", 0), ("c", "U8", 3)], ["ac"]),
        ([("a", "U8", 0), (FENCE, "U8", 0), ("c", "U8", 0)], []),
        ([("a", "U8", SMALL - 1), ("b", "U8", 1), ("c", "U8", 1)], ["a", "bc"]),
        ([("a", "U8", FULL - 1), ("b", "U8", 1), ("c", "U8", 1)], ["ab", "c"]),
        ([("a", "U8", FULL), ("b", "U8", 1), ("c", "U8", 1)], ["a", "bc"]),
        ([("a", "U8", 1), ("b", "U8", SMALL - 1), ("c", "U8", SMALL - 1)], ["ab", "c"]),
        ([("a", "U8", SMALL), ("b", "U8", 1), ("c", "U8", 1)], ["a", "bc"]),
        ([("a", "U8", 1), ("b", "U8", SMALL), ("c", "U8", 1)], ["a", "b", "c"]),
        ([("a", "U8", 1), ("b", "U8", 3 * SIZE), ("c", "U8", 1)], ["a", "b", "c"]),
        ([("a", "F4", 1), ("b", "F4", 5), ("c", "F6_E2M3", 3)], ["ab", "c"]),
        ([("a", "U8", 1), (FENCE, "U8", 1), ("c", "U8", 1)], ["a", f"{FENCE}c"]),
        ([(FENCE, "U8", 1), ("b", "U8", 1), (FENCE, "U8", 0), ("c", "U8", 1)], [f"{FENCE}bc"]),
    ],
)
def test_small_neighbours_of_one_dtype_share_a_chunk(
    rows: list[tuple[str, str, int]], expected: list[str]
) -> None:
    assert not any(map(begins, "abc"))
    assert names(end_to_end(rows)) == expected


def test_a_large_tensor_shares_no_chunk_even_if_there_is_room() -> None:
    rows = [("a", "U8", SMALL), ("b", "U8", 1), ("c", "U8", SMALL), ("b", "U8", SMALL - 1)]
    assert names(end_to_end(rows)) == ["a", "b", "c", "b"]
    assert names(end_to_end(rows), 2 * SIZE) == ["a", "bc", "b"]
    assert names(end_to_end(5 * rows[-1:])) == ["bb", "bb", "b"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # A block ends at a tensor of another block once the bundle is full.
        (["h.3.a", "h.3.b", "h.3.c", "h.4.a"], ["h.3.a h.3.b h.3.c", "h.4.a"]),
        (["h.3.0.a", "h.3.0.b", "h.3.1.a"], ["h.3.0.a h.3.0.b", "h.3.1.a"]),
        (["h.3.0", "h.3.1", "h.3.2"], ["h.3.0", "h.3.1", "h.3.2"]),
        (["h.3", "h.3.w", "h.3x"], ["h.3 h.3.w", "h.3x"]),
        (["3.a", "3.b\nc", "4.a"], ["3.a 3.b\nc", "4.a"]),
        (["a.3.x", "b.3.x"], ["a.3.x", "b.3.x"]),
        # None of these has a part that is a number.
        (["h3.a", "h3.b", "h-4.a", "", ".", "٣.a", "٣.b"], None),
    ],
)
def test_a_full_bundle_ends_where_a_block_does(rows: list[str], expected: list[str] | None) -> None:
    found = bundles(end_to_end([(name, "U8", FULL) for name in rows]), SIZE)
    assert [" ".join(one.name for one in bundle.tensors) for bundle in found] == (expected or rows)


def test_some_marks_end_a_bundle_that_is_not_full() -> None:
    rows = ["1.a", "1.b", "2.a", f"{NUMBER}.a", f"{NUMBER}.b", "1.c", f"h.{NUMBER}.a", "9.a"]
    assert not any(map(begins, "129"))
    found = names(end_to_end([(f"{name} ", "U8", 1) for name in rows]))
    assert found == [
        "1.a 1.b 2.a ",
        f"{NUMBER}.a {NUMBER}.b 1.c ",
        f"h.{NUMBER}.a 9.a ",
    ]


def test_a_prefix_of_all_names_changes_no_bundle() -> None:
    rows = [
        (f"layers.{layer}.{part}", "BF16", nbytes)
        for layer in range(40)
        for part, nbytes in (("norm", 64), ("q", SMALL - 64), ("k", 512), ("mlp", SMALL - 700))
    ]
    before = names(end_to_end(rows))
    after = names(end_to_end([(f"module.{name}", code, size) for name, code, size in rows]))
    assert [bundle.replace("module.", "") for bundle in after] == before
    assert len(before) == 40


NAMES = st.text(max_size=3) | st.from_regex(r"([a-c]\.)?[0-9]{1,2}(\.[a-c])?", fullmatch=True)
ROWS = st.tuples(
    NAMES,
    st.sampled_from(["U8", "BF16", "F4"]),
    st.sampled_from([0, 1, 8, 300, FULL - 1, FULL, SMALL - 1, SMALL, SMALL + 1, SIZE, 3 * SIZE]),
)


@hypothesis.given(rows=st.lists(ROWS, max_size=40), size=st.sampled_from([SIZE, 2 * SIZE]))
def test_bundles_are_as_long_as_the_rule_allows(
    rows: list[tuple[str, str, int]], size: int
) -> None:
    tensors = end_to_end(rows)
    found = list(bundles(tensors, size))
    assert [t for bundle in found for t in bundle.tensors] == [t for t in tensors if t.nbytes]
    for bundle in found:
        assert bundle.nbytes == sum(tensor.nbytes for tensor in bundle.tensors)
        if len(bundle.tensors) > 1:
            assert bundle.nbytes <= size
            assert all(tensor.nbytes < size / 2 for tensor in bundle.tensors)
            assert len({tensor.dtype for tensor in bundle.tensors}) == 1
        held = 0
        for left, right in pairwise(bundle.tensors):
            held += left.nbytes
            assert not (is_end(left.name, right.name, is_full=held >= size / 8))
    for before, after in pairwise(found):
        left, right = before.tensors[-1], after.tensors[0]
        assert (
            max(left.nbytes, right.nbytes) >= size / 2
            or left.dtype != right.dtype
            or before.nbytes + right.nbytes > size
            or is_end(left.name, right.name, is_full=before.nbytes >= size / 8)
        )


def is_end(left: str, right: str, *, is_full: bool) -> bool:
    block, mark = block_of(right)
    return block != block_of(left)[0] and (is_full or begins(mark))


def block_of(name: str) -> tuple[str, str]:
    """Return a name's block and mark, found in another way than the library's."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1] and set(parts[end - 1]) <= set("0123456789"):
            return ".".join(parts[:end]), parts[end - 1]
    return name, name


@hypothesis.given(rows=st.lists(ROWS, max_size=40), size=st.sampled_from([SIZE, 2 * SIZE]))
def test_parts_of_pieces_cover_every_byte_of_every_tensor_once(
    rows: list[tuple[str, str, int]], size: int
) -> None:
    named = [
        (f"{n}.{name}", DTYPES[code], (nbytes,)) for n, (name, code, nbytes) in enumerate(rows)
    ]
    shapes = [(name, dtype, (n * 8 // dtype.bits,)) for name, dtype, (n,) in named]
    hypothesis.assume(all(n * 8 % dtype.bits == 0 for _, dtype, (n,) in named))
    total = sum(n for _, _, (n,) in named)
    raw = build_header(shapes, {})
    header = parse_header(raw, total)
    end = len(raw)
    read: dict[str, int] = {}
    for piece in file_pieces(len(raw) + total, header, size):
        assert piece.offset == end
        at = 0
        for tensor, start, offset, nbytes in piece.parts():
            assert (offset, start) == (at, read.get(tensor.name, 0))
            assert len(raw) + tensor.start + start == piece.offset + offset
            read[tensor.name] = start + nbytes
            at += nbytes
        assert at == piece.nbytes
        end += piece.nbytes
    assert end == len(raw) + total
    assert read == {tensor.name: tensor.nbytes for tensor in header.tensors if tensor.nbytes}


def test_one_more_tensor_among_many_changes_at_most_two_chunks() -> None:
    def chunks(count: list[int]) -> set[tuple[str, ...]]:
        tensors = end_to_end([(f"experts.{n:06}.scale", "F32", 64) for n in count])
        return {tuple(t.name for t in one.tensors) for one in bundles(tensors, 64 * SIZE)}

    numbers = list(range(0, 40_000, 2))
    before = chunks(numbers)
    assert 200 < len(before) < 400
    for place in random.Random(1).sample(range(20_000), 40):
        after = chunks(sorted([*numbers, 2 * place + 1]))
        assert len(after - before) <= 2
        assert len(before - after) == 1


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
