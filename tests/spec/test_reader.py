"""The independent reader and the library read the same from the same stores.

``tools/spec/reader.py`` was written from ``docs/format.md`` alone: where the two differ, the page
or one of them is wrong.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import torch
import xxhash
import zstandard
from blake3 import blake3
from safetensors.torch import save_file

import casweights
from casweights import CasweightsError, StoreConfig
from casweights.config import KiB
from casweights.format.planes import encode_planes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from casweights import Repository
    from casweights.config import Compression, DigestName

ROOT = Path(__file__).parents[2]
# Runs the reader where our package, numpy and torch cannot be imported.
ALONE = """
import runpy, sys
sys.modules.update(casweights=None, numpy=None, torch=None, safetensors=None)
sys.path.append(sys.argv.pop(1))
runpy.run_module("tools.spec.reader", run_name="__main__")
"""
SMALL_CHUNKS: dict[str, Any] = {"chunk_size": 64 * KiB}
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float4_e2m1fn_x2),
]


def read(store: Path, ref: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", ALONE, *map(str, (ROOT, store, ref, out))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder; None stands for a folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def write_model(folder: Path) -> None:
    """Two shards whose tensors have several chunks, and other files."""
    numbers = torch.Generator().manual_seed(1)
    weights = {
        "a": torch.randn(300, 300, generator=numbers).bfloat16(),
        "b": torch.randn(20_001, generator=numbers),
        "c": torch.randn(9_000, generator=numbers).double(),
        "d": torch.randn(9_000, generator=numbers).to(torch.complex64),
        "e": torch.arange(30_000),
        "f": torch.empty(3, 0),
        "g": torch.tensor(2.5, dtype=torch.float16),
    }
    (folder / "nested/more").mkdir(parents=True)
    shards = {"model-1.safetensors": list("abc"), "model-2.safetensors": list("defg")}
    for name, tensors in shards.items():
        save_file({key: weights[key] for key in tensors}, folder / name, {"format": "pt"})
    index = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "nested/more/empty").write_bytes(b"")
    (folder / "nested/text.txt").write_bytes(b"a line of text\n" * 10_000)
    (folder / "nested/random").write_bytes(random.Random(2).randbytes(150_000))
    (folder / "größe").write_bytes(b"x" * 64 * KiB)


def make_state() -> dict[str, Any]:
    numbers = random.Random(3)
    tensors = {
        str(dtype): torch.frombuffer(bytearray(numbers.randbytes(960)), dtype=torch.uint8)
        for dtype in DTYPES
    }
    tensors["torch.bool"] %= 2
    typed = {name: tensors[name].view(dtype) for name, dtype in zip(tensors, DTYPES, strict=True)}
    return {"tensors": typed, "tied": [typed["torch.int64"]], "step": 1, "pair": (1.5, None)}


def make_store(root: Path, digest: DigestName, compression: Compression) -> list[str]:
    """A store with three versions in ``root/store``; returns what they can be called."""
    write_model(root / "model")
    config = StoreConfig(digest=digest, **SMALL_CHUNKS)
    with casweights.open(root / "store", create=True, config=config) as store:
        first = store.commit(root / "model", compression=compression, metadata={"a": [1, None]})
        (root / "model/nested/random").unlink()
        (root / "model/new").write_bytes(b"new")
        second = store.commit(root / "model", compression=compression)
        third = store.commit(make_state(), branch="states/a", compression=compression)
        store.branch("moved", first)
        store.branch("moved", second, force=True)
        store.tag("release/1.0", first)
    return [*(str(version.id) for version in (first, second, third)), "main", "moved", "states/a"]


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


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    """The reader in this process, for tests that ask it many times."""
    return importlib.import_module("tools.spec.reader")


CONTENT = {
    "planes": torch.randn(40_000, generator=torch.Generator().manual_seed(4)).bfloat16(),
    "raw": torch.frombuffer(bytearray(random.Random(5).randbytes(999)), dtype=torch.uint8),
    "zstd": torch.zeros(70_000, dtype=torch.int32),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Repository]:
    """A store in ``store`` with one version, whose pack has frames of every encoding."""
    config = StoreConfig(**SMALL_CHUNKS)
    with casweights.open(tmp_path / "store", create=True, config=config) as repository:
        repository.commit(CONTENT)
        assert set(repository.stats().encodings) == {"raw", "zstd", "planes"}
        yield repository


def assert_both_read(root: Path, ref: str, expected: dict[str, bytes | None]) -> None:
    for folder in ("by-library", "by-reader"):
        shutil.rmtree(root / folder, ignore_errors=True)
    with casweights.open(root / "store") as repository:
        repository.checkout(ref, root / "by-library")
    result = read(root / "store", ref, root / "by-reader")
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(root / "by-library") == tree(root / "by-reader") == expected


def assert_both_refuse(reader: ModuleType, root: Path, ref: str) -> None:
    with pytest.raises(reader.FAILURES):
        reader.check_out(root / "store", ref, root / "by-reader")
    with pytest.raises(CasweightsError), casweights.open(root / "store") as repository:
        repository.checkout(ref, root / "by-library")
    assert not (root / "by-reader").exists()
    assert tree(root / "by-library") == {}


def the_object(root: Path, kind: str) -> Path:
    [path] = (path for path in (root / "store").glob(kind) if path.is_file())
    return path


def frames_end(pack: bytes | bytearray) -> int:
    return len(pack) - 8 - int.from_bytes(pack[-8:-4], "little")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("kind", ["casweights.json", "refs/heads/main/*", "snapshots/*", "packs/*"])
def test_flipped_bits_are_found(reader: ModuleType, tmp_path: Path, kind: str) -> None:
    path = the_object(tmp_path, kind)
    intact = path.read_bytes()
    # A checkout that finds its chunks has no need of a pack's first bytes and index.
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
    """First its pack is damaged, then gone; another has the same chunks, encoded otherwise."""
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


def read_parts(root: Path) -> list[dict[str, Any]]:
    """The manifest and the pack table of the store's only version."""
    data = the_object(root, "snapshots/*").read_bytes()
    _, split, _, stored = struct.unpack_from("<4I", data, 8)
    packed = (data[24 : 24 + split], data[24 + split : 24 + split + stored])
    return [msgpack.unpackb(zstandard.decompress(p), strict_map_key=False) for p in packed]


