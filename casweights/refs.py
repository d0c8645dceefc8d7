"""Branches and tags.

A branch is a log: one small object for each move, named by its position; the highest position is
the head. A store whose `put` is exclusive gives each position to exactly one writer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgpack

from casweights.errors import ConflictError, ErrorCode, NotFoundError
from casweights.format import names
from casweights.format.envelope import Kind, corrupt, seal, unseal
from casweights.format.fields import expect
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore

_MAX_REF = 4096
_ENTRY = re.compile(
    rf"{names.HEADS}(?P<branch>.+)/(?P<position>[0-9]{{{names.POSITION_DIGITS}}}){names.REF_SUFFIX}"
)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest move of a branch.

    Attributes:
        branch: The branch's name.
        position: Number of the move, from 1.
        snapshot: Where it points.
    """

    branch: str
    position: int
    snapshot: SnapshotId


class Refs:
    """The branches and tags of a store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def head(self, branch: str) -> Head | None:
        """Where a branch is now; None if there is no such branch."""
        names.check_ref_name(branch)
        positions = self._positions(f"{names.HEADS}{branch}/").get(branch)
        if not positions:
            return None
        position = max(positions)
        return Head(branch, position, self._read(names.head_name(branch, position)))

    def advance(self, branch: str, expected: Head | None, snapshot: SnapshotId) -> Head:
        """Move a branch, if it still is where the caller saw it.

        Raises:
            ConflictError: It has moved since.
            IntegrityError: One of its moves is damaged.
        """
        names.check_ref_name(branch)
        position = expected.position + 1 if expected else 1
        if position >= 10**names.POSITION_DIGITS:  # nobody counts that far: a forgery
            raise corrupt(names.head_name(branch, position - 1), "no position can follow it")
        name = names.head_name(branch, position)
        if self.head(branch) != expected or not self._write(name, snapshot):
            error = ConflictError(
                ErrorCode.REF_MOVED,
                f"branch {branch!r} was moved by another writer meanwhile. Your version is safe "
                f"in the store as {snapshot}; repeat the command to put it on top of theirs "
                "(nothing is uploaded twice)",
            )
            error.snapshot = snapshot
            raise error
        return Head(branch, position, snapshot)

    def branches(self) -> dict[str, SnapshotId]:
        """All branches and where they are, by name."""
        return {
            branch: self._read(names.head_name(branch, max(positions)))
            for branch, positions in sorted(self._positions(names.HEADS).items())
        }

    def target(self, name: str) -> SnapshotId:
        """Where the tag, or the move of a branch, points whose object has this name.

        Raises:
            IntegrityError: It is damaged, or is called as no tag and no move of a branch is.
        """
        if not name.endswith(names.REF_SUFFIX):
            raise corrupt(name, "its name is not that of a ref")
        if name.startswith(names.HEADS):
            _parse_entry(name)
        return self._read(name)

    def delete_branch(self, branch: str) -> None:
        """Forget a branch; its snapshots stay.

        Raises:
            NotFoundError: There is no such branch.
        """
        names.check_ref_name(branch)
        positions = self._positions(f"{names.HEADS}{branch}/").get(branch)
        if not positions:
            raise no_ref("branch", branch)
        for position in sorted(positions):  # the head last: until then the branch is there
            self._store.delete(names.head_name(branch, position))

    def tags(self) -> dict[str, SnapshotId]:
        """All tags and where they point, by name."""
        found = {}
        for info in self._store.list(names.TAGS):
            tag = info.name.removeprefix(names.TAGS).removesuffix(names.REF_SUFFIX)
            found[tag] = self._read(info.name)
        return found

    def tag(self, tag: str) -> SnapshotId | None:
        """Where a tag points; None if there is no such tag."""
        try:
            return self._read(names.tag_name(names.check_ref_name(tag)))
        except NotFoundError:
            return None

    def create_tag(self, tag: str, snapshot: SnapshotId) -> None:
        """Make a tag.

        Raises:
            ConflictError: A tag of this name points elsewhere.
        """
        name = names.tag_name(names.check_ref_name(tag))
        if not self._write(name, snapshot) and (there := self._read(name)) != snapshot:
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"tag {tag!r} already points to {there}; tags do not move: delete it first or "
                "choose another name",
            )

    def delete_tag(self, tag: str) -> None:
        """Forget a tag; its snapshot stays.

        Raises:
            NotFoundError: There is no such tag.
        """
        if self.tag(tag) is None:
            raise no_ref("tag", tag)
        self._store.delete(names.tag_name(tag))

    def _positions(self, prefix: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for info in self._store.list(prefix):
            branch, position = _parse_entry(info.name)
            found.setdefault(branch, []).append(position)
        return found

    def _write(self, name: str, snapshot: SnapshotId) -> bool:
        microseconds = int(datetime.now(UTC).timestamp() * 1e6)
        payload: bytes = msgpack.packb({"snapshot": snapshot, "time": microseconds})
        return self._store.put(name, [seal(Kind.REF, payload)])

    def _read(self, name: str) -> SnapshotId:
        size = self._store.size(name)
        if size > _MAX_REF:
            raise corrupt(name, f"it has {size} bytes, too many for a ref")
        payload = unseal(Kind.REF, self._store.get(name, 0, size), name)
        try:
            table = expect(msgpack.unpackb(payload), dict)
            expect(table["time"], int)
            return SnapshotId(expect(table["snapshot"], bytes))
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise corrupt(name, str(error)) from error


def _parse_entry(name: str) -> tuple[str, int]:
    """Branch and position of the move whose object has this name."""
    match = _ENTRY.fullmatch(name)
    if match is None:
        raise corrupt(name, "its name is no entry of a branch")
    return match["branch"], int(match["position"])


def no_ref(kind: str, name: str) -> NotFoundError:
    """The error for a branch or tag that is not there."""
    return NotFoundError(ErrorCode.REF_NOT_FOUND, f"the store has no {kind} {name!r}")
