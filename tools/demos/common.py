"""Shared parts of the demo: the versions, comparison of files, and output."""

from __future__ import annotations

import hashlib
import shutil
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.models import variants

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASE = "pretrained"
MODELS = "models"
WIDTH = 96


class MismatchError(Exception):
    """A check of the demo failed."""


def check(condition: bool, otherwise: str) -> None:
    """Raise `MismatchError` with the text `otherwise` unless a condition holds."""
    if not condition:
        raise MismatchError(otherwise)


@dataclass(frozen=True)
class Recipe:
    """The definition of a version of the demo.

    Attributes:
        name: Name of the version in the demo.
        branch: Branch to commit it to.
        parent: Name of the version that it is made from.
        message: Message of the commit.
        make: Writes the version, given the directory of the parent and its own, which is new.
    """

    name: str
    branch: str
    parent: str | None
    message: str
    make: Callable[[Path, Path], object]


def _fine_tune_frozen(source: Path, target: Path) -> list[float]:
    return variants.fine_tune(source, target, frozen_embeddings=True)


RECIPES = (
    Recipe(BASE, "main", None, "all-MiniLM-L6-v2 as published", shutil.copytree),
    Recipe("tuned", "main", BASE, "Fine-tuned", variants.fine_tune),
    Recipe("frozen", "frozen", BASE, "Fine-tuned with frozen embeddings", _fine_tune_frozen),
    Recipe("vocabulary", "vocabulary", BASE, "Six words added", variants.enlarge_vocabulary),
    Recipe("adapter", "adapter", BASE, "LoRA adapter of rank 8", variants.train_adapter),
    Recipe("fp16", "fp16", "tuned", "Rounded to fp16", variants.convert_to_half),
)


def compare_files(original: Path, copy: Path) -> dict[str, str]:
    """Check that two directories have the same files; return their SHA-256 by path."""
    expected, found = sha256_of_files(original), sha256_of_files(copy)
    for path in sorted(expected.keys() | found.keys()):
        check(expected.get(path) == found.get(path), f"{path} in {copy} differs from the original")
    return expected


def sha256_of_files(directory: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(directory).as_posix()] = digest
    return digests


def size_on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.2f} MB"


def heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def say(text: str) -> None:
    print(textwrap.indent(text, "   "), flush=True)
