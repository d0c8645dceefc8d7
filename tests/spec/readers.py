"""Helpers to run the library and the independent reader on one store and compare them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

import casweights
from casweights import CasweightsError, StoreConfig
from casweights.config import KiB

if TYPE_CHECKING:
    from types import ModuleType

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
CONTENT = {
    "planes": torch.randn(40_000, generator=torch.Generator().manual_seed(4)).bfloat16(),
    "raw": torch.frombuffer(bytearray(random.Random(5).randbytes(999)), dtype=torch.uint8),
    "zstd": torch.zeros(70_000, dtype=torch.int32),
}
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
    """Return the content of every path below a folder; None for a folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def write_model(folder: Path) -> None:
    """Write two shards whose tensors have several chunks, and other files."""
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
    """Make a store with three versions in ``root/store``; return names of the versions."""
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
