"""The independent reader and the library read the same content from the same stores.

``tools/spec/reader.py`` was written from ``docs/format.md`` alone: if it and the library differ,
one of them, or the page, is wrong.
"""

from __future__ import annotations

import importlib
import random
import re
import shutil
from typing import TYPE_CHECKING

import msgpack
import pytest
import torch

import casweights
from casweights import StoreConfig
from casweights.config import KiB
from casweights.format.planes import encode_planes
from casweights.stores.base import Capabilities
from casweights.stores.local import LocalStore
from casweights.testing.versatile import VersatileStore
from tests.spec.readers import (
    CONTENT,
    ROOT,
    assert_both_read,
    assert_both_refuse,
    frames_end,
    make_store,
    read,
    the_object,
    tree,
    write_model,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from casweights import Repository
    from casweights.config import Compression, DigestName


COUNTS = {"no": 0, "ID": 1, "2": 2}  # of IDs, by the first word of an example on the page


@pytest.mark.parametrize("compression", ["fast", "auto", "small"])
@pytest.mark.parametrize("digest", ["blake3", "xxh3-128"])
def test_reads_what_the_library_reads(
    tmp_path: Path, digest: DigestName, compression: Compression
) -> None:
    refs = make_store(tmp_path, digest, compression)
    with casweights.open(tmp_path / "store") as store:
        encodings = {"raw", "zstd"} if compression == "fast" else {"raw", "zstd", "planes"}
        assert set(store.stats().encodings) == encodings
        for n, ref in enumerate([*refs, "release/1.0"]):
            store.checkout(ref, tmp_path / f"library-{n}")
            result = read(tmp_path / "store", ref, tmp_path / f"reader-{n}")
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
            assert tree(tmp_path / f"reader-{n}") == tree(tmp_path / f"library-{n}")
    assert tree(tmp_path / "reader-1") == tree(tmp_path / "model")


class Bucket(VersatileStore):
    """A store in which moves of branches are versions."""

    capabilities = Capabilities(clock_skew=0.0)


def test_a_directory_that_a_bucket_was_copied_to_is_read(tmp_path: Path) -> None:
    bucket, copy = Bucket(), LocalStore(tmp_path / "store")
    with casweights.open(bucket, create=True, config=StoreConfig(chunk_size=64 * KiB)) as repo:
        versions = [repo.commit({"w": CONTENT["raw"], "n": n}).id for n in range(3)]
        repo.branch("side", versions[0])
    assert not [info for info in bucket.list() if info.name.startswith(("packs", "snapshots"))]
    copy.create()
    copy.copy_from(bucket, [info.name for info in bucket.list()])
    with casweights.open(copy) as repo:
        for n, ref in enumerate(["main", "side", *map(str, versions)]):
            repo.checkout(ref, tmp_path / f"library-{n}")
            result = read(tmp_path / "store", ref, tmp_path / f"reader-{n}")
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
            assert tree(tmp_path / f"reader-{n}") == tree(tmp_path / f"library-{n}")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("kind", ["casweights.json", "refs/heads/main/*", "snapshots/*", "packs/*"])
def test_flipped_bits_are_found(reader: ModuleType, tmp_path: Path, kind: str) -> None:
    path = the_object(tmp_path, kind)
    intact = path.read_bytes()
    # A checkout that finds its chunks does not read a pack's first bytes and index.
    start, end = (8, frames_end(intact)) if kind == "packs/*" else (0, len(intact))
    numbers = random.Random(6)
    for position in {start, end - 1, *(numbers.randrange(start, end) for _ in range(30))}:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << numbers.randrange(8)
        path.write_bytes(damaged)
        assert_both_refuse(reader, tmp_path, "main")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("kind", ["casweights.json", "refs/heads/main/*", "snapshots/*", "packs/*"])
def test_truncated_and_missing_objects_are_found(
    reader: ModuleType, tmp_path: Path, kind: str
) -> None:
    path = the_object(tmp_path, kind)
    intact = path.read_bytes()
    for size in (0, 7, 15, len(intact) // 2, len(intact) // 2 + 1):
        path.write_bytes(intact[:size])
        assert_both_refuse(reader, tmp_path, "main")
    path.unlink()
    assert_both_refuse(reader, tmp_path, "main")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("kind", ["casweights.json", "refs/heads/main/*", "snapshots/*", "packs/*"])
def test_command_says_in_one_line_what_is_wrong(tmp_path: Path, kind: str) -> None:
    path = the_object(tmp_path, kind)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 64
    path.write_bytes(damaged)
    result = read(tmp_path / "store", "main", tmp_path / "out")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("carrying")
def test_damage_to_a_snapshot_with_frames_is_found(reader: ModuleType, tmp_path: Path) -> None:
    path = the_object(tmp_path, "snapshots/*")
    intact = path.read_bytes()
    numbers = random.Random(6)
    last = range(len(intact) - 24, len(intact))
    for position in (*range(8), *last, *(numbers.randrange(len(intact)) for _ in range(60))):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << numbers.randrange(8)
        path.write_bytes(damaged)
        assert_both_refuse(reader, tmp_path, "main")
    for size in (0, 7, 15, 24, len(intact) // 2, len(intact) - 1):
        path.write_bytes(intact[:size])
        assert_both_refuse(reader, tmp_path, "main")


def test_another_version_is_not_taken_for_the_one_asked_for(
    reader: ModuleType, store: Repository, tmp_path: Path
) -> None:
    first, second = store.resolve("main"), store.commit({"x": torch.ones(3)}).id
    snapshots = tmp_path / "store" / "snapshots"
    (snapshots / str(second)).replace(snapshots / str(first))
    assert_both_refuse(reader, tmp_path, str(first))


def test_chunks_are_found_where_the_pack_table_does_not_say(
    store: Repository, tmp_path: Path
) -> None:
    """The pack is damaged, then removed; another one has the same chunks in other encodings."""
    store.checkout("main", tmp_path / "expected")
    expected = tree(tmp_path / "expected")
    pack = the_object(tmp_path, "packs/*")
    with casweights.open(tmp_path / "other", create=True, config=store.config) as other:
        other.commit(CONTENT, compression="fast")
    assert not (tmp_path / "other/packs" / pack.name).exists()
    shutil.copytree(tmp_path / "other/packs", tmp_path / "store/packs", dirs_exist_ok=True)
    (tmp_path / "store/packs" / ("0" * 64)).write_bytes(b"not a pack at all")
    damaged = bytearray(pack.read_bytes())
    damaged[8 : frames_end(damaged)] = bytes(frames_end(damaged) - 8)
    pack.write_bytes(damaged)
    assert_both_read(tmp_path, "main", expected)
    pack.unlink()
    assert_both_read(tmp_path, "main", expected)


def test_no_ref_stands_in_for_an_id(store: Repository, tmp_path: Path) -> None:
    first = str(store.resolve("main"))
    store.checkout(first, tmp_path / "expected")
    second = store.commit({"x": torch.ones(3)})
    store.tag(first, second)
    assert_both_read(tmp_path, first, tree(tmp_path / "expected"))


def test_a_name_of_branch_and_tag_is_refused_unless_they_agree(
    reader: ModuleType, store: Repository, tmp_path: Path
) -> None:
    store.tag("main", "main")
    store.checkout("main", tmp_path / "expected")
    assert_both_read(tmp_path, "main", tree(tmp_path / "expected"))
    shutil.rmtree(tmp_path / "by-reader")
    shutil.rmtree(tmp_path / "by-library")
    store.commit({"x": torch.ones(3)})
    assert_both_refuse(reader, tmp_path, "main")


@pytest.mark.parametrize("ref", ["none", "", "..", "../x", "a//b", "x" * 300, "main.ref", "0" * 64])
@pytest.mark.usefixtures("store")
def test_names_of_no_version_are_refused(reader: ModuleType, tmp_path: Path, ref: str) -> None:
    assert_both_refuse(reader, tmp_path, ref)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.usefixtures("reader")
def test_the_reader_joins_planes_of_all_widths(width: int) -> None:
    chunks = importlib.import_module("tools.spec.chunks")
    numbers = random.Random(width)
    for raw in (numbers.randbytes(24 * width), bytes(1000 * width), numbers.randbytes(width) * 999):
        planes = chunks.split_planes(encode_planes(raw, width), len(raw))
        assert chunks.join_planes(planes) == raw


def test_findings_and_repaired_chunks_are_read(
    reader: ModuleType, store: Repository, tmp_path: Path
) -> None:
    write_model(tmp_path / "model")
    version = store.commit(tmp_path / "model", branch="models").id
    pack = max((tmp_path / "store" / "packs").iterdir(), key=lambda path: path.stat().st_size)
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[8 + 5] ^= 1
    pack.write_bytes(data)
    store.verify()
    with casweights.open(store.url) as other:
        other.commit(tmp_path / "model", branch="mended")
    [finding] = (tmp_path / "store" / "damaged").iterdir()
    assert finding.name == f"{pack.name}-8"
    fields = msgpack.unpackb(
        reader.unseal(tmp_path / "store", f"damaged/{finding.name}", b"d", reader.MAX_REF)
    )
    assert (fields["pack"].hex(), fields["offset"]) == (pack.name, 8)
    assert len(fields["why"]) <= 500
    assert type(fields["time"]) is int
    assert_both_read(tmp_path, str(version), tree(tmp_path / "model"))
    assert_both_read(tmp_path, "mended", tree(tmp_path / "model"))


def test_the_example_on_the_page_is_a_valid_store_file(reader: ModuleType, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    [example] = re.findall("```json\n(.*?)\n```", page, re.DOTALL)
    (tmp_path / "casweights.json").write_text(example)
    assert reader.read_config(tmp_path) == ("blake3", 4_194_304)
    with casweights.open(tmp_path) as repository:
        assert repository.config == StoreConfig(digest="blake3", chunk_size=4_194_304)


def test_the_rows_on_the_page_are_valid(reader: ModuleType) -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    rows = re.findall(
        r'^\|.*\| `\["\w", (\d+), (nil|\d+), <(.*?)>, (\d+), <(.*?)>\]` \|$', page, re.MULTILINE
    )
    assert len(rows) == 4
    for size, header, header_ids, count, ids in rows:
        header_size = None if header == "nil" else int(header)
        digests = [bytes(32 * COUNTS[text.split()[0]]) for text in (header_ids, ids)]
        row = ["a", int(size), header_size, digests[0], int(count), digests[1]]
        assert reader.parse_row(reader.Chunking("blake3", 64 * KiB), *row).path == "a"
        assert len([*reader.cut(int(size) - (header_size or 0), 64 * KiB)]) == int(count)
