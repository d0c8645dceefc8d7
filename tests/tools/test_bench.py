"""Tests of the benchmarks' commands, without measurements."""

from __future__ import annotations

import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tools" / "bench" / "run"
MODULES = {
    "chunk_size": "chunk_size",
    "encodings": "encodings.main",
    "hub": "hub.main",
    "lifecycle": "lifecycle.main",
    "peers": "encodings.peers",
    "recall": "recall",
    "relatives": "relatives",
    "shapes": "shapes",
    "store": "store",
    "sync": "sync.main",
    "variants": "variants",
}


@pytest.mark.parametrize("name", MODULES)
def test_help_of_a_benchmark_is_printed_and_starts_with_its_command(name: str) -> None:
    text = import_module(f"tools.bench.{MODULES[name]}").parser().format_help()
    assert text.startswith(f"usage: tools/bench/run {name} [-h]")


def test_run_without_a_name_lists_all_benchmarks() -> None:
    done = subprocess.run([RUN], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"usage: tools/bench/run {'|'.join(MODULES)} [OPTIONS]\n"


def test_pages_name_only_existing_benchmarks() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"tools/bench/run (\w+)", page.read_text(encoding="utf-8"))
    }
    assert named <= MODULES.keys()
    assert named >= MODULES.keys() - {"peers"}
