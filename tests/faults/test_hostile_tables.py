"""Forged pack tables and sizes of snapshot objects are refused by errors that name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard

import casweights
from casweights.config import MiB
from tests.forged_manifests import (
    Forger,
    assert_refused,
    bounded_memory,
    everything_below,
)
from tests.structure import snapshot_object

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import SnapshotId


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    return Forger(tmp_path)


ABSURD_TABLES: dict[str, dict[str, Any]] = {
    "packs that are not there": {"pack": [2**40] * 3},
    "packs of 2^64 - 1": {"pack": [2**64 - 1] * 3},
    "one beyond the last pack": {"pack": [1] * 3},
    "negative packs": {"pack": [-1] * 3},
    "packs that are fractions": {"pack": [0.0] * 3},
    "packs that are no numbers": {"pack": ["0"] * 3},
    "packs that are false": {"pack": [False] * 3},
    "structure in more packs than there are": {"structure": 2},
    "structure in fewer packs than none": {"structure": -1},
    "structure in a fraction of the packs": {"structure": 1.0},
    "no packs": {"packs": b""},
    "part of a pack": {"packs": bytes(31)},
    "a pack and a part": {"packs": bytes(33)},
    "packs as text": {"packs": "x" * 32},
    "packs in a list": {"packs": [bytes(32)]},
    "a number": {"pack": 0},
    "nothing": {"pack": None},
}


@pytest.mark.parametrize("columns", ABSURD_TABLES.values(), ids=ABSURD_TABLES)
def test_absurd_pack_table_is_refused(forger: Forger, columns: dict[str, Any]) -> None:
    forged = forger.add({**forger.manifest, "message": "forged"}, table={**forger.table, **columns})
    assert_refused(forger, forged, "its pack table is not valid")


@pytest.mark.parametrize("count", [0, 1, 2, 4, 1000])
def test_pack_table_for_another_number_of_chunks_is_only_reported(
    forger: Forger, count: int
) -> None:
    """How many chunks a version has is known when its lists of chunks are read: too late."""
    table = {**forger.table, "pack": [0] * count}
    forged = forger.add({**forger.manifest, "message": "forged"}, table=table)
    with casweights.open(forger.root / "store") as store, bounded_memory(16 * MiB):
        store.checkout(forged, forger.root / "out")
        [problem] = store.verify().problems
    assert f"{forged} is damaged: its pack table is not valid" in str(problem)
    assert everything_below(forger.root / "out") == everything_below(forger.root / "model")


@pytest.mark.parametrize("key", ["packs", "pack"])
def test_pack_table_without_a_column_is_refused(forger: Forger, key: str) -> None:
    table = {other: column for other, column in forger.table.items() if other != key}
    forged = forger.add({**forger.manifest, "message": "forged"}, table=table)
    assert_refused(forger, forged, "its pack table is not valid")


MISLEADING_TABLES: dict[str, dict[str, Any]] = {
    "packs that are not there": {"packs": bytes(range(256)) * 4, "pack": [0, 7, 31]},
    "the same pack over and over": {"packs": bytes(32) * 1000, "pack": [999] * 3},
    "an extra column": {"offset": [2**63] * 3},
}


@pytest.mark.parametrize("columns", MISLEADING_TABLES.values(), ids=MISLEADING_TABLES)
def test_misleading_pack_table_does_no_harm(forger: Forger, columns: dict[str, Any]) -> None:
    """The table is only a hint: its content does not matter as long as its form is right."""
    forged = forger.add({**forger.manifest, "message": "forged"}, table={**forger.table, **columns})
    with casweights.open(forger.root / "store") as store, bounded_memory(16 * MiB):
        store.checkout(forged, forger.root / "out")
    assert everything_below(forger.root / "out") == everything_below(forger.root / "model")


@pytest.mark.parametrize("raw", [2**63 - 1, 2**32 - 1, 300 << 20, 256 << 20, -1, 0, 1])
@pytest.mark.parametrize("part", ["manifest", "table"])
def test_sizes_that_do_not_match_the_content_are_refused(
    forger: Forger, raw: int, part: str
) -> None:
    manifest = msgpack.packb({**forger.manifest, "message": "forged"})
    forged = add(forger, manifest, **{f"{part}_size": raw})
    assert_refused(forger, forged, "sizes do not add up|it claims")


def add(forger: Forger, honest: bytes, **changes: Any) -> SnapshotId:
    """Store a bare version with other fields in its index."""
    table = msgpack.packb(forger.table)
    fields = {
        "manifest": zstandard.compress(honest),
        "manifest_size": len(honest),
        "table": zstandard.compress(table),
        "table_size": len(table),
    }
    return forger.add_object(honest, snapshot_object(msgpack.packb(fields | changes)))


@pytest.mark.parametrize("declared", [False, True])
def test_compression_bomb_in_place_of_a_manifest_is_refused(forger: Forger, declared: bool) -> None:
    """32 KiB decode to 1 GiB of zeros; they declare no size, or that of a valid manifest."""
    encoded = msgpack.packb({**forger.manifest, "message": "forged"})
    compressor = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(compressor.compress(bytes(MiB)) for _ in range(1024)) + compressor.flush()
    if declared:  # insert the field "frame content size" (RFC 8878, 3.1.1.1)
        bomb = bomb[:4] + b"\x80" + bomb[5:6] + len(encoded).to_bytes(4, "little") + bomb[6:]
    forged = add(forger, encoded, manifest=bomb)
    assert_refused(forger, forged, "buffer is too small" if declared else "sizes do not add up")


@pytest.mark.parametrize("part", ["manifest", "table"])
def test_compression_bomb_that_declares_its_size_is_refused(forger: Forger, part: str) -> None:
    manifest = msgpack.packb({**forger.manifest, "message": "forged"})
    bomb = {part: zstandard.compress(bytes(300 * MiB)), f"{part}_size": 300 * MiB}
    assert_refused(forger, add(forger, manifest, **bomb), "it claims")
