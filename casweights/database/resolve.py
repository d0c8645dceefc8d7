"""Resolves the names of versions that users write to IDs."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.database.aside import parse_listing
from casweights.database.expired import removed
from casweights.database.hints import note_similar_refs
from casweights.database.ref_deletions import no_ref
from casweights.database.snapshots import MIN_PREFIX
from casweights.errors import CasweightsError, ErrorCode, InvalidInputError, NotFoundError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights.database import Database
    from casweights.results import ExpiredVersion


def resolve(db: Database, ref: str) -> SnapshotId:
    """Return the ID of the version that a text names.

    Args:
        db: The store.
        ref: A branch, a tag, an ID or the first digits of one, and optionally ``~N`` for the Nth
            version before it, along first parents: the one whose number is N less. ``heads/NAME``
            is a branch only, ``tags/NAME`` a tag only.

    Raises:
        InvalidInputError: The text after ``~`` is not a number, or the name is invalid.
        NotFoundError: No such version exists, or more than one, or it has expired.
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
    return _before(db, ref, name, found, steps)


def _before(db: Database, ref: str, name: str, found: SnapshotId, steps: int) -> SnapshotId:
    """Return the version whose number is `steps` below that of `found`, in its history.

    Raises:
        NotFoundError: There is no such version, or it has expired.
    """
    walk = db.history.walk(found)
    above, expired = next(walk)
    first, last = above.number, above.number
    while True:
        wanted = [row for row in expired if row.number == first - steps]
        last = min([last, *(row.number for row in expired)])
        below = next(walk, None)
        if wanted:
            stayed = [above.number, *([below.snapshot.number] if below else ())]
            raise _is_expired(ref, name, wanted[0], first, stayed)
        if below is None:
            raise _too_far_back(ref, name, first - last + 1, first - above.number)
        above, expired = below
        last = above.number
        if last == first - steps:
            return above.id


def _is_expired(
    ref: str, name: str, gone: ExpiredVersion, first: int, stayed: Sequence[int]
) -> NotFoundError:
    """The error for a ``~N`` that leads to an expired version.

    Args:
        ref: The ref as given.
        name: The part before ``~``.
        gone: The version.
        first: Number of the version that `name` names.
        stayed: Numbers of the versions next to `gone` that stayed.
    """
    nearest = min(stayed, key=lambda number: abs(number - gone.number))
    error = NotFoundError(
        ErrorCode.EXPIRED,
        f"{ref!r} is version {gone.number}, which expired on {gone.time:%Y-%m-%d %H:%M} UTC "
        f"({gone.policy}): the nearest version that stayed is '{name}~{first - nearest}'",
    )
    error.add_note(f"its ID is {gone.id}, and works as long as no collection has removed it")
    return error


def _too_far_back(ref: str, name: str, versions: int, oldest: int) -> NotFoundError:
    """The error for a ``~N`` that goes back too far.

    Args:
        ref: The ref as given.
        name: The part before ``~``.
        versions: Number of versions that exist, or have expired.
        oldest: The largest N of a version that stayed.
    """
    if versions == 1:
        reason = f"no version comes before {name!r}"
    else:
        stayed = "" if oldest == versions - 1 else " that stayed"
        at = f"{name}~{oldest}" if oldest else name
        reason = f"{name!r} has {versions} versions, and the oldest{stayed} is {at!r}"
    error = NotFoundError(ErrorCode.REF_NOT_FOUND, f"{ref!r} does not exist: {reason}")
    error.add_note(f"`casweights log {name}` lists the versions that exist")
    return error


def is_full_id(name: str) -> bool:
    """Whether a name is a whole ID. It then never names a ref, so that a pinned ID stays valid."""
    return re.fullmatch("[0-9a-fA-F]{64}", name) is not None


def is_prefix(name: str) -> bool:
    """Whether a name that no ref has can stand for the ID that begins with it."""
    return MIN_PREFIX <= len(name) <= 64 and not set(name.lower()) - set("0123456789abcdef")


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
    if is_prefix(name):
        return _find(db, name.lower())
    error = no_ref("branch, tag or snapshot", name)
    note_similar_refs(error, db, name)
    raise error


def check_stands(db: Database, snapshot: SnapshotId) -> None:
    """Check that a version is in its place, before a branch, a tag or a version names it.

    Nothing that this handle remembers counts: a collection may have set the version aside, and
    deletes it unless it is brought back.

    Raises:
        NotFoundError: The version is not in its place.
    """
    if not db.snapshots.archives.stands(snapshot):
        raise _absent(db, snapshot.hex())


def _absent(db: Database, digits: str) -> NotFoundError:
    """Return the error for a version that has expired, was set aside, or does not exist."""
    message = f"the store has no snapshot {digits}"
    error = NotFoundError(ErrorCode.SNAPSHOT_NOT_FOUND, message)
    expired = db.expired.load()
    for gone in sorted(expired.beginning_with(digits))[:1] if expired else ():
        if (row := expired.find(gone)) is not None:
            error = removed(row)
    with suppress(CasweightsError):  # the error itself matters more
        for version, collection in _set_aside(db, digits).items():
            error.add_note(
                f"collection {collection} has set it aside: `casweights undelete {version} --as "
                "NAME` brings it back under a name"
            )
    return error


def _set_aside(db: Database, digits: str) -> dict[SnapshotId, str]:
    """Return the versions that collections have set aside, each with a collection.

    Args:
        db: The store.
        digits: The first digits of the versions' IDs.
    """
    found: dict[SnapshotId, str] = {}
    archives: dict[str, ObjectInfo] = {}
    holders: dict[str, str] = {}
    for aside, info in parse_listing(db.store.list(names.ASIDE)):
        if aside.name.startswith(names.SNAPSHOTS + digits):
            version = names.parse_id(SnapshotId, names.SNAPSHOTS, aside.name)
            found[version] = aside.collection
        elif aside.name.startswith(names.ARCHIVES):
            archives[aside.name] = ObjectInfo(aside.name, info.size, info.created)
            holders[aside.name] = aside.collection
    for name, versions in db.snapshots.archives.members_aside(archives).items():
        found |= {
            version: holders[name] for version in versions if version.hex().startswith(digits)
        }
    return found


def resolve_anywhere(db: Database, digits: str) -> SnapshotId:
    """Return the only version whose ID begins with these digits, in its place or set aside.

    Raises:
        NotFoundError: No version or more than one begins with them.
    """
    digits = digits.lower()
    if is_full_id(digits):
        return SnapshotId.from_hex(digits)
    return _only(db, digits, {*db.snapshots.ids(digits), *_set_aside(db, digits)})


def _find(db: Database, digits: str) -> SnapshotId:
    """Return the only version whose ID begins with these hexadecimal digits."""
    if is_full_id(digits):  # one look-up, for any number of versions
        whole = SnapshotId.from_hex(digits)
        found = [whole] if db.snapshots.exists(whole) else []
    else:
        found = list(db.snapshots.ids(digits))
    return _only(db, digits, found)


def _only(db: Database, digits: str, known: Iterable[SnapshotId]) -> SnapshotId:
    """Return the only version among those that begin with these digits."""
    found = sorted(known)
    if not found:
        raise _absent(db, digits)
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
