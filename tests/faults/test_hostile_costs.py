"""Tests of the tool that measures the costs of hostile stores, without real measurements."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.errors import IntegrityError
from tools.soak.hostile.families import FAMILIES
from tools.soak.hostile.forge import Forger

if TYPE_CHECKING:
    from types import ModuleType

    from casweights import Repository

ROOT = Path(__file__).parents[2]
# What reading a version of a family ends in. The others are sound.
ERRORS = {
    "bad-frames-of-a-chunk": "the frame at byte 8",
    "sizes-of-a-chunk": "the frame at byte 8",
    "circle": "its differences have different sizes, form a circle",
    "web-without-an-end": "cannot be rebuilt",
    "roots-of-roots": "form a circle",
    "missing-chunks": "no pack contains the chunk",
    "files-of-empty-lists": "an array has 0 items instead of 6",
    "table-of-empty-lists": "its pack table is not valid",
    "header-of-empty-lists": "not a valid safetensors file: tensor 'a'",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_hostile_in_nothing_but_its_subject(name: str, tmp_path: Path) -> None:
    """A store that is refused for anything else would measure nothing."""
    FAMILIES[name].build(Forger(tmp_path), 3)
    with casweights.open(tmp_path) as repo:
        if name in ERRORS:
            with pytest.raises(IntegrityError, match=re.escape(ERRORS[name])):
                read(repo)
        else:
            read(repo)


def read(repo: Repository) -> None:
    """Read all files of a version."""
    for file in repo.snapshot("main").files:
        for _ in repo.read("main", file.path):
            pass


@pytest.fixture
def costs() -> ModuleType:
    return import_module("tools.soak.hostile.costs")


@pytest.mark.parametrize(
    ("small", "large", "finds"),
    [
        ((0.1, 0, ""), (0.4, 0, ""), ""),
        ((0.3, 0, ""), (1.5, 0, ""), ""),
        ((0.3, 0, ""), (4.8, 0, ""), "seconds: exponent 2.00"),
        ((0.001, 0, ""), (0.24, 0, ""), ""),
        ((0.0, 50 << 20, ""), (0.0, 200 << 20, ""), ""),
        ((0.0, 50 << 20, ""), (0.0, 800 << 20, ""), "bytes: exponent 2.00"),
        ((0.0, 0, ""), (0.0, 0, "ended by SIGXCPU"), "ended by SIGXCPU"),
    ],
)
def test_a_cost_that_grows_too_fast_is_reported(
    costs: Any, small: tuple[float, int, str], large: tuple[float, int, str], finds: str
) -> None:
    found = costs.excess(costs.Cost(*small), costs.Cost(*large))
    assert finds in found
    assert bool(found) == bool(finds)


@pytest.mark.parametrize(
    ("seconds", "measured", "finds"),
    [((0.1, 0.4), 1, False), ((0.3, 1.2), 2, False), ((0.3, 4.8), 6, True)],
)
def test_the_small_size_is_measured_only_if_the_large_one_is_slow(
    costs: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seconds: tuple[float, float],
    measured: int,
    finds: bool,
) -> None:
    runs: list[str] = []

    def cost(_: str, store: Path, attempts: int) -> Any:
        runs.extend([store.name] * attempts)
        return costs.Cost(seconds[store.name == "large"], 0)

    monkeypatch.setattr(costs, "cost", cost)
    family = costs.FAMILIES["strays"]._replace(size=1)
    assert bool(list(costs.check("strays", family, ["open"], tmp_path))) == finds
    assert len(runs) == measured


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_tool_starts() -> None:
    options = ["--family", "strays", "--verb", "open"]
    command = [sys.executable, "-m", "tools.soak.hostile.costs", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 1 families" in done.stdout
