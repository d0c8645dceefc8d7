"""Expire: decide by a policy which versions stay, and record the others.

Nothing is deleted. A recorded version is left out of histories, and can still be read by its ID
until a collection removes it. docs/design/032 has the reasoning.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.history import check_follows
from casweights.errors import ConflictError, ErrorCode, InvalidInputError
from casweights.format.expired import MAX_POLICY_TEXT
from casweights.operations.conditions import parse_condition
from casweights.operations.retention import Row, describe, reasons
from casweights.results import ExpiredVersion, Expiry, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from casweights.config import Keep
    from casweights.database import Database
    from casweights.database.history import Expired
    from casweights.ids import SnapshotId
    from casweights.operations.conditions import Condition

_ATTEMPTS = 64  # plans, while other clients make branches; each reads only what is new


def expire(
    db: Database,
    policy: Sequence[Keep] | None,
    *,
    apply: bool,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Expiry:
    """Decide which versions stay, and with `apply` record those that go.

    Args:
        db: The store.
        policy: The policy; None for that of the store.
        apply: Whether to record them.
        clock: Returns the present time.

    Raises:
        InvalidInputError: The policy is empty or a condition is not valid, or the store has none.
        NotFoundError: A version of a history is missing and has not expired.
        IntegrityError: The store is damaged. Nothing was recorded.
        ConflictError: Other clients made branches all the time. Nothing was recorded.
        StoreError: The store could not be written. Repeat the call.
    """
    chosen = _checked(db, policy)
    conditions = {
        keep.where: parse_condition(keep.where) for keep in chosen if keep.where is not None
    }
    now = clock()
    histories = _Histories(db, conditions)
    names = _Names.of(db)
    for _ in range(_ATTEMPTS):
        verdicts = _Plan(names, histories, chosen, now).verdicts()
        if not apply:
            return Expiry(verdicts=verdicts, policy=chosen, applied=False)
        # What was named since then stays, and so does the history of a branch that was made.
        later = _Names.of(db)
        if _continues(names, later, histories):
            gone = [v for v in verdicts if not v.stays and v.id not in later.reasons]
            db.expired.add(_row(verdict, now) for verdict in gone)
            db.expired.merge()
            return Expiry(
                verdicts=tuple(_kept_since(v, later) for v in verdicts), policy=chosen, applied=True
            )
        names = later
    raise ConflictError(
        ErrorCode.REF_MOVED,
        f"branches of {db.store.url} are made or moved by other clients all the time: repeat the "
        "command",
    )


def expire_by_policy(db: Database) -> int:
    """Apply the policy of a store, if it has one; return how many versions went."""
    return expire(db, policy, apply=True).go if (policy := db.policies.load()) else 0


def set_policy(db: Database, policy: Sequence[Keep]) -> None:
    """Keep a policy in a store; an empty one removes it.

    Raises:
        InvalidInputError: A condition is not valid, or the policy is too large.
        StoreError: The store could not be written.
    """
    for keep in policy:
        if keep.where is not None:
            parse_condition(keep.where)
    db.policies.save(policy)


def _checked(db: Database, policy: Sequence[Keep] | None) -> tuple[Keep, ...]:
    """Return the policy to use."""
    if policy is not None and not policy:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, "the policy is empty: give at least one `Keep`"
        )
    chosen = tuple(db.policies.load() if policy is None else policy)
    if not chosen:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"{db.store.url} has no policy: say which versions to keep, as with --keep-last 100 or "
            "Keep(last=100), or keep a policy in the store with --set-policy or `set_policy`",
        )
    return chosen


class _Names(NamedTuple):
    """The branches and tags at one moment.

    Attributes:
        heads: The heads of branches, by name.
        reasons: The names of each version that has one, as reasons why it stays.
    """

    heads: Mapping[str, SnapshotId]
    reasons: Mapping[SnapshotId, tuple[str, ...]]

    @classmethod
    def of(cls, db: Database) -> _Names:
        heads, tags = db.refs.branches(), db.refs.tags()
        found: dict[SnapshotId, tuple[str, ...]] = {}
        for what, names in (("head of", heads), ("tag", tags)):
            for name, snapshot in sorted(names.items()):
                found[snapshot] = (*found.get(snapshot, ()), f"{what} {name}")
        return cls(heads, found)


class _Version(NamedTuple):
    """What is remembered of a version.

    Attributes:
        number: Its number.
        parents: Its parents, those that the store has or has recorded.
        time: Its time.
        meets: The conditions that its metadata meet.
    """

    number: int
    parents: tuple[SnapshotId, ...]
    time: datetime
    meets: frozenset[str]


class _Histories:
    """The histories of a store. Each version is read once, however many branches have it."""

    def __init__(self, db: Database, conditions: Mapping[str, Condition]) -> None:
        self._snapshots = db.snapshots
        self._history = db.history
        self._conditions = conditions
        self._known: dict[SnapshotId, _Version] = {}
        self._expired: Expired = db.history.expired()

    def of(self, head: SnapshotId, named: Mapping[SnapshotId, object]) -> Iterator[SnapshotId]:
        """Yield a version and all before it that have not expired, newest first.

        Args:
            head: The version to begin with.
            named: Versions that branches and tags name, which have not expired.
        """
        current: SnapshotId | None = head
        gone: ExpiredVersion | None = None
        seen: set[SnapshotId] = set()  # only a forged store could contain a circle of parents
        number = 0
        while current is not None and (gone or current not in seen):
            row = None if current in named else self._expired.rows.find(current)
            if row is None or row.number != number - 1:
                version = self[current]
                if gone is not None:
                    check_follows(gone, current, version.number, seen)
                yield current
                gone, number, parents = None, version.number, version.parents
            else:
                gone, number, parents = row, row.number, row.parents
            seen.add(current)
            current = next(iter(parents), None)

    def __getitem__(self, snapshot: SnapshotId) -> _Version:
        known = self._known.get(snapshot)
        if known is None:
            known = self._known[snapshot] = self._read(snapshot)
        return known

    def _read(self, snapshot: SnapshotId) -> _Version:
        found = self._snapshots.load(snapshot)
        parents = tuple(self._history.known_parents(found, self._expired))
        meets = frozenset(
            where for where, is_met in self._conditions.items() if is_met(found.metadata)
        )
        return _Version(found.number, parents, found.time, meets)


class _Plan:
    """Decides about all versions of all branches."""

    def __init__(
        self, names: _Names, histories: _Histories, policy: Sequence[Keep], now: datetime
    ) -> None:
        self._names = names
        self._histories = histories
        self._policy = policy
        self._now = now
        self._reasons: dict[SnapshotId, tuple[str, ...]] = {}
        self._branches: dict[SnapshotId, tuple[str, ...]] = {}
        self._policies: dict[SnapshotId, tuple[str, ...]] = {}

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return what happens to each version of the branches that the policy is for."""
        for branch in sorted(self._names.heads):
            keep = next((k for k in self._policy if fnmatchcase(branch, k.branches)), None)
            if keep is not None:
                self._decide(branch, keep)
        for branch, head in sorted(self._names.heads.items()):
            if not any(fnmatchcase(branch, keep.branches) for keep in self._policy):
                self._protect(branch, head)
        return tuple(map(self._verdict, self._branches))

    def _decide(self, branch: str, keep: Keep) -> None:
        versions = list(self._histories.of(self._names.heads[branch], self._names.reasons))
        rows = []
        for snapshot in versions:
            version = self._histories[snapshot]
            rows.append(Row(version.number, version.time, keep.where in version.meets))
        for snapshot, why in zip(versions, reasons(rows, keep, self._now), strict=True):
            named = self._names.reasons.get(snapshot, ())
            _extend(self._branches, snapshot, (branch,))
            _extend(self._reasons, snapshot, (*named, *why))
            _extend(self._policies, snapshot, (describe(keep),))

    def _protect(self, branch: str, head: SnapshotId) -> None:
        """Keep the versions of a branch that has no policy."""
        if self._branches:
            for snapshot in self._histories.of(head, self._names.reasons):
                if snapshot in self._branches:
                    _extend(self._reasons, snapshot, (f"{branch} has no policy",))

    def _verdict(self, snapshot: SnapshotId) -> Verdict:
        version, why = self._histories[snapshot], self._reasons[snapshot]
        return Verdict(
            id=snapshot,
            number=version.number,
            parents=version.parents,
            time=version.time,
            branches=self._branches[snapshot],
            reasons=why,
            policy="" if why else "; ".join(self._policies[snapshot]),
        )


def _extend(
    found: dict[SnapshotId, tuple[str, ...]], snapshot: SnapshotId, more: tuple[str, ...]
) -> None:
    """Append texts to those of a version, each once."""
    found[snapshot] = tuple(dict.fromkeys((*found.get(snapshot, ()), *more)))


def _continues(before: _Names, later: _Names, histories: _Histories) -> bool:
    """Whether branches only grew since a plan was made: then it is right for what they were.

    A branch that was made since, or moved elsewhere, may keep what the plan lets go.
    """
    for branch, head in later.heads.items():
        old = before.heads.get(branch)
        if old is None or (head != old and old not in histories.of(head, later.reasons)):
            return False
    return True


def _kept_since(verdict: Verdict, names: _Names) -> Verdict:
    """Return a verdict, which is another one if the version was named since."""
    named = names.reasons.get(verdict.id)
    if verdict.stays or named is None:
        return verdict
    return replace(verdict, reasons=named, policy="")


def _row(verdict: Verdict, now: datetime) -> ExpiredVersion:
    return ExpiredVersion(
        id=verdict.id,
        number=verdict.number,
        parents=verdict.parents,
        time=now,
        policy=verdict.policy[:MAX_POLICY_TEXT],
    )
