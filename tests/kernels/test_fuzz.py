"""Short fuzzing of the compiled kernels with sanitizers; `tools/fuzz/run` fuzzes for longer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lengths import choose

ROOT = Path(__file__).parents[2]
FUZZ = ROOT / "tools" / "fuzz"
SANITIZED = ["-g", "-Og", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
RUNS = choose(1000, 100_000)
INPUTS = ["-seed=1", f"-runs={RUNS}"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=choose(300, 3600), check=False
    )


def has_sanitizers(compiler: str, folder: Path) -> bool:
    source, program = folder / "probe.c", folder / "probe"
    source.write_text("int main(void) { return 0; }\n")
    built = run(compiler, *SANITIZED, source, "-o", program)
    return built.returncode == 0 and run(program).returncode == 0


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler")
    if not has_sanitizers(compiler, folder):
        pytest.skip("the C compiler has no sanitizers")
    program = folder / "fuzz"
    kernels = f"-I{ROOT / 'casweights' / 'kernels' / 'c'}"
    sources = [FUZZ / "fuzz.c", FUZZ / "standalone.c"]
    built = run(compiler, *SANITIZED, kernels, *sources, "-o", program)
    assert built.returncode == 0, built.stderr
    return program


def test_fuzzing_finds_no_fault(fuzz: Path) -> None:
    result = run(fuzz, *INPUTS)
    assert result.returncode == 0, result.stderr
    assert f"{RUNS} inputs" in result.stderr


@pytest.mark.parametrize(
    ("bug", "found"), [("overread", "heap-buffer-overflow"), ("mistake", "does not hold")]
)
def test_fuzzing_finds_planted_bugs(fuzz: Path, bug: str, found: str) -> None:
    result = run(fuzz, *INPUTS, f"-planted={bug}")
    assert result.returncode != 0
    assert found in result.stderr
    assert "again: -seed=" in result.stderr
