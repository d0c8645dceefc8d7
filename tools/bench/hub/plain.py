"""Uploads and downloads of plain files in a bucket, with huggingface_hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import HfApi

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def create_bucket(bucket: str) -> None:
    """Create a bucket, unless it exists."""
    HfApi().create_bucket(bucket, exist_ok=True)


def upload(bucket: str, files: Iterable[tuple[str | Path | bytes, str]]) -> None:
    """Upload files, each given by its path or content and its name in the bucket."""
    HfApi().batch_bucket_files(bucket, add=list(files))


def fetch(bucket: str, files: Iterable[tuple[str, str | Path]]) -> None:
    """Download files, each given by its name in the bucket and its path."""
    HfApi().download_bucket_files(bucket, files=list(files), raise_on_missing_files=True)


def list_files(directory: Path, prefix: str = "") -> list[tuple[str | Path | bytes, str]]:
    """Return the files of a directory as arguments for `upload`."""
    return [(str(path), prefix + path.name) for path in sorted(directory.iterdir())]
