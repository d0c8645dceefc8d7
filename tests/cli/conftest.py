"""Fixtures that run the command line, in this process or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from casweights.cli._app import root

Run = Callable[..., Result]
Json = Callable[..., Any]
Spawn = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the machine's user from the environment."""
    settings = ("NO_COLOR", "PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8")
    for name in list(os.environ):
        if name.startswith(("CASWEIGHTS_", "_CASWEIGHTS_", "HF_HUB_")) or name in settings:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current directory of the test."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(work: Path) -> Run:
    """A function that runs the command line and expects an exit status, by default 0."""

    def run(*args: str, status: int = 0, **env: str) -> Result:
        result = CliRunner().invoke(root, args, prog_name="casweights", env=env)
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def run_json(run: Run) -> Json:
    """A function that runs a command with ``--json`` and returns its document or its lines."""

    def run_json(*args: str, status: int = 0) -> Any:
        text = run(*args, "--json", status=status).stdout
        if text.startswith("["):
            return json.loads(text)
        lines = [json.loads(line) for line in text.splitlines()]
        return lines if "message_type" in lines[0] else lines[0]

    return run_json


@pytest.fixture
def spawn(work: Path) -> Spawn:
    """A function that runs the command line as a process of its own."""

    def spawn(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "casweights", *args]
        options = {"capture_output": True, "text": True, "check": False, **options}
        return subprocess.run(command, **options)

    return spawn


@pytest.fixture
def model(work: Path) -> Path:
    """A model's directory: three tensors and two other files."""
    folder = work / "model"
    folder.mkdir()
    save_model(folder, bias=0.0)
    (folder / "config.json").write_text('{"hidden_size": 4}\n')
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.md").write_bytes(b"\x00binary\xff")
    return folder


@pytest.fixture
def change(model: Path) -> Callable[[], None]:
    """A function that changes the model: one tensor, one file deleted, one file added."""

    def change() -> None:
        save_model(model, bias=1.0)
        (model / "notes" / "readme.md").unlink()
        (model / "vocab.txt").write_text("a\nb\n")

    return change


def save_model(folder: Path, bias: float) -> None:
    generator = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "embed.weight": generator.standard_normal((40, 1000), np.float32),
        "head.bias": np.full(1000, bias, np.float16),
        "head.weight": generator.standard_normal((1000, 20), np.float32),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def store(run: Run, model: Path, change: Callable[[], None]) -> Path:
    """A store at the default place with two versions on main; the first is tagged v1."""
    run("init", "--chunk-size", "64KiB")
    run("commit", "model", "-m", "first", "--author", "Ada")
    run("tag", "v1")
    change()
    run("commit", "model", "-m", "second\n\nwith a body", "--meta", "step=10", "--author", "Ada")
    return Path(".casweights").absolute()
