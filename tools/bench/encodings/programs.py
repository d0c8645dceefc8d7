"""Runs other programs that store files: zstd, restic and borg."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class NotInstalledError(Exception):
    """A program or package that a peer needs is missing."""


def zstd_patch(base: Path, new: Path, scratch: Path, *, level: int = 3) -> int:
    """Return the size of a patch by ``zstd --patch-from``, after a check that it is correct."""
    zstd = _program("zstd")
    patch, again = scratch / "patch.zst", scratch / "patched"
    # With several threads, zstd cuts the file into jobs, and finds fewer matches.
    options = ["-q", "-f", "--single-thread", f"--patch-from={base}"]
    _run([zstd, *options, f"-{level}", str(new), "-o", str(patch)], {})
    _run([zstd, *options, "-d", "--memory=2048MB", str(patch), "-o", str(again)], {})
    if again.read_bytes() != new.read_bytes():
        raise AssertionError("zstd --patch-from did not reproduce the file")
    size = patch.stat().st_size
    patch.unlink()
    again.unlink()
    return size


def restic(files: Sequence[Path], scratch: Path, *, compression: str = "auto") -> list[int]:
    """Return the size of a new restic repository after each file that is stored in it.

    Args:
        files: Stored one after the other.
        scratch: A directory for the repository, which is removed again.
        compression: ``auto``, ``max`` or ``off``.
    """
    repository = scratch / "restic"
    command = [_program("restic"), "-q", "--no-cache", "-r", str(repository)]
    environment = {"RESTIC_PASSWORD": "none"}

    def add(path: Path) -> None:
        _run([*command, "backup", "--compression", compression, str(path)], environment)

    return _grow(repository, lambda: _run([*command, "init"], environment), add, files)


def borg(
    files: Sequence[Path],
    scratch: Path,
    *,
    compression: str = "zstd,3",
    chunker: str = "buzhash,19,23,21,4095",
) -> list[int]:
    """Return the size of a new borg repository after each file that is stored in it.

    Args:
        files: Stored one after the other.
        scratch: A directory for the repository and its caches, which are removed again.
        compression: As borg's option of that name.
        chunker: As borg's option ``--chunker-params``.
    """
    repository, caches = scratch / "borg", scratch / "borg-caches"
    program = _program("borg")
    environment = {
        "BORG_BASE_DIR": str(caches),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }

    def add(path: Path) -> None:
        archive = f"{repository}::{time.time_ns()}"
        options = ["--compression", compression, "--chunker-params", chunker]
        _run([program, "create", *options, archive, str(path)], environment)

    def create() -> None:
        _run([program, "init", "--encryption", "none", str(repository)], environment)

    sizes = _grow(repository, create, add, files)
    shutil.rmtree(caches, ignore_errors=True)
    return sizes


def _grow(
    repository: Path,
    create: Callable[[], None],
    add: Callable[[Path], None],
    files: Sequence[Path],
) -> list[int]:
    shutil.rmtree(repository, ignore_errors=True)
    create()
    sizes = []
    for path in files:
        add(path)
        sizes.append(sum(p.stat().st_size for p in repository.rglob("*") if p.is_file()))
    shutil.rmtree(repository)
    return sizes


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotInstalledError(name)
    return found


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    subprocess.run(command, check=True, env={**os.environ, **environment}, capture_output=True)
