"""Push: branches and tags to another store, and their versions with them."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.resolve import is_full_id, resolve
from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
)
from casweights.format import names
from casweights.operations.transfer import check_configs, transfer
from casweights.system.threads import Once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.database import Database
    from casweights.database.refs import Head
    from casweights.format.names import RefNames
    from casweights.ids import SnapshotId
    from casweights.results import TransferStats

    Tips = dict[str, SnapshotId]  # by "heads/<branch>" and "tags/<tag>"

_HEADS, _TAGS = "heads/", "tags/"


def push(
    source: Database,
    target: Database,
    refs: Sequence[str] | None,
    *,
    history: bool = True,
    unnamed: bool = False,
    force: bool = False,
) -> TransferStats:
    """Bring versions to another store, and the branches and tags that name them.

    A branch of the target moves forward only: to a version that came from the one it is at. If it
    is further there already, it stays.

    Args:
        source: Where they are.
        target: Where they go.
        refs: Branches and tags, ``heads/x`` and ``tags/x`` where a name is both; IDs and
            ``main~2`` bring a version without a name. None for all branches and tags.
        history: Whether the versions before them go, too.
        unnamed: Whether all other versions go, too.
        force: Move branches whatever they point to.

    Raises:
        ConflictError: A branch has gone another way in the target, or a tag points elsewhere.
            Everything else was moved.
        NotFoundError: The source has no such branch, tag or version.
        InvalidInputError: The stores have different digests or chunk sizes, or `unnamed` comes
            with `refs` or without `history`.
        IntegrityError: The source is damaged.
        StoreError: The target could not be written.
    """
    if unnamed and (refs is not None or not history):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            "unnamed=True brings every version: leave out refs and history=False",
        )
    # Each ref is read once, since it may move, and before the versions that it may point to.
    named = _all_refs(source) if refs is None else {}
    asked = dict(named)
    for ref in refs or ():
        found = {} if "~" in ref or is_full_id(ref) else _called(source, ref)
        named |= found
        asked |= found or {ref: resolve(source, ref)}
    others = source.snapshots.ids() if unnamed else ()
    return _send(source, target, named, asked, others, history=history, force=force)


def _all_refs(db: Database) -> Tips:
    branches = {_HEADS + name: tip for name, tip in db.refs.branches().items()}
    return branches | {_TAGS + name: tip for name, tip in db.refs.tags().items()}


def _called(db: Database, ref: str) -> Tips:
    """The branch and the tag of a name; if there are both, they agree."""
    found: Tips = {}
    branch, tag = ref.removeprefix(_HEADS), ref.removeprefix(_TAGS)
    if not ref.startswith(_TAGS) and (head := db.refs.head(branch)) is not None:
        found[_HEADS + branch] = head.snapshot
    if not ref.startswith(_HEADS) and (tip := db.refs.tag(tag)) is not None:
        found[_TAGS + tag] = tip
    if len(set(found.values())) > 1:
        raise NotFoundError(
            ErrorCode.AMBIGUOUS, f"{ref!r} is a branch and a tag: say heads/{ref} or tags/{ref}"
        )
    return found


def _send(
    source: Database,
    target: Database,
    refs: Tips,
    asked: Tips,
    others: Iterable[SnapshotId],
    *,
    history: bool,
    force: bool,
) -> TransferStats:
    """Bring versions, then move refs to them; `others` are versions that no ref need lead to.

    Conflicts, and names that the target cannot hold beside its own, are found before anything moves
    where they can be seen. They do not keep the others back.
    """
    check_configs(source, target)
    refused: list[ConflictError | InvalidInputError] = []
    moves: dict[str, _Move] = {}
    there = _Names(Once(target.refs.branch_names), Once(target.refs.tag_names))
    for name, tip in refs.items():
        try:
            moves[name] = _find_move(source, target, name, tip, there, force=force)
        except (ConflictError, InvalidInputError) as error:
            refused.append(error)
    refused_refs = refs.keys() - moves.keys()
    tips = (tip for ref, tip in asked.items() if ref not in refused_refs)
    wanted = dict.fromkeys([*others, *tips])
    stats = transfer(source, target, list(wanted), history=history)
    moved: Tips = {}
    for name, move in moves.items():
        try:
            if _make_move(target, name, move, there):
                moved[name] = move.tip
        except (ConflictError, InvalidInputError) as error:
            refused.append(error)
    stats = replace(stats, refs=moved, tips=asked)
    target.reporter.transferred(stats)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise ConflictError(refused[0].code, "; ".join(map(str, refused)))
    return stats


class _Move(NamedTuple):
    """Where a branch or tag goes.

    Attributes:
        tip: Where to.
        head: Where a branch is in the target.
        due: Whether there is anything to move.
    """

    tip: SnapshotId
    head: Head | None = None
    due: bool = True


class _Names(NamedTuple):
    """The names that the target has, listed once for all that come."""

    branches: Once[RefNames]
    tags: Once[RefNames]


def _find_move(
    source: Database,
    target: Database,
    name: str,
    tip: SnapshotId,
    there: _Names,
    *,
    force: bool,
) -> _Move:
    """What becomes of a branch or tag in the target.

    Raises:
        ConflictError: It may not be moved.
    """
    if name.startswith(_TAGS):
        tag = name.removeprefix(_TAGS)
        if target.refs.tag(tag) is None:
            there.tags().add(tag)
            return _Move(tip)
        target.refs.create_tag(tag, tip)  # which refuses if it points elsewhere
        return _Move(tip, due=False)
    branch = name.removeprefix(_HEADS)
    head = target.refs.head(branch, for_update=True, list_names=there.branches)
    if head is None or head.snapshot == tip:
        return _Move(tip, head, due=head is None)
    if force or head.snapshot in _ancestry(source, tip):
        return _Move(tip, head)
    if target.store.exists(names.snapshot_name(tip)) and tip in _ancestry(target, head.snapshot):
        return _Move(tip, head, due=False)
    raise ConflictError(
        ErrorCode.REF_MOVED,
        f"branch {branch!r} of {target.store.url} is at {head.snapshot}, which does not come "
        f"before {tip} in {source.store.url}: pull first, or force",
    )


def _ancestry(db: Database, start: SnapshotId) -> Iterator[SnapshotId]:
    """A version and all before it, the nearest first, as far as the store has them."""
    seen, pending = {start}, deque([start])
    while pending:
        version = pending.popleft()
        yield version
        with suppress(NotFoundError):
            parents = [p for p in db.snapshots.load(version).parents if p not in seen]
            seen.update(parents)
            pending += parents


def _make_move(target: Database, name: str, move: _Move, there: _Names) -> bool:
    """Move a branch or tag, if that is due; returns whether it was."""
    if move.due and name.startswith(_TAGS):
        target.refs.create_tag(name.removeprefix(_TAGS), move.tip, list_names=there.tags)
    elif move.due:
        target.refs.advance(name.removeprefix(_HEADS), move.head, move.tip)
    return move.due
