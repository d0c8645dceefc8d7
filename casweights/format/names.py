"""Names of objects in a store, and of refs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format.portable import part_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.ids import PackId, SnapshotId


CONFIG = "casweights.json"
PACKS = "packs/"
SNAPSHOTS = "snapshots/"
DAMAGED = "damaged/"
REFS = "refs/"
HEADS = f"{REFS}heads/"
TAGS = f"{REFS}tags/"

REF_SUFFIX = ".ref"
POSITION_DIGITS = 12  # as many for each, so that names sort as positions do
WRITER_DIGITS = 16  # hexadecimal, random: two writers do not draw the same
MAX_REF_NAME = 200  # characters: leaves room for the rest of a move's name
_REF_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*")


def pack_name(pack: PackId) -> str:
    """Where a pack lies."""
    return f"{PACKS}{pack}"


def snapshot_name(snapshot: SnapshotId) -> str:
    """Where a snapshot lies."""
    return f"{SNAPSHOTS}{snapshot}"


def move_name(
    kind: str,
    ref: str,
    position: int,
    snapshot: SnapshotId | None = None,
    before: SnapshotId | None = None,
    writer: str = "",
) -> str:
    """Where a move of a ref lies.

    Args:
        kind: `HEADS` or `TAGS`.
        ref: The branch or tag.
        position: Number of the move, from 1.
        snapshot: Where it moves to, in stores where several writers may take one position.
        before: Where it moves from, in such stores; None for the first move.
        writer: Tells this move from the same one by another writer, in such stores:
            `WRITER_DIGITS` hexadecimal digits.
    """
    way = "".join(f"-{part}" for part in (snapshot, before, writer) if part)
    return f"{kind}{ref}/{position:0{POSITION_DIGITS}}{way}{REF_SUFFIX}"


def is_ref_name(name: str) -> bool:
    """Whether a branch or tag can have this name."""
    return len(name) <= MAX_REF_NAME and all(
        _REF_PART.fullmatch(part) and not part.endswith(REF_SUFFIX) for part in name.split("/")
    )


def check_ref_name(name: str) -> str:
    """`name`, if a branch or tag can have it.

    Raises:
        InvalidInputError: It is too long, ends in ``.ref``, or has parts that are empty, begin
            with a dot or dash, or hold other characters than ASCII letters, digits and ``._+=-``.
    """
    if not is_ref_name(name):
        raise InvalidInputError(
            ErrorCode.BAD_NAME,
            f"{name!r} is no name for a branch or tag: use letters, digits and . _ + = - in parts "
            f"separated by /, beginning with a letter or digit, not ending in {REF_SUFFIX}",
        )
    return name


class RefNames:
    """The names of a store's branches, or of its tags, beside which new ones must fit."""

    def __init__(self, names: Iterable[str]) -> None:
        self._folders: dict[str, tuple[str, str]] = {}  # in lower case; as they are, and whose
        for name in names:
            self._add(name)

    def _add(self, name: str) -> None:
        for folder in _folders(name):
            self._folders.setdefault(folder.lower(), (folder, name))

    def add(self, name: str) -> None:
        """Add a new name, if every directory can hold it beside those that are there.

        Raises:
            InvalidInputError: Windows cannot hold the name, or some disks take it, or a folder in
                it, for another one's that differs in case.
        """
        for part in check_ref_name(name).split("/"):
            problem = part_problem(part)
            if part.lower().endswith(REF_SUFFIX):
                problem = f"ends in {REF_SUFFIX}"
            if problem:
                raise _bad_new(name, f"some systems cannot hold it: {part!r} {problem}")
        for folder in _folders(name):
            there, other = self._folders.get(folder.lower(), (folder, ""))
            if there != folder:
                raise _bad_new(name, f"some disks cannot tell it from {other!r}, which is there")
        self._add(name)


def _folders(name: str) -> Iterator[str]:
    """All folders that a ref's moves lie in: for ``a/b`` ``a`` and ``a/b``."""
    parts = name.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts) + 1))


def _bad_new(name: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        ErrorCode.BAD_NAME, f"no branch or tag can be made as {name!r}: {why}. Choose another name"
    )
