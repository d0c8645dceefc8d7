"""The content of a file decides how it is stored, and its name does not."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import ErrorCode, InvalidInputError
from casweights.config import KiB
from casweights.events import Reporter
from casweights.stores.memory import MemoryStore
from casweights.testing.counting import CountingStore

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 2 * KiB  # of KiB: a tensor that shares no chunk with a small one
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"


def weights(rows: int, *, padding: int = 0, more: bool = False) -> bytes:
    """Return a safetensors file of `rows` KiB; `more` adds a small tensor before the large one."""
    data = random.Random(rows).randbytes(1024 * rows)
    extra = 3 if more else 0
    table = {"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [extra, extra + len(data)]}}
    if more:
        table["a"] = {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}
    text = b" " * padding + json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + b"new"[:extra] + data


class Warnings(Reporter):
    """A reporter that collects warnings."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def warned(self, code: str, message: str) -> None:
        self.found.append((code, message))


@pytest.mark.parametrize("name", ["flux.sft", "flux", "0f1e2d", "model.safetensors.tmp", "a.bin"])
@pytest.mark.parametrize("padding", [0, 5000])
def test_safetensors_files_of_any_name_are_stored_as_tensors(
    tmp_path: Path, name: str, padding: int
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(weights(LARGE, padding=padding))
    with casweights.open(MemoryStore(), create=True) as store:
        header = store.commit(folder).files[0].header
        assert header is not None
        assert [tensor.name for tensor in header.tensors] == ["w"]
        before = store.stats().pack_bytes
        (folder / name).write_bytes(weights(LARGE, more=True))
        store.commit(folder)
        assert store.stats().pack_bytes - before < 10_000
        store.checkout("main", tmp_path / "out")
        assert (tmp_path / "out" / name).read_bytes() == weights(LARGE, more=True)
        assert store.commit(folder, opaque=[name]).files[0].header is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        weights(2)[:-1],
        weights(2) + b"x",
        (30).to_bytes(8, "little") + b"{" + b"x" * 40,
        (10).to_bytes(8, "little") + b"\0" * 40,
        (99_999_999).to_bytes(8, "little") + b"{",
    ],
)
def test_invalid_safetensors_files_of_other_names_are_stored_as_plain_bytes(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.sft").write_bytes(content)
    with casweights.open(MemoryStore(), create=True) as store:
        assert store.commit(tmp_path / "a.sft").files[0].header is None
        store.checkout("main", tmp_path / "out")
    assert (tmp_path / "out/a.sft").read_bytes() == content


def test_a_checkout_reuses_the_tensors_of_a_file_with_another_name(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/m.safetensors").write_bytes(weights(LARGE, more=True))
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.sft").write_bytes(weights(LARGE))
    counting = CountingStore(MemoryStore())
    with casweights.open(counting, create=True) as store:
        store.commit(out)
        store.commit(tmp_path / "one")
        counting.reset()
        store.checkout("main", out, delete=True)
    assert counting.read_bytes("packs/", "snapshots/") < 10_000
    assert (out / "m.safetensors").read_bytes() == weights(LARGE, more=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tokenizer.model", "model.sft", "x/README"])
def test_a_pointer_of_git_lfs_causes_a_warning(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(POINTER)
    warnings = Warnings()
    with casweights.open(MemoryStore(), create=True, reporter=warnings) as store:
        store.commit(tmp_path, opaque=["*"])
        assert warnings.found == []
        store.commit(tmp_path)
    [(code, message)] = warnings.found
    assert code == ErrorCode.LFS_POINTER
    assert name in message
    assert "git lfs pull" in message


def test_a_pointer_named_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with casweights.open(MemoryStore(), create=True) as store:
        with pytest.raises(InvalidInputError, match="git lfs pull") as caught:
            store.commit(tmp_path)
        assert caught.value.code is ErrorCode.LFS_POINTER
        store.commit(tmp_path, opaque=["*"])


def hub_cache(folder: Path) -> None:
    """Create a folder like one of the Hub's cache, with one revision."""
    digest = "0" * 63 + "1"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / digest).write_bytes(weights(4))
    (folder / "snapshots/aaa").mkdir(parents=True)
    (folder / "snapshots/aaa/model.safetensors").symlink_to(f"../../blobs/{digest}")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("aaa")


@pytest.mark.parametrize("below", ["", "models--x--y", "hub/models--x--y"])
def test_a_folder_of_the_hub_cache_causes_a_warning(tmp_path: Path, below: str) -> None:
    hub_cache(tmp_path / "c" / below)
    warnings = Warnings()
    with casweights.open(MemoryStore(), create=True, reporter=warnings) as store:
        store.commit(tmp_path / "c")
        [(code, message)] = warnings.found
        assert code == ErrorCode.STORED_TWICE
        assert "snapshots/" in message
        store.commit(tmp_path / "c" / below / "snapshots/aaa", branch="alone")
        store.commit(tmp_path / "c", branch="rest", exclude=["*blobs"])
        assert len(warnings.found) == 1


def test_folders_with_names_like_the_hub_cache_cause_no_warning(tmp_path: Path) -> None:
    for path in ("blobs/image.png", "snapshots/1/a", "x/blobs/" + "0" * 64, "snapshots/b"):
        (tmp_path / "c" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / path).write_bytes(b"1")
    warnings = Warnings()
    with casweights.open(MemoryStore(), create=True, reporter=warnings) as store:
        store.commit(tmp_path / "c")
    assert warnings.found == []
