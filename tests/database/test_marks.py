"""Marks: what takes the place of the moves of a branch or tag that was deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights.database.moves import GONE, encode_move
from casweights.database.reflog import RefLog
from casweights.database.refs import Refs
from casweights.errors import ConflictError, StoreError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.stores.base import Capabilities
from casweights.stores.wrapper import WrapperStore
from casweights.testing.faults import Fault, FaultyStore
from tests.database.test_reflog import EXCLUSIVE, A, B, Bucket
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database.moves import Move
    from casweights.system.buffers import Buffer


def test_a_deletion_that_its_writer_may_withdraw_gets_no_mark() -> None:
    store = Bucket()
    store.capabilities = Capabilities(clock_skew=30.0)
    refs = Refs(store)
    refs.advance("main", None, A, ready=seen_now)
    rivals = [
        names.move_name(names.HEADS, "main", 2, snapshot, A, digit * names.WRITER_DIGITS)
        for digit, snapshot in (("0", GONE), ("1", B))
    ]
    store.put(rivals[0], [encode_move(GONE, A)])
    store.put(rivals[1], [encode_move(B)])
    before = list(store.list_names())
    assert all(refs.trim())
    assert list(store.list_names()) == before
    store.delete(rivals[1])
    assert all(refs.trim())
    assert [name.endswith(names.OFF_SUFFIX) for name in store.list_names()] == [True]


class Maintained(WrapperStore):
    """A store in which maintenance runs right after each deletion of a branch or tag."""

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        made = super().put(name, parts)
        if bytes(GONE) in b"".join(parts) and not name.endswith(names.OFF_SUFFIX):
            assert all(Refs(self.inner).trim())
        return made


@EXCLUSIVE
@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_deletion_counts_if_maintenance_marks_it_before_its_writer_looks(
    kind: str, exclusive: bool
) -> None:
    store = Bucket(exclusive=exclusive)
    refs = Refs(Maintained(store))
    deletions = refs.branch_deletions if kind == "branch" else refs.tag_deletions
    for snapshot in (A, B):
        if kind == "branch":
            refs.set_branch("x", snapshot, force=True, ready=seen_now)
        else:
            refs.create_tag("x", snapshot, ready=seen_now)
        deletions.delete("x")
        assert deletions.all() == {"x": snapshot}
    assert not set(refs.tips())


class MaintainedInBetween(Bucket):
    """Maintenance lists a branch before the third move, and marks a deletion after that.

    Attributes:
        seen: What it has listed, until it marks.
    """

    seen: Sequence[Move] = ()

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if "/000000000003" in name:
            self.seen = RefLog(self, names.HEADS).moves("main")
        return super().put(name, parts)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        if self.seen and "/000000000002" in name:
            seen, self.seen = self.seen, ()
            assert Refs(self).branch_deletions.mark(seen)
        return super().get(name, start, size)


@EXCLUSIVE
def test_a_move_counts_if_the_deletion_before_it_is_marked_while_its_writer_looks(
    exclusive: bool,
) -> None:
    store = MaintainedInBetween(exclusive=exclusive)
    refs = Refs(store)
    refs.advance("main", None, A, ready=seen_now)
    refs.branch_deletions.delete("main")
    assert refs.head("main", for_update=True) is None
    head = refs.advance("main", None, B, ready=seen_now)
    assert Refs(store).head("main") == head
    assert bool(store.seen) != exclusive  # elsewhere, names say all, and nothing is read


@EXCLUSIVE
def test_a_move_does_not_count_for_a_deletion_that_is_marked(exclusive: bool) -> None:
    """The mark of another writer's deletion is in the place of the move."""
    store = Bucket(exclusive=exclusive)
    head = Refs(store).advance("main", None, A, ready=seen_now)
    refs = Refs(store)
    Refs(Maintained(store)).branch_deletions.delete("main")
    with pytest.raises(ConflictError):
        refs.advance("main", head, B, ready=seen_now)
    assert Refs(store).head("main") is None


@EXCLUSIVE
def test_trimming_a_deleted_branch_that_fails_leaves_it_deleted(exclusive: bool) -> None:
    """The mark comes first, and the move that deleted the branch is removed last."""
    store = Bucket(exclusive=exclusive)
    refs, head = Refs(store), None
    for number in range(5):
        head = refs.advance("main", head, SnapshotId(bytes([9 - number]) * 32), ready=seen_now)
    refs.branch_deletions.delete("main")
    for call in range(1, 7):
        faulty = FaultyStore(store, [Fault(method="delete", call=2 if call < 6 else 1)])
        with pytest.raises(StoreError):
            list(Refs(faulty).trim())
        assert faulty.unused == []
        positions = [move.position for move in RefLog(store, names.HEADS).moves("main")]
        assert positions == [*range(min(call + 1, 6), 6), 6, 6]
        assert refs.head("main") is None
        assert refs.displaced() == {}
    assert all(refs.trim())
    [mark] = store.list_names(names.HEADS)
    assert mark.endswith(names.OFF_SUFFIX)
    assert refs.branch_deletions.all() == {"main": head.snapshot if head else None}
