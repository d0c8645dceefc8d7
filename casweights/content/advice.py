"""What is odd about the files of a version that is about to be made; it is made all the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casweights.content.files import LFS_ADVICE
from casweights.content.shard_index import bad_indexes
from casweights.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.content.files import SourceFile

# A folder of the Hub's cache: blobs by their digest, and links to them by name and revision.
_BLOB = re.compile(r"(?P<folder>.*/)?blobs/([0-9a-f]{40}|[0-9a-f]{64})", re.DOTALL)
_IN_SNAPSHOT = re.compile(r"(?P<folder>.*/)?snapshots/[^/]+/.+", re.DOTALL)


def advice(files: Sequence[SourceFile], chunk_size: int) -> Iterator[tuple[ErrorCode, str]]:
    """Warnings for whoever commits these files, each with its code."""
    for problem in bad_indexes(files, chunk_size):
        yield ErrorCode.BAD_INDEX, problem
    for file in files:
        if file.is_pointer:
            yield ErrorCode.LFS_POINTER, f"{file.path}: {LFS_ADVICE}"
    for folder in sorted(_hub_caches(file.path for file in files)):
        yield ErrorCode.STORED_TWICE, _twice(folder)


def _twice(folder: str) -> str:
    return (
        f"{folder or 'the folder'} is one of the Hub's cache, in which {folder}snapshots/ links to "
        f"{folder}blobs/. Links are committed as what they lead to, so each file is in the version "
        "twice: commit one of the folders in snapshots/ instead"
    )


def _hub_caches(paths: Iterator[str]) -> set[str]:
    blobs, snapshots = set(), set()
    for path in paths:
        if found := _BLOB.fullmatch(path):
            blobs.add(found["folder"] or "")
        elif found := _IN_SNAPSHOT.fullmatch(path):
            snapshots.add(found["folder"] or "")
    return blobs & snapshots
