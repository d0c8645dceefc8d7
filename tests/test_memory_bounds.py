"""Memory use is limited by the work in progress, not by the size of the model."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casweights.config import MiB
from casweights.testing.strategies import encode_header
from tests.lengths import choose

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = choose(768, 1024) * MiB
LIMIT = 512 * MiB

# The kernel measures the peak, from zero for every new process.
WORK = """
import sys
from pathlib import Path
import casweights
from casweights.operations import checkout, commit, verify

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

verb, store, source, target = sys.argv[1:]
before = peak()
with casweights.open(store, create=True, workers=2) as repo:
    if verb == "commit":
        repo.commit(source, compression="fast")
    elif verb == "checkout":
        repo.checkout("main", target)
    elif verb == "read":
        sum(map(len, repo.read("main", "model.safetensors")))
    else:
        assert not repo.verify().problems
print(peak() - before)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is deleted right after the test, because it contains gigabytes."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        yield Path(name)


def write_model(path: Path) -> None:
    """Write a file of random bytes, which no encoding makes smaller."""
    table = {"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(encode_header(table))
        for _ in range(SIZE // (8 * MiB)):
            file.write(rng.bytes(8 * MiB))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc of Linux")
def test_memory_use_does_not_grow_with_the_model(folder: Path) -> None:
    source = folder / "model.safetensors"
    write_model(source)
    for verb in ("commit", "commit", "checkout", "checkout", "read", "verify"):
        arguments = [verb, str(folder / "store"), str(source), str(folder / "out")]
        run = subprocess.run(
            [sys.executable, "-c", WORK, *arguments], check=True, capture_output=True, text=True
        )
        assert int(run.stdout) < LIMIT, verb
