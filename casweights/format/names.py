"""Names of objects in a store, and of refs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from casweights.ids import PackId, SnapshotId


CONFIG = "casweights.json"
PACKS = "packs/"
SNAPSHOTS = "snapshots/"
HEADS = "refs/heads/"
TAGS = "refs/tags/"

REF_SUFFIX = ".ref"
POSITION_DIGITS = 12
MAX_REF_NAME = 200
_REF_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*")


def pack_name(pack: PackId) -> str:
    """Where a pack lies."""
    return f"{PACKS}{pack}"


def snapshot_name(snapshot: SnapshotId) -> str:
    """Where a snapshot lies."""
    return f"{SNAPSHOTS}{snapshot}"


def head_name(branch: str, position: int) -> str:
    """Where the entry of a branch's move number `position` lies."""
    return f"{HEADS}{branch}/{position:0{POSITION_DIGITS}}{REF_SUFFIX}"


def tag_name(tag: str) -> str:
    """Where a tag lies."""
    return f"{TAGS}{tag}{REF_SUFFIX}"


def check_ref_name(name: str) -> str:
    """`name`, if a branch or tag can have it.

    Raises:
        InvalidInputError: It is too long, ends in ``.ref``, or has parts that are empty, begin
            with a dot or dash, or hold other characters than ASCII letters, digits and ``._+=-``.
    """
    parts = name.split("/")
    if len(name) > MAX_REF_NAME or not all(
        _REF_PART.fullmatch(part) and not part.endswith(REF_SUFFIX) for part in parts
    ):
        raise InvalidInputError(
            ErrorCode.BAD_NAME,
            f"{name!r} is no name for a branch or tag: use letters, digits and . _ + = - in parts "
            f"separated by /, beginning with a letter or digit, not ending in {REF_SUFFIX}",
        )
    return name
