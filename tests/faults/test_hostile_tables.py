"""Forged pack tables and sizes of snapshot objects are refused by errors that name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard

import casweights
from casweights.config import MiB
from tests.forged_manifests import (
    SIZES,
    Forger,
    assert_refused,
    bounded_memory,
    everything_below,
)

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.mark.parametrize("raw", [2**32 - 1, 300 << 20, 256 << 20, 0, 1])
@pytest.mark.parametrize("part", [0, 2])
def test_sizes_that_do_not_match_the_content_are_refused(
    forger: Forger, raw: int, part: int
) -> None:
    encoded = [msgpack.packb({**forger.manifest, "message": "forged"}), msgpack.packb(forger.table)]
    packed = [zstandard.compress(value) for value in encoded]
    sizes = [len(value) for pair in zip(encoded, packed, strict=True) for value in pair]
    sizes[part] = raw
    assert_refused(
        forger,
        forger.add_payload(encoded[0], SIZES.pack(*sizes) + packed[0] + packed[1]),
        "sizes do not add up|it claims",
    )


@pytest.mark.parametrize("declared", [False, True])
def test_compression_bomb_in_place_of_a_manifest_is_refused(forger: Forger, declared: bool) -> None:
    """32 KiB decode to 1 GiB of zeros; they declare no size, or that of a valid manifest."""
    encoded = msgpack.packb({**forger.manifest, "message": "forged"})
    table = zstandard.compress(msgpack.packb(forger.table))
    compressor = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(compressor.compress(bytes(MiB)) for _ in range(1024)) + compressor.flush()
    if declared:  # insert the field "frame content size" (RFC 8878, 3.1.1.1)
        bomb = bomb[:4] + b"\x80" + bomb[5:6] + len(encoded).to_bytes(4, "little") + bomb[6:]
    sizes = SIZES.pack(len(encoded), len(bomb), len(msgpack.packb(forger.table)), len(table))
    forged = forger.add_payload(encoded, sizes + bomb + table)
    assert_refused(forger, forged, "buffer is too small" if declared else "sizes do not add up")


@pytest.mark.parametrize("part", [0, 1])
def test_compression_bomb_that_declares_its_size_is_refused(forger: Forger, part: int) -> None:
    parts = [msgpack.packb({**forger.manifest, "message": "forged"}), msgpack.packb(forger.table)]
    manifest = parts[0]
    parts[part] = bytes(300 * MiB)
    packed = [zstandard.compress(value) for value in parts]
    sizes = [len(value) for pair in zip(parts, packed, strict=True) for value in pair]
    del parts
    forged = forger.add_payload(manifest, SIZES.pack(*sizes) + b"".join(packed))
    assert_refused(forger, forged, "it claims")
