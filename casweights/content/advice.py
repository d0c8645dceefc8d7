"""Warnings about files that are about to be committed. They do not stop the commit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casweights.content.files import LFS_ADVICE
from casweights.content.shard_index import bad_indexes
from casweights.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.content.files import SourceFile

# A folder of the Hub's cache holds blobs named by digest, and links to them by revision and name.
_BLOB = re.compile(r"(?P<folder>.*/)?blobs/([0-9a-f]{40}|[0-9a-f]{64})", re.DOTALL)
_IN_SNAPSHOT = re.compile(r"(?P<folder>.*/)?snapshots/[^/]+/.+", re.DOTALL)


def advice(files: Sequence[SourceFile], chunk_size: int) -> Iterator[tuple[ErrorCode, str]]:
    """Yield a code and a message for each likely mistake in these files.

    The mistakes are indexes that do not fit the files, pointers of git-lfs instead of files, and
    folders of the Hub's cache, which contain every file twice.
    """
    for problem in bad_indexes(files, chunk_size):
        yield ErrorCode.BAD_INDEX, problem
    for file in files:
        if file.is_pointer:
            yield ErrorCode.LFS_POINTER, f"{file.path}: {LFS_ADVICE}"
    for folder in sorted(_hub_caches(file.path for file in files)):
        yield ErrorCode.STORED_TWICE, _twice(folder)


def _twice(folder: str) -> str:
    return (
        f"{folder or 'the folder'} belongs to the Hub's cache, where {folder}snapshots/ links to "
        f"{folder}blobs/. A commit follows links, so the version contains each file twice: commit "
        "one of the folders in snapshots/ instead"
    )


def _hub_caches(paths: Iterator[str]) -> set[str]:
    """Return the folders that have blobs and snapshots as the Hub's cache does."""
    blobs, snapshots = set(), set()
    for path in paths:
        if found := _BLOB.fullmatch(path):
            blobs.add(found["folder"] or "")
        elif found := _IN_SNAPSHOT.fullmatch(path):
            snapshots.add(found["folder"] or "")
    return blobs & snapshots
