"""The independent reader and the library make the same signatures, and refuse the same ones."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import casweights
from casweights.config import StoreConfig
from casweights.errors import CasweightsError
from casweights.format.dtypes import DTYPES
from casweights.format.features import coarse_row, features
from casweights.format.rounding import rounded
from casweights.format.sampling import Grid, count, positions, sampled_tensors
from casweights.format.signatures import encode_one
from casweights.ids import SnapshotId
from casweights.operations.sampling import signature_of
from tests.format.test_sampling import headers
from tests.format.test_signature import SMALL, read
from tools.spec.chunks import FAILURES

if TYPE_CHECKING:
    from types import ModuleType

    from casweights.format.dtypes import DType

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
stores = pytest.mark.parametrize("store", ["blake3", "xxh3-128"])
sizes = st.integers(1, 1 << 20)


@pytest.fixture(scope="module")
def spec() -> ModuleType:
    """The independent reader of signatures."""
    return importlib.import_module("tools.spec.signatures")


@stores
def test_both_make_the_signatures_of_the_golden_stores(store: str, spec: ModuleType) -> None:
    found: dict[str, Any] = {}
    for path in (GOLDEN / store / "signatures").iterdir():
        found |= spec.read_signatures(GOLDEN / store, f"signatures/{path.name}")
    assert len(found) >= 4
    with casweights.open(GOLDEN / store) as repo:
        db = repo.database
        assert {str(snapshot) for snapshot in db.signatures.versions()} == found.keys()
        for entry in db.signatures.entries([SnapshotId.from_hex(digits) for digits in found]):
            own = signature_of(db, db.snapshots.load(entry.snapshot, with_locations=True))
            assert own is not None
            assert own.entry(entry.snapshot) == entry
    for snapshot, signature in found.items():
        assert spec.signature_of(GOLDEN / store, snapshot) == signature
    command = [sys.executable, "-sE", "-m", "tools.spec.signatures", str(GOLDEN / store)]
    lines = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert {tuple(line.split()) for line in lines.splitlines()} == {(v, "equal") for v in found}


@given(sizes, sizes)
def test_both_sample_the_same_positions(rows: int, columns: int) -> None:
    spec = importlib.import_module("tools.spec.signatures")
    assert spec.positions(rows, columns) == positions(rows, columns).ravel().tolist()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_both_round_alike(dtype: DType, spec: ModuleType) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (2000, dtype.width), dtype=np.uint8)
    if dtype.width == 1:
        numbers = np.arange(256, dtype=np.uint8)[:, None]
    found = rounded(numbers.view(f"<u{dtype.width}").ravel(), dtype).tolist()
    expected = [spec.sample(number.tobytes(), dtype.code) for number in numbers]
    is_number = [value & 0x7FFF <= 0x7F80 for value in expected]  # not a NaN, of a float
    if dtype.code in spec.FLOATS:
        assert [value & 0x7FFF <= 0x7F80 for value in found] == is_number
    else:
        is_number = [True] * len(expected)
    kept = [
        pair
        for pair, sure in zip(zip(found, expected, strict=True), is_number, strict=True)
        if sure
    ]
    assert len(kept) > 100
    assert [ours for ours, _ in kept] == [theirs for _, theirs in kept]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8), st.data()
)
def test_both_make_the_same_coarse_row(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    spec = importlib.import_module("tools.spec.signatures")
    codes = [data.draw(st.sampled_from(list(DTYPES))) for _ in shapes]
    grids = [Grid(*shape, DTYPES[code]) for shape, code in zip(shapes, codes, strict=True)]
    total = sum(map(count, grids))
    values = np.array(data.draw(st.lists(st.integers(0, 65_535), min_size=total, max_size=total)))
    theirs = [spec.Grid(grid.rows, grid.columns, grid.dtype.code) for grid in grids]
    own = coarse_row(features(grids, values.astype(np.uint16)))
    assert spec.coarse_row(theirs, values.tolist()) == own


@given(st.lists(st.sampled_from([(8,), (64, 64), (3, 5), (9, 9, 2)]), max_size=20))
def test_both_choose_the_same_tensors(kinds: list[tuple[int, ...]]) -> None:
    spec = importlib.import_module("tools.spec.signatures")
    shapes = [shape for shape in kinds for _ in range(300)]
    everything = headers(shapes)
    header = everything[0][2]
    assert header is not None
    found = sampled_tensors(everything)
    grids = [spec.Grid(shape[0], int(np.prod(shape[1:], dtype=int)), "U8") for shape in shapes]
    names = [tensor.name for tensor in header.tensors]
    chosen = [names[n] for n in spec.chosen(grids)]
    assert [sampled.tensor.name for sampled in found if sampled.tensor] == chosen


@given(st.integers(0, 1000), st.integers(0, 7))
def test_both_refuse_each_flipped_bit(at: int, bit: int) -> None:
    spec = importlib.import_module("tools.spec.signatures")
    encoded = encode_one(SMALL.entry(SnapshotId(bytes(32))))
    data = bytearray(b"".join(encoded.parts))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(FAILURES):
        spec.parse_object(bytes(data), encoded.name)
    with pytest.raises(CasweightsError):
        read(encoded.name, bytes(data))


def test_a_signature_of_each_kind_of_version_is_equal(tmp_path: Path, spec: ModuleType) -> None:
    numbers = torch.Generator().manual_seed(0)
    state = {
        "wide": torch.randn(300, 400, generator=numbers),
        "half": torch.randn(30, 7, generator=numbers).half(),
        "double": torch.randn(5, 5, generator=numbers).double(),
        "one": torch.tensor(3.5),
        "conv": torch.randn(8, 3, 3, 3, generator=numbers).bfloat16(),
        "ids": torch.arange(999),
        "small": torch.randn(64, generator=numbers).to(torch.float8_e4m3fn),
        "value": "text",
    }
    config = StoreConfig(chunk_size=1 << 16)
    with casweights.open(tmp_path / "store", create=True, config=config) as repo:
        version = repo.commit(state)
        loaded = repo.database.snapshots.load(version.id, with_locations=True)
        own = signature_of(repo.database, loaded)
    assert own is not None
    theirs = spec.signature_of(tmp_path / "store", str(version.id))
    assert theirs.samples == own.values.tolist()
    assert theirs.coarse == own.entry(version.id).coarse
