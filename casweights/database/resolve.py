"""Resolves the names of versions that users write to IDs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casweights.database.hints import note_similar_refs
from casweights.database.ref_deletions import no_ref
from casweights.database.snapshots import MIN_PREFIX
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database import Database


def resolve(db: Database, ref: str) -> SnapshotId:
    """Return the ID of the version that a text names.

    Args:
        db: The store.
        ref: A branch, a tag, an ID or the first digits of one, and optionally ``~N`` for the Nth
            version before it, along first parents. ``heads/NAME`` is a branch only, ``tags/NAME``
            a tag only.

    Raises:
        InvalidInputError: The text after ``~`` is not a number, or the name is invalid.
        NotFoundError: No such version exists, or more than one.
    """
    name, tilde, count = ref.partition("~")
    if not re.fullmatch(r"[0-9]{0,9}", count):
        raise InvalidInputError(
            ErrorCode.BAD_NAME, f"{ref!r}: write a number after ~, as in {name}~1"
        )
    steps = int(count or bool(tilde))
    found = _resolve_name(db, name)
    if steps == 0:
        return found
    versions = 0
    for snapshot in db.snapshots.ancestry(found):
        if versions == steps:
            return snapshot.id
        versions += 1
    raise _too_far_back(ref, name, versions)


def _too_far_back(ref: str, name: str, versions: int) -> NotFoundError:
    """The error for a ``~N`` that goes back beyond the `versions` that exist."""
    if versions == 1:
        reason = f"no version comes before {name!r}"
    else:
        reason = f"{name!r} has {versions} versions, and the oldest is '{name}~{versions - 1}'"
    error = NotFoundError(ErrorCode.REF_NOT_FOUND, f"{ref!r} does not exist: {reason}")
    error.add_note(f"`casweights log {name}` lists the versions that exist")
    return error


def is_full_id(name: str) -> bool:
    """Whether a name is a whole ID. It then never names a ref, so that a pinned ID stays valid."""
    return re.fullmatch("[0-9a-fA-F]{64}", name) is not None


def _resolve_name(db: Database, name: str) -> SnapshotId:
    """Return the ID of the version that a text without ``~`` names."""
    if is_full_id(name):
        return _find(db, name.lower())
    if name.startswith("tags/"):
        branch, tag = None, db.refs.tag(name.removeprefix("tags/"))
    elif name.startswith("heads/"):
        branch, tag = db.refs.head(name.removeprefix("heads/")), None
    else:
        branch, tag = db.refs.head_and_tag(name)
    if branch and tag and branch.snapshot != tag:
        raise NotFoundError(
            ErrorCode.AMBIGUOUS,
            f"{name!r} is a branch and a tag: say heads/{name} or tags/{name}",
        )
    if branch:
        return branch.snapshot
    if tag:
        return tag
    digits = name.lower()
    if MIN_PREFIX <= len(digits) <= 64 and not set(digits) - set("0123456789abcdef"):
        return _find(db, digits)
    error = no_ref("branch, tag or snapshot", name)
    note_similar_refs(error, db, name)
    raise error


def _find(db: Database, digits: str) -> SnapshotId:
    """Return the only version whose ID begins with these hexadecimal digits."""
    if is_full_id(digits):  # one look-up, for any number of versions
        whole = SnapshotId.from_hex(digits)
        found = [whole] if db.snapshots.exists(whole) else []
    else:
        found = list(db.snapshots.ids(digits))
    if not found:
        message = f"the store has no snapshot {digits}"
        raise NotFoundError(ErrorCode.SNAPSHOT_NOT_FOUND, message)
    if len(found) > 1:
        message = f"{len(found)} snapshots begin with {digits}: give more digits"
        error = NotFoundError(ErrorCode.AMBIGUOUS, message)
        error.add_note(f"they are {_list_ids(found, len(digits))}")
        raise error
    return found[0]


def _list_ids(ids: Sequence[SnapshotId], common: int) -> str:
    """Some of these IDs, cut to a few more digits than the first `common`, which they share."""
    shown = [str(snapshot)[: max(12, common + 8)] for snapshot in ids[:5]]
    return ", ".join(shown) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
