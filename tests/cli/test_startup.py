"""Imports of the command line: heavy modules are loaded only by verbs that need them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from casweights.cli._app import VERBS

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import sys
from casweights.cli import main
try:
    main()
finally:
    print("imported:", *sys.modules, file=sys.stderr)
"""
HEAVY = {"torch", "numpy", "huggingface_hub", "tqdm", "safetensors", "blake3", "msgpack", "xxhash"}


def imported(*args: str) -> set[str]:
    """Run a command; return the modules that it imported."""
    command = [sys.executable, "-c", SCRIPT, *args]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stderr.rpartition("imported: ")[2].split())


@pytest.mark.parametrize("args", [("--help",), ("--version",), *((v, "--help") for v in VERBS)])
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    modules = imported(*args)
    assert "casweights.cli._app" in modules
    assert not modules & (HEAVY | {"casweights.repository", "casweights.database"})


def test_a_verb_imports_no_other_verb() -> None:
    modules = imported("log", "--help")
    assert {f"casweights.cli.{verb}" for verb in VERBS} & modules == {"casweights.cli.log"}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "args",
    [
        ("init",),
        ("commit", "model"),
        ("log",),
        ("show",),
        ("ls", "--tensors"),
        ("diff", "v1", "main"),
        ("checkout", "main", "out"),
        ("cat", "main", "config.json"),
        ("tag",),
        ("branch", "new"),
        ("stats",),
        ("verify",),
        ("repack",),
    ],
)
def test_local_verbs_import_neither_torch_nor_the_hub_client(
    args: tuple[str, ...], work: Path
) -> None:
    assert not imported(*args) & {"torch", "huggingface_hub", "tqdm", "safetensors"}
