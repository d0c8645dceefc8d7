"""Push: copy branches and tags to another store, together with their versions."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.refs import tag_taken
from casweights.database.resolve import is_full_id, resolve
from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
)
from casweights.operations.reliance import Looked, Sighting
from casweights.operations.transfer import Transfer, check_configs
from casweights.system.threads import Once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.database import Database
    from casweights.database.moves import Head
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
    with_expired: bool = False,
    force: bool = False,
) -> TransferStats:
    """Copy versions to another store, and the branches and tags that name them.

    A branch of the target only moves forward, to a version whose history contains its head. If the
    target's branch is already ahead of the source's, it stays.

    Args:
        source: The store to copy from.
        target: The store to copy to.
        refs: Names of branches and tags; ``heads/x`` or ``tags/x`` if ``x`` is both. IDs and
            ``main~2`` copy a version without a name. None for all branches and tags.
        history: Copy the ancestors of these versions, too.
        unnamed: Copy all other versions, too.
        with_expired: Copy also versions that have expired in either store.
        force: Move branches of the target even if their versions are then in no branch's history.

    Raises:
        ConflictError: A branch has diverged in the target, or a tag points elsewhere there.
            Everything else was copied and moved.
        NotFoundError: The source has no such branch, tag or version.
        InvalidInputError: The stores have different digests or chunk sizes, or `unnamed` is
            combined with `refs` or with ``history=False``.
        IntegrityError: The source is damaged.
        StoreError: The target could not be written.
    """
    if unnamed and (refs is not None or not history):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            "unnamed=True copies every version: leave out refs and history=False",
        )
    # Each ref is read only once, since it may move in between, and before versions are listed, so
    # that the listing contains the version that it points to.
    named = _all_refs(source) if refs is None else {}
    requested = dict(named)
    for ref in refs or ():
        found = {} if "~" in ref or is_full_id(ref) else _called(source, ref)
        named |= found
        requested |= found or {ref: resolve(source, ref)}
    others = source.snapshots.ids() if unnamed else ()
    past = _Past(history, with_expired)
    return _send(source, target, named, requested, others, past, force=force)


class _Past(NamedTuple):
    """What to copy of the history of versions, see `push`."""

    history: bool
    with_expired: bool


def _all_refs(db: Database) -> Tips:
    branches = {_HEADS + name: tip for name, tip in db.refs.branches().items()}
    return branches | {_TAGS + name: tip for name, tip in db.refs.tags().items()}


def _called(db: Database, ref: str) -> Tips:
    """Return the branch and the tag of this name, if they exist.

    Raises:
        NotFoundError: Both exist and point to different versions.
    """
    found: Tips = {}
    branch, tag = ref.removeprefix(_HEADS), ref.removeprefix(_TAGS)
    if not ref.startswith(_TAGS) and (head := db.refs.head(branch)) is not None:
        found[_HEADS + branch] = head.snapshot
    if not ref.startswith(_HEADS) and (tip := db.refs.tag(tag)) is not None:
        found[_TAGS + tag] = tip
    if len(set(found.values())) > 1:
        raise NotFoundError(
            ErrorCode.AMBIGUOUS, f"{ref!r} is a branch and a tag: use heads/{ref} or tags/{ref}"
        )
    return found


def _send(
    source: Database,
    target: Database,
    refs: Tips,
    requested: Tips,
    others: Iterable[SnapshotId],
    past: _Past,
    *,
    force: bool,
) -> TransferStats:
    """Copy versions, then move refs to them; `others` are further versions to copy.

    Refs that conflict with the target's, and names that the target cannot hold together with its
    own, are detected before anything is copied if the target's refs already show them; the move
    itself checks again. The other refs are moved in any case.
    """
    check_configs(source, target)
    refused: list[ConflictError | InvalidInputError] = []
    moves: dict[str, _Move] = {}
    target_names = _Names(Once(target.refs.branch_names), Once(target.refs.tag_names))
    for name, tip in refs.items():
        try:
            moves[name] = _find_move(source, target, name, tip, target_names, force=force)
        except (ConflictError, InvalidInputError) as error:
            refused.append(error)
    refused_refs = refs.keys() - moves.keys()
    tips = (tip for ref, tip in requested.items() if ref not in refused_refs)
    copying = Transfer(
        source,
        target,
        list(dict.fromkeys(tips)),
        others=others,
        history=past.history,
        with_expired=past.with_expired,
    )
    ready = Looked(copying)
    ready()  # for the versions that get no name
    moved: Tips = {}
    for name, move in moves.items():
        try:
            if _make_move(target, name, move, target_names, ready):
                moved[name] = move.tip
        except (ConflictError, InvalidInputError) as error:
            refused.append(error)
    stats = copying.result(moved, requested)
    target.reporter.transferred(stats)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise ConflictError(refused[0].code, "; ".join(map(str, refused)))
    return stats


class _Move(NamedTuple):
    """The planned move of a branch or tag of the target.

    Attributes:
        tip: The version to point to.
        head: Where the branch points now; None for tags and new branches.
        due: False if it points there already, or the branch is ahead.
    """

    tip: SnapshotId
    head: Head | None = None
    due: bool = True


class _Names(NamedTuple):
    """The names of the target's branches and tags, listed once for all refs of a push."""

    branches: Once[RefNames]
    tags: Once[RefNames]


def _find_move(
    source: Database,
    target: Database,
    name: str,
    tip: SnapshotId,
    target_names: _Names,
    *,
    force: bool,
) -> _Move:
    """Plan the move of a branch or tag of the target.

    Raises:
        ConflictError: The branch has diverged, or the tag points to another version.
        InvalidInputError: The target cannot hold the name together with its own.
    """
    if name.startswith(_TAGS):
        tag = name.removeprefix(_TAGS)
        existing = target.refs.tag(tag)
        if existing is None:
            target_names.tags().add(tag)
        elif existing != tip:
            raise tag_taken(tag, existing)
        return _Move(tip, due=existing is None)
    branch = name.removeprefix(_HEADS)
    head = target.refs.head(branch, for_update=True, list_names=target_names.branches)
    if head is None or head.snapshot == tip:
        return _Move(tip, head, due=head is None)
    if force or head.snapshot in _ancestry(source, tip):
        return _Move(tip, head)
    if target.snapshots.exists(tip) and tip in _ancestry(target, head.snapshot):
        return _Move(tip, head, due=False)
    raise ConflictError(
        ErrorCode.REF_MOVED,
        f"branch {branch!r} of {target.store.url} is at {head.snapshot}, which does not come "
        f"before {tip} in {source.store.url}: pull first, or force",
    )


def _ancestry(db: Database, start: SnapshotId) -> Iterator[SnapshotId]:
    """Yield a version and its ancestors, breadth first, skipping those that the store lacks."""
    seen, pending = {start}, deque([start])
    expired = db.history.expired()
    while pending:
        version = pending.popleft()
        yield version
        with suppress(NotFoundError):
            parents = [p for p in db.history.parents(version, expired) if p not in seen]
            seen.update(parents)
            pending += parents


def _make_move(
    target: Database, name: str, move: _Move, target_names: _Names, ready: Sighting
) -> bool:
    """Move a branch or tag if the move is due; return whether it was."""
    if move.due and name.startswith(_TAGS):
        tag, names = name.removeprefix(_TAGS), target_names.tags
        target.refs.create_tag(tag, move.tip, list_names=names, ready=ready)
    elif move.due:
        target.refs.advance(name.removeprefix(_HEADS), move.head, move.tip, ready=ready)
    return move.due
