"""Messages and exit statuses of the command line for faults of stores, models and disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.hashing import CHECKSUM_SIZE, checksum
from casweights.system.staging import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

DAMAGED = 13


LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("casweights", run_name="__main__")
"""


def run(store: Path, *arguments: object, largest_file: int | None = None) -> tuple[int, str]:
    """Run a command; return exit status and output.

    Args:
        store: The store.
        arguments: The command and its arguments.
        largest_file: Limit of the size of a file, which acts like a full disk.
    """
    program = ["-m", "casweights"] if largest_file is None else ["-c", LIMITED, str(largest_file)]
    command = [sys.executable, *program, *map(str, arguments), "--store", str(store)]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of two versions."""
    root = tmp_path / "store"
    with casweights.open(root, create=True) as repo:
        for step in (1, 2):
            (tmp_path / "model").mkdir(exist_ok=True)
            (tmp_path / "model" / "weights.bin").write_bytes(os.urandom(3000))
            (tmp_path / "model" / f"step-{step}.txt").write_text("x" * 500)
            repo.commit(tmp_path / "model")
        repo.tag("v1", "main~1")
    return root


def objects(store: Path, kind: str) -> list[Path]:
    return sorted(path for path in store.glob(kind) if path.is_file())


def damage(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


KINDS = ["casweights.json", "packs/*", "snapshots/*", "refs/heads/main/*", "refs/tags/v1/*"]


def test_verify_of_a_sound_store_reports_no_problem(store: Path) -> None:
    status, text = run(store, "verify")
    assert (status, "no problems" in text) == (0, True)


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["flip", "cut"])
def test_verify_names_the_damaged_object(store: Path, kind: str, change: str) -> None:
    path = objects(store, kind)[-1]
    if change == "flip":
        damage(path, PREFIX_SIZE + 1)
    else:
        os.truncate(path, path.stat().st_size - 1)
    name = path.relative_to(store).as_posix()
    status, text = run(store, "verify")
    assert status == DAMAGED
    assert name in text
    status, text = run(store, "verify", "--quick", "--json")
    assert status == DAMAGED
    messages = [json.loads(line).get("message", "") for line in text.splitlines()]
    assert any(name in message for message in messages)


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("kind", KINDS[:4])
def test_checkout_from_a_damaged_store_fails_and_writes_nothing(
    store: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.bin").write_bytes(b"mine")
    for path in objects(store, kind):
        damage(path, PREFIX_SIZE + 1)
    checkout = ["checkout", "main", tmp_path / "out", "--force"]
    for arguments in (checkout, ["cat", "main", "weights.bin"]):
        status, text = run(store, *arguments)
        assert status == DAMAGED
        assert any(path.name in text for path in objects(store, kind))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights.bin"]
    assert (tmp_path / "out" / "weights.bin").read_bytes() == b"mine"


def test_newer_format_asks_for_an_upgrade(store: Path, tmp_path: Path) -> None:
    (path,) = objects(store, "refs/tags/v1/*")
    body = bytearray(path.read_bytes()[:-CHECKSUM_SIZE])
    body[5] += 1
    path.write_bytes(body + checksum(body))
    status, text = run(store, "checkout", "v1", tmp_path / "out")
    assert status == 1
    assert "upgrade" in text
    assert path.name in text


def test_commit_names_a_malformed_model(store: Path, tmp_path: Path) -> None:
    bad = tmp_path / "model" / "bad.safetensors"
    bad.write_bytes(b"not safetensors")
    status, text = run(store, "commit", tmp_path / "model")
    assert status == 1
    assert str(bad) in text
    assert "opaque" in text
    assert len(objects(store, "snapshots/*")) == 2


def test_commands_on_a_full_disk_fail_and_can_be_repeated(store: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "weights.bin").write_bytes(os.urandom(100_000))
    before = set(store.rglob("*"))
    status, text = run(store, "commit", tmp_path / "model", largest_file=50_000)
    assert status == 1
    assert "too large" in text
    assert set(store.rglob("*")) == before
    assert run(store, "verify")[0] == 0
    assert run(store, "commit", tmp_path / "model")[0] == 0
    assert not list(store.glob(f"{PREFIX}*"))

    status, text = run(store, "checkout", "main", tmp_path / "out", largest_file=50_000)
    assert status == 1
    assert "too large" in text
    assert list((tmp_path / "out").iterdir()) == []
    assert run(store, "checkout", "main", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