def forge(root: Path, part: int, changes: dict[str, Any]) -> str:
    """Change fields of the manifest (part 0) or pack table (part 1); returns the version's ID."""
    path = the_object(root, "snapshots/*")
    parts = read_parts(root)
    parts[part] |= changes
    encoded = [msgpack.packb(value) for value in parts]
    packed = [zstandard.compress(value) for value in encoded]
    sizes = [len(value) for pair in zip(encoded, packed, strict=True) for value in pair]
    body = path.read_bytes()[:8] + struct.pack("<4I", *sizes) + b"".join(packed)
    forged = path.with_name(blake3(encoded[0]).hexdigest())
    forged.write_bytes(body + xxhash.xxh3_64_digest(body))
    return forged.name


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
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
    assert_both_refuse(reader, tmp_path, forge(tmp_path, 0, changes))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"time": 253_402_300_799_999_999},
        {"metadata": nested(64)},
        {"metadata": {"a": [0] * (131_072 - 2)}},
        {"message": " " * 4_000_000},
    ],
    ids=lambda changes: f"{changes!s:.60}",
)
def test_what_manifests_may_just_hold(tmp_path: Path, changes: dict[str, Any]) -> None:
    with casweights.open(tmp_path / "store") as repository:
        repository.checkout("main", tmp_path / "expected")
    assert_both_read(tmp_path, forge(tmp_path, 0, changes), tree(tmp_path / "expected"))


