"""The choice between compiled kernels and their twins."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from casweights import kernels
from casweights.database.packs import list_packs, read_pack
from casweights.kernels import _compiled
from casweights.stores.local import LocalStore

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.format.pack import Location


def test_compiled_kernels_are_used() -> None:
    assert kernels.COMPILED is True
    assert kernels.dense_encode is _compiled.dense_encode
    assert _compiled.TARGETS[0] == "portable"
    with pytest.raises(ValueError, match="no kernels abacus"):
        _compiled.use("abacus")


SCRIPT = """
import sys

if sys.argv[2] == "twins":
    sys.modules["casweights.kernels._compiled"] = None

import casweights
from casweights import kernels

assert kernels.COMPILED == (sys.argv[2] == "compiled")
with casweights.open(sys.argv[1] + "/store", create=True, workers=1) as repo:
    for name in ("before", "after"):
        version = repo.commit(f"{sys.argv[1]}/{name}")
        repo.checkout(version.id, f"{sys.argv[1]}/{name} again")
"""


def stepped(base: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    bits = base.view("<u2").copy()
    bits[rng.random(len(bits)) < share] += 1
    return bits.view(base.dtype)


def commit_twice(folder: Path, which: str) -> list[bytes]:
    """Commit and check out two versions in another process, and return the frames of each."""
    rng = np.random.default_rng(5)
    base = rng.normal(0, 0.02, 50_000).astype("<f2")
    for name, shares in (("before", (0, 0)), ("after", (0.01, 0.6))):
        (folder / name).mkdir(parents=True)
        few, many = (stepped(base, share, rng) for share in shares)
        save_file({"few": few, "many": many}, folder / name / "model.safetensors")
    command = [sys.executable, "-c", SCRIPT, str(folder), which]
    subprocess.run(command, check=True, timeout=120)
    for name in ("before", "after"):
        written = (folder / name / "model.safetensors").read_bytes()
        assert (folder / f"{name} again" / "model.safetensors").read_bytes() == written
    store = LocalStore(folder / "store")
    found = [read_pack(store, info).locations for info in list_packs(store)]
    return sorted(
        b"".join(store.get(*_span(at)) + at.frame.chunk for at in locations) for locations in found
    )


def _span(location: Location) -> tuple[str, int, int]:
    """Return the object, the offset and the size of a frame."""
    name, start, stop = location.range
    return name, start, stop - start


def test_twins_write_the_same_packs_as_compiled_kernels(tmp_path: Path) -> None:
    packs = commit_twice(tmp_path / "1", "twins")
    assert len(packs) == 2
    assert min(map(len, packs)) < 50_000  # of 200,000 bytes
    assert packs == commit_twice(tmp_path / "2", "compiled")
