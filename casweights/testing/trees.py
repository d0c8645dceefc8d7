"""Directory trees as dicts, to write to disk, read back and compare byte by byte."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to a file of the same tree.

    Attributes:
        target: Path of that file, relative to the root of the tree.
    """

    target: str


Tree = dict[str, bytes | Link]  # by path from the root, with "/" as separator


def write_tree(tree: Mapping[str, bytes | Link], root: Path) -> None:
    """Write the files and links of a tree below the directory `root`, which is created."""
    root.mkdir(parents=True, exist_ok=True)
    for path, content in tree.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            # Relative, as in a Hugging Face cache, so that the tree can be moved.
            place.symlink_to(os.path.relpath(root / content.target, place.parent))
        else:
            place.write_bytes(content)


def read_tree(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a directory, by path; links to files are followed."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def resolve_links(tree: Mapping[str, bytes | Link]) -> dict[str, bytes]:
    """Return the bytes of every file of a tree, with links followed, as `read_tree` does."""
    contents = {}
    for path, content in tree.items():
        while isinstance(content, Link):
            content = tree[content.target]
        contents[path] = content
    return contents
