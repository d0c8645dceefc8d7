"""Directories as values: written, read, compared byte by byte."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link.

    Attributes:
        target: Path of the file it leads to, from the root of the tree.
    """

    target: str


Tree = dict[str, bytes | Link]


def write_tree(tree: Mapping[str, bytes | Link], root: Path) -> None:
    """Make a directory of this content."""
    root.mkdir(parents=True, exist_ok=True)
    for path, content in tree.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            place.symlink_to(os.path.relpath(root / content.target, place.parent))
        else:
            place.write_bytes(content)


def read_tree(root: Path) -> dict[str, bytes]:
    """The bytes of every file below a directory, by path; links to files are followed."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def resolve_links(tree: Mapping[str, bytes | Link]) -> dict[str, bytes]:
    """The bytes of every file of a tree, as `read_tree` reads it."""
    contents = {}
    for path, content in tree.items():
        while isinstance(content, Link):
            content = tree[content.target]
        contents[path] = content
    return contents
