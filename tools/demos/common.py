"""What all parts of the demo share: the versions, comparing files, and talking to people."""

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
    """Something is not what it must be."""


def check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise MismatchError(otherwise)


@dataclass(frozen=True)
class Recipe:
    """How a version comes about.

    Attributes:
        name: What it is called here.
        branch: Where it is committed to.
        parent: The version it is made from.
        message: What was done.
        make: Writes it; takes the parent's directory and its own, which is not there yet.
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
    """SHA-256 of all files by path, which must be the same in both directories."""
    expected, found = sha256_of_files(original), sha256_of_files(copy)
    for path in sorted(expected.keys() | found.keys()):
        check(expected.get(path) == found.get(path), f"{path} in {copy} is not the original's")
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
