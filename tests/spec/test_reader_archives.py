"""The independent reader and the library read the same versions from archives, and refuse the same.

Each archive here has a single version, which no other object has.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import xxhash
from blake3 import blake3

import casweights
from casweights.format import names
from casweights.operations.archiving import archive
from tests.spec.readers import assert_both_read, assert_both_refuse, the_object, tree

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from casweights import Repository

END = 20  # bytes after the rows: generation, checksum, number of rows, magic


@pytest.fixture
def path(store: Repository, tmp_path: Path) -> Path:
    """The archive that has the only version of ``store``."""
    archive(store.database, list(store.database.store.list(names.SNAPSHOTS)))
    for file in (tmp_path / "store/aside").rglob("*"):  # readers would find the version there
        if file.is_file():
            file.unlink()
    return the_object(tmp_path, "versions/*")


def sealed(data: bytes) -> bytes:
    """Return an archive of one version with a checksum that fits."""
    covered = data[:8] + data[-END - 44 : -END] + data[-END : -END + 4]
    return data[: -END + 4] + xxhash.xxh3_64_digest(covered) + data[-END + 12 :]


def replace(path: Path, data: bytes) -> None:
    """Write another archive in the place of this one, under the name that it has."""
    path.unlink()
    (path.parent / blake3(data).hexdigest()).write_bytes(data)


def test_both_read_an_archived_version(store: Repository, path: Path, tmp_path: Path) -> None:
    store.checkout("main", tmp_path / "out")
    assert not list((tmp_path / "store/snapshots").iterdir())
    assert_both_read(tmp_path, "main", tree(tmp_path / "out"))


def test_a_damaged_archive_next_to_a_sound_one_does_no_harm(
    store: Repository, path: Path, tmp_path: Path
) -> None:
    store.checkout("main", tmp_path / "out")
    (path.parent / ("0" * 64)).write_bytes(path.read_bytes()[:-1])
    assert_both_read(tmp_path, "main", tree(tmp_path / "out"))


def test_every_flipped_bit_is_found(reader: ModuleType, path: Path, tmp_path: Path) -> None:
    intact, numbers = path.read_bytes(), random.Random(6)
    at_the_end = range(len(intact) - END - 44, len(intact), 3)
    places = {*range(8), *at_the_end, *(numbers.randrange(len(intact)) for _ in range(30))}
    for position in places:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << numbers.randrange(8)
        path.write_bytes(damaged)
        assert_both_refuse(reader, tmp_path, "main")


@pytest.mark.parametrize("size", [0, 7, 27, 71, 100, -1])
def test_truncated_archives_are_refused(
    reader: ModuleType, path: Path, tmp_path: Path, size: int
) -> None:
    path.write_bytes(path.read_bytes()[:size])
    assert_both_refuse(reader, tmp_path, "main")


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (-END - 12, (7).to_bytes(8, "little")),  # before the beginning
        (-END - 12, (2**64 - 1).to_bytes(8, "little")),
        (-END - 4, (2**32 - 1).to_bytes(4, "little")),  # beyond the end
        (-END - 4, bytes(4)),
        (-END - 44, bytes(32)),  # the ID of another version
        (-8, (2).to_bytes(4, "little")),  # rows
        (-8, bytes(4)),
        (5, b"\x03"),  # a newer format
        (4, b"s"),
    ],
)
def test_forged_archives_are_refused(
    reader: ModuleType, path: Path, tmp_path: Path, at: int, value: bytes
) -> None:
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(value)] = value
    replace(path, sealed(bytes(data)))
    assert_both_refuse(reader, tmp_path, "main")


@pytest.mark.usefixtures("carrying")
def test_a_version_that_carries_frames_is_refused_in_an_archive(
    reader: ModuleType, tmp_path: Path
) -> None:
    own = the_object(tmp_path, "snapshots/*")
    content, snapshot = own.read_bytes(), bytes.fromhex(own.name)
    own.unlink()
    row = snapshot + (8).to_bytes(8, "little") + len(content).to_bytes(4, "little")
    ending = (1).to_bytes(4, "little") + bytes(8) + (1).to_bytes(4, "little") + b"cver"
    data = sealed(b"casw" + b"v\x02\0\0" + content + row + ending)
    (tmp_path / "store/versions").mkdir()
    (tmp_path / "store/versions" / blake3(data).hexdigest()).write_bytes(data)
    assert_both_refuse(reader, tmp_path, "main")
    with casweights.open(tmp_path / "store") as repo:
        assert any("carries frames" in str(problem) for problem in repo.verify().problems)