def test_files_out_of_order_are_refused(reader: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in "ab":
        (tmp_path / "model" / name).write_bytes(b"")
    with casweights.open(tmp_path / "store", create=True) as repository:
        repository.commit(tmp_path / "model")
    rows = [["a", 0, None, b""], ["b", 0, None, b""]]
    assert_both_read(tmp_path, "main", {"a": b"", "b": b""})
    shutil.rmtree(tmp_path / "by-reader")
    shutil.rmtree(tmp_path / "by-library")
    assert_both_refuse(reader, tmp_path, forge(tmp_path, 0, {"files": rows[::-1]}))


ROWS = 5  # chunks: two of planes, one raw, and of the zeros one whole and a shorter one


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"packs": bytes(32)},
        {"packs": bytes(64), "pack": [1] * ROWS},
        {"packs": bytes(range(256)) * 100, "pack": [799] * ROWS},
        {"more": None},
    ],
    ids=["another", "twice the same", "very many", "a key more"],
)
def test_wrong_pack_tables_are_made_good_by_indexes(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with casweights.open(tmp_path / "store") as repository:
        repository.checkout("main", tmp_path / "expected")
    assert_both_read(tmp_path, forge(tmp_path, 1, changes), tree(tmp_path / "expected"))


def test_frames_of_other_chunks_are_not_taken(store: Repository, tmp_path: Path) -> None:
    """The pack that the table names has them all, but says of each that it is another chunk."""
    store.checkout("main", tmp_path / "expected")
    name = the_object(tmp_path, "packs/*")
    data = name.read_bytes()
    index = msgpack.unpackb(data[frames_end(data) : -8], strict_map_key=False)
    names = [index["chunk"][n : n + 32] for n in range(0, 32 * ROWS, 32)]
    large = [n for n, size in enumerate(index["raw_size"]) if size == 64 * KiB]
    assert len(large) == 2  # the first of the planes, and of the zeros
    names[large[0]], names[large[1]] = names[large[1]], names[large[0]]
    forged = msgpack.packb({**index, "chunk": b"".join(names)})
    pack = blake3(data[:8] + forged)
    end = struct.pack("<I4s", len(forged), b"cidx")
    name.with_name(pack.hexdigest()).write_bytes(data[: frames_end(data)] + forged + end)
    version = forge(tmp_path, 1, {"packs": pack.digest(), "pack": [0] * ROWS})
    assert_both_read(tmp_path, version, tree(tmp_path / "expected"))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "changes",
    [
        {"pack": [0]},
        {"pack": [0] * (ROWS + 1)},
        {"pack": [1] * ROWS},
        {"pack": [-1] * ROWS},
        {"pack": [False] * ROWS},
        {"packs": b"short"},
        {"packs": None},
        {"more": bytes(5_000_000)},
    ],
    ids=lambda changes: f"{changes!s:.60}",
)
def test_malformed_pack_tables_are_refused(
    reader: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert_both_refuse(reader, tmp_path, forge(tmp_path, 1, changes))


def test_no_ref_stands_in_for_an_id(store: Repository, tmp_path: Path) -> None:
    first = str(store.resolve("main"))
    store.checkout(first, tmp_path / "expected")
    second = store.commit({"x": torch.ones(3)})
    store.tag(first, second)
    assert_both_read(tmp_path, first, tree(tmp_path / "expected"))


def test_name_of_a_branch_and_a_tag(reader: ModuleType, store: Repository, tmp_path: Path) -> None:
    store.tag("main", "main")
    store.checkout("main", tmp_path / "expected")
    assert_both_read(tmp_path, "main", tree(tmp_path / "expected"))
    shutil.rmtree(tmp_path / "by-reader")
    shutil.rmtree(tmp_path / "by-library")
    store.commit({"x": torch.ones(3)})
    assert_both_refuse(reader, tmp_path, "main")


@pytest.mark.parametrize("ref", ["none", "", "..", "../x", "a//b", "x" * 300, "main.ref", "0" * 64])
@pytest.mark.usefixtures("store")
def test_what_no_version_is_called(reader: ModuleType, tmp_path: Path, ref: str) -> None:
    assert_both_refuse(reader, tmp_path, ref)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.usefixtures("reader")
def test_planes_of_all_widths(width: int) -> None:
    chunks = importlib.import_module("tools.spec.chunks")
    numbers = random.Random(width)
    for raw in (numbers.randbytes(24 * width), bytes(1000 * width), numbers.randbytes(width) * 999):
        planes = chunks.split_planes(encode_planes(raw, width), len(raw))
        assert chunks.join_planes(planes) == raw


def test_findings_and_what_they_led_to(
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


def test_example_on_the_page(reader: ModuleType, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    [example] = re.findall("```json\n(.*?)\n```", page, re.DOTALL)
    (tmp_path / "casweights.json").write_text(example)
    assert reader.read_config(tmp_path) == ("blake3", 4_194_304)
    with casweights.open(tmp_path) as repository:
        assert repository.config == StoreConfig(digest="blake3", chunk_size=4_194_304)
