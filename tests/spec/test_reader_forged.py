"""The library and the independent reader refuse the same forged objects."""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from blake3 import blake3

import casweights
from casweights.config import KiB
from tests.spec.forging import forge
from tests.spec.readers import assert_both_read, assert_both_refuse, frames_end, the_object, tree

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from casweights import Repository


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"number": 0},
        {"number": 2**63},
        {"number": True},
        {"number": None},
        {"time": 253_402_300_800_000_000},
        {"metadata": nested(65)},
        {"metadata": {"a": b"bytes"}},
        {"chunk_size": 128 * KiB},
        {"digest": "xxh3-128"},
        {"metadata": {"a": [0] * (131_072 - 1)}},
        {"message": " " * 5_000_000},
    ],
    ids=lambda changes: f"{changes!s:.60}",
)
def test_forged_manifests_are_refused(
    reader: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert_both_refuse(reader, tmp_path, forge(tmp_path, manifest=changes))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"number": 2**63 - 1},
        {"time": 253_402_300_799_999_999},
        {"metadata": nested(64)},
        {"metadata": {"a": [0] * (131_072 - 2)}},
        {"message": " " * 4_000_000},
    ],
    ids=lambda changes: f"{changes!s:.60}",
)
def test_manifests_at_the_limits_are_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    with casweights.open(tmp_path / "store") as repository:
        repository.checkout("main", tmp_path / "expected")
    assert_both_read(tmp_path, forge(tmp_path, manifest=changes), tree(tmp_path / "expected"))


def test_files_out_of_order_are_refused(reader: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in "ab":
        (tmp_path / "model" / name).write_bytes(b"")
    with casweights.open(tmp_path / "store", create=True) as repository:
        repository.commit(tmp_path / "model")
    rows = [[name, 0, None, b"", 0, b""] for name in "ab"]
    assert_both_read(tmp_path, "main", {"a": b"", "b": b""})
    shutil.rmtree(tmp_path / "by-reader")
    shutil.rmtree(tmp_path / "by-library")
    assert_both_refuse(reader, tmp_path, forge(tmp_path, manifest={"files": rows[::-1]}))


# Chunks: two of planes, one raw, of the zeros one whole and a shorter one, and a header and a page.
ROWS = 7


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"packs": bytes(32)},
        {"packs": bytes(64), "pack": [1] * ROWS},
        {"packs": bytes(range(256)) * 100, "pack": [799] * ROWS},
        {"structure": 0},
        {"places": {0: b"nowhere"}},
        {"shallow": True},
        {"more": None},
    ],
    ids=[
        *("another", "twice the same", "very many"),
        *("no structure", "a place", "shallow", "a key more"),
    ],
)
def test_wrong_pack_tables_are_corrected_by_indexes(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with casweights.open(tmp_path / "store") as repository:
        repository.checkout("main", tmp_path / "expected")
    assert_both_read(tmp_path, forge(tmp_path, table=changes), tree(tmp_path / "expected"))


def test_frames_of_other_chunks_are_not_used(store: Repository, tmp_path: Path) -> None:
    """The pack that the table names contains all frames, but under the IDs of other chunks."""
    store.checkout("main", tmp_path / "expected")
    name = the_object(tmp_path, "packs/*")
    data = name.read_bytes()
    index = msgpack.unpackb(data[frames_end(data) : -8], strict_map_key=False)
    names = [index["chunk"][n : n + 32] for n in range(0, 32 * ROWS, 32)]
    sizes = struct.unpack(f"<{ROWS}I", index["raw_size"])
    large = [n for n, size in enumerate(sizes) if size == 64 * KiB]
    assert len(large) == 2  # the first of the planes, and of the zeros
    names[large[0]], names[large[1]] = names[large[1]], names[large[0]]
    forged = msgpack.packb({**index, "chunk": b"".join(names)})
    pack = blake3(data[:8] + forged)
    end = struct.pack("<I4s", len(forged), b"cidx")
    name.with_name(pack.hexdigest()).write_bytes(data[: frames_end(data)] + forged + end)
    version = forge(tmp_path, table={"packs": pack.digest(), "pack": [0] * ROWS})
    assert_both_read(tmp_path, version, tree(tmp_path / "expected"))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"pack": [0]},  # of two structure chunks
        {"pack": [1] * ROWS},
        {"pack": [-1] * ROWS},
        {"pack": [False] * ROWS},
        {"packs": b"short"},
        {"packs": None},
        {"structure": -1},
        {"structure": 2},
        {"structure": True},
        {"structure": "1"},
        {"shallow": 1},
        {"places": []},
        {"places": {1: b""}},
        {"places": {0: "text"}},
        {"more": bytes(5_000_000)},
    ],
    ids=lambda changes: f"{changes!s:.60}",
)
def test_malformed_pack_tables_are_refused(
    reader: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert_both_refuse(reader, tmp_path, forge(tmp_path, table=changes))


@pytest.mark.usefixtures("carrying")
@pytest.mark.parametrize(
    "changes",
    [
        {"pack": [1] * ROWS},
        {"carried": [0]},
        {"carried": [1]},
        {"carried": [-1]},
        {"carried": [False]},
        {"carried": 0},
        {"structure": 2},
        {"places": {1: b""}},
    ],
    ids=lambda changes: f"{changes!s:.60}",
)
def test_malformed_tables_of_snapshots_with_frames_are_refused(
    reader: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert_both_refuse(reader, tmp_path, forge(tmp_path, table=changes))


@pytest.mark.usefixtures("carrying")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packs": bytes(32)},
        {"packs": bytes(64), "carried": [2]},
        {"packs": bytes(64), "carried": [1, 2, 1], "pack": [2] * ROWS},
        {"structure": 0},
        {"places": {0: b"a place"}},
    ],
    ids=lambda changes: f"{changes!s:.60}",
)
def test_wrong_tables_of_snapshots_with_frames_do_no_harm(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with casweights.open(tmp_path / "store") as repository:
        repository.checkout("main", tmp_path / "expected")
    assert_both_read(tmp_path, forge(tmp_path, table=changes), tree(tmp_path / "expected"))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "lineage",
    [
        *(None, 1, {}, [], [[]], [b"a" * 32]),
        [[b"a" * 31, 1]],
        [[b"a" * 32, 0]],
        [[b"a" * 32, True]],
        [[b"a" * 32, 2**62]],
        [[b"b" * 32, 1], [b"a" * 32, 1]],
        [[b"a" * 32, 1], [b"b" * 32, 2]],
        [[b"a" * 32, 2], [b"a" * 32, 1]],
        [[bytes([n]) * 32, 1] for n in range(9)],
    ],
    ids=lambda lineage: f"{lineage!s:.40}",
)
def test_malformed_lineage_is_refused(reader: ModuleType, tmp_path: Path, lineage: Any) -> None:
    assert_both_refuse(reader, tmp_path, forge(tmp_path, fields={"lineage": lineage}))


@pytest.mark.usefixtures("store")
def test_a_lineage_of_versions_that_do_not_exist_changes_nothing(tmp_path: Path) -> None:
    with casweights.open(tmp_path / "store") as repository:
        repository.checkout("main", tmp_path / "expected")
    lineage = [[bytes([n]) * 32, 8 - n] for n in range(8)]
    version = forge(tmp_path, fields={"lineage": lineage})
    assert_both_read(tmp_path, version, tree(tmp_path / "expected"))
