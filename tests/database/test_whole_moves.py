"""Moves of branches that are versions: their logs, and what users of a repository see."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.database.moves import Head, Version, parse_move, version_in
from casweights.database.reflog import RefLog
from casweights.database.refs import Refs
from casweights.database.version_names import VersionNames
from casweights.errors import ConflictError, StoreError
from casweights.format import names
from casweights.format.signatures import signature_name
from casweights.ids import SnapshotId
from casweights.stores.base import Capabilities, ObjectInfo
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.faults import Fault, FaultyStore, flip_bit, run_out_of_space
from casweights.testing.states import assert_same_state
from casweights.testing.versatile import VersatileStore
from tests.copying_bucket import Bucket
from tests.histories import CHUNK, check_versions, history, pack_names
from tests.racing import seen_now
from tests.waiting import stop_waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from casweights.stores.base import ObjectStore
    from casweights.system.buffers import Buffer

A, B, C, D = (SnapshotId(bytes([digit]) * 32) for digit in (0xAA, 0xBB, 0xCC, 0xDD))
CONFIG = StoreConfig(chunk_size=CHUNK)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def store(bucket: Bucket) -> VersionNames:
    return VersionNames(bucket)


class TestLogs:
    """Moves of branches that are versions."""

    @pytest.fixture(autouse=True)
    def no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stop_waiting(monkeypatch)

    def advance(self, refs: Refs, head: Head | None, snapshot: SnapshotId) -> Head:
        return refs.advance(
            "main", head, snapshot, Version([b"object of ", bytes(snapshot)]), ready=seen_now
        )

    def check_kept(self, bucket: Bucket, *snapshots: SnapshotId) -> None:
        for snapshot in snapshots:
            stored = VersionNames(bucket).get(names.snapshot_name(snapshot))
            assert stored == b"object of " + bytes(snapshot)

    def test_only_stores_that_copy_and_have_no_exclusive_create_take_versions(self) -> None:
        plain = MemoryStore()
        plain.capabilities = Capabilities(exclusive_create=False)
        for store, takes in ((Bucket(), True), (VersatileStore(), False), (plain, False)):
            assert Refs(VersionNames(store)).takes_versions is takes

    def test_one_put_adds_the_version_and_moves_the_branch(
        self, bucket: Bucket, store: VersionNames
    ) -> None:
        refs = Refs(store)
        self.advance(refs, None, A)
        puts = [call.split()[1] for call in bucket.calls if call.startswith("put")]
        [info] = bucket.list()
        assert puts == [info.name]
        move = parse_move(info, names.HEADS)
        assert (move.is_whole, move.snapshot, move.position) == (True, A, 1)
        assert Refs(VersionNames(bucket)).head("main") == Head("main", 1, A)
        assert Refs(VersionNames(bucket)).target(info) == A
        self.check_kept(bucket, A)

    def test_a_version_that_lost_the_race_stays(self, bucket: Bucket, store: VersionNames) -> None:
        first = self.advance(Refs(store), None, A)
        rival = Refs(VersionNames(bucket))
        self.advance(Refs(store), first, B)
        with pytest.raises(ConflictError) as caught:
            self.advance(rival, first, C)
        assert caught.value.snapshot == C
        assert Refs(store).displaced() == {}
        assert bucket.get(names.snapshot_name(C))
        self.check_kept(bucket, A, B, C)

    def test_versions_of_removed_moves_stay(self, bucket: Bucket, store: VersionNames) -> None:
        refs, head = Refs(store), None
        versions = [SnapshotId(b"%032d" % number) for number in range(250)]
        for snapshot in versions:
            head = self.advance(refs, head, snapshot)
        assert len(RefLog(store, names.HEADS).moves("main")) == 150
        assert len(list(bucket.list(names.SNAPSHOTS))) == 100
        self.check_kept(bucket, *versions)
        assert len(list(store.list(names.SNAPSHOTS))) == 250

    def test_versions_of_a_deleted_branch_stay(self, bucket: Bucket, store: VersionNames) -> None:
        refs, head = Refs(store), None
        for snapshot in (A, B, C):
            head = self.advance(refs, head, snapshot)
        refs.branch_deletions.delete("main")
        assert refs.branches() == {}
        self.check_kept(bucket, A, B, C)
        assert all(refs.trim())
        [mark] = bucket.list_names(names.HEADS)
        assert mark.endswith(names.OFF_SUFFIX)
        self.check_kept(bucket, A, B, C)

    def test_a_dropped_version_stays(self, bucket: Bucket, store: VersionNames) -> None:
        refs = Refs(store)
        first = self.advance(refs, None, A)
        off = names.move_name(names.HEADS, "main", 2, C, A, "f" * 16, names.STEP_SUFFIX)
        self.advance(refs, first, B)
        bucket.put(off, [b"object of ", bytes(C)])
        assert [each.snapshot for each in refs.displaced()["main"]] == [C]
        assert refs.drop_displaced(C)
        assert refs.displaced() == {}
        self.check_kept(bucket, A, B, C)

    @pytest.mark.parametrize("after", [False, True], ids=["lost", "unanswered"])
    def test_the_outcome_of_a_failed_put_is_found_out(self, bucket: Bucket, after: bool) -> None:
        faulty = FaultyStore(bucket)
        refs = Refs(VersionNames(faulty))
        head = self.advance(refs, None, A)
        faulty.unused.append(Fault(call=len(faulty.calls) + 1, after=after))
        if after:
            head = self.advance(refs, head, B)
        else:
            with pytest.raises(StoreError):
                self.advance(refs, head, B)
            head = self.advance(refs, refs.head("main", for_update=True), B)
        assert head == Refs(VersionNames(bucket)).head("main") == Head("main", 2, B)
        self.check_kept(bucket, A, B)


class Racing(WrapperStore):
    """A store in which another writer is first.

    Attributes:
        rival: Called once, just before the next whole move is put.
    """

    rival: Callable[[], object] | None = None

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.endswith(names.STEP_SUFFIX) and (rival := self.rival) is not None:
            self.rival = None
            rival()
        return self.inner.put(name, parts)


class FailingSignatures(WrapperStore):
    """A store in which the first put of a signature fails, before or after it is written.

    Attributes:
        failed: The name of that signature, once it has failed.
    """

    def __init__(self, inner: ObjectStore, *, after: bool) -> None:
        super().__init__(inner)
        self.failed: list[str] = []
        self._after = after

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        fails = name.startswith(names.SIGNATURES) and not self.failed
        created = False if fails and not self._after else self.inner.put(name, parts)
        if fails:
            self.failed.append(name)
            run_out_of_space()
        return created


class TestRepositories:
    """Whole moves as users of a repository see them."""

    def steps(self, bucket: Bucket) -> list[ObjectInfo]:
        return [info for info in bucket.list(names.HEADS) if info.name.endswith(".step")]

    def test_a_small_version_is_one_object(self, bucket: Bucket) -> None:
        with casweights.open(bucket, create=True, config=CONFIG) as repo:
            versions = [repo.commit(state).id for state in history(3, 0.1)]
        assert [version_in(info.name) for info in self.steps(bucket)] == versions
        assert [info.name for info in bucket.list()] == [
            names.CONFIG,
            *(info.name for info in self.steps(bucket)),
            signature_name(versions[0]),
        ]
        check_versions(bucket, dict(zip(versions, history(3, 0.1), strict=True)))

    def test_a_large_version_is_packs_and_a_bare_move(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("casweights.database.writer.PACK_TARGET", CHUNK)
        with casweights.open(bucket, create=True, config=CONFIG) as repo:
            [state] = history(1, 0.1, chunks=8)
            version = repo.commit(state).id
        [step] = self.steps(bucket)
        assert version_in(step.name) == version
        assert step.size < 5_000
        assert len(pack_names(bucket)) > 4
        puts = [call.split()[1] for call in bucket.calls if call.startswith("put")]
        assert puts[-1] == signature_name(version)
        assert puts[-2] == step.name, "what it needs is durable before the version is visible"
        check_versions(bucket, {version: state})

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_a_commit_succeeds_where_only_its_signature_fails(
        self, bucket: Bucket, after: bool
    ) -> None:
        """The branch has moved by then, so an error would make the caller commit once more."""
        with casweights.open(bucket, create=True, config=CONFIG):
            pass
        failing = FailingSignatures(bucket, after=after)
        [state] = history(1, 0.1)
        with casweights.open(failing) as repo:
            version = repo.commit(state)
            assert failing.failed == [signature_name(version.id)]
            assert [found.id for found in repo.log()] == [version.id]
            repo.maintain()
            assert repo.database.signatures.versions() == {version.id}
            assert repo.verify().problems == ()
        check_versions(bucket, {version.id: state})

    @pytest.mark.parametrize("fresh", [False, True], ids=["same handle", "another process"])
    def test_what_a_version_that_lost_the_race_brought_is_not_sent_again(
        self, bucket: Bucket, fresh: bool
    ) -> None:
        racing = Racing(bucket)
        first, ours = history(2, 0.1)
        with casweights.open(bucket, create=True, config=CONFIG) as rival:
            rival.commit(first)
            with casweights.open(racing) as repo:
                racing.rival = lambda: rival.commit({"n": 1})
                with pytest.raises(ConflictError) as caught:
                    repo.commit(ours)
                lost = caught.value.snapshot
                assert lost is not None
                assert bucket.size(names.snapshot_name(lost)) > 5_000
                with casweights.open(bucket) if fresh else nullcontext(repo) as again:
                    version = again.commit(ours).id
        assert self.steps(bucket)[-1].size < 5_000
        check_versions(bucket, {lost: ours, version: ours})

    def test_versions_of_a_deleted_branch_are_read_and_pushed(self, bucket: Bucket) -> None:
        target = Bucket()
        with casweights.open(bucket, create=True, config=CONFIG) as repo:
            versions = {repo.commit(state).id: state for state in history(3, 0.1)}
            repo.tag("last", "main")
            repo.delete_branch("main")
            with casweights.open(target, create=True, config=CONFIG) as other:
                repo.push(other)
                assert other.branches() == {}
            repo.maintain()
        for store in (bucket, target):
            assert self.steps(store) == []
            check_versions(store, versions)

    def test_a_copy_in_a_directory_is_read_and_written(
        self, bucket: Bucket, tmp_path: Path
    ) -> None:
        """Any tool may copy a bucket, and a directory has exclusive create."""
        states = list(history(4, 0.1))
        with casweights.open(bucket, create=True, config=CONFIG) as repo:
            versions = {repo.commit(state).id: state for state in states[:3]}
        copy = LocalStore(tmp_path / "copy")
        copy.create()
        copy.copy_from(bucket, [info.name for info in bucket.list()])
        with casweights.open(copy) as repo:
            versions[repo.commit(states[3]).id] = states[3]
            assert [version.id for version in repo.log()] == list(versions)[::-1]
        check_versions(copy, versions)
        with casweights.open(copy) as repo:
            repo.delete_branch("main")
            repo.maintain()
        [mark] = copy.list_names(names.HEADS)
        assert mark.endswith(names.OFF_SUFFIX)
        check_versions(copy, versions)

    @pytest.mark.parametrize("again", [False, True], ids=["same handle", "new handle"])
    def test_the_same_version_on_two_branches_is_one_object(
        self, bucket: Bucket, again: bool
    ) -> None:
        """An object of the same ID without frames would hide those of the first one."""
        [state], time = history(1, 0.1), datetime(2026, 1, 1, tzinfo=UTC)
        repo = casweights.open(bucket, create=True, config=CONFIG)
        first = repo.commit(state, time=time)
        if again:
            repo.close()
            repo = casweights.open(bucket)
        with repo:
            assert repo.commit(state, branch="other", time=time).id == first.id
        assert len(self.steps(bucket)) == 1
        for branch in ("main", "other"):
            with casweights.open(bucket) as repo:
                assert_same_state(repo.load(branch), state)
        with casweights.open(bucket) as repo:
            repo.delete_branch("main")
            repo.maintain()
        check_versions(bucket, {first.id: state})

    def test_damage_in_a_move_is_reported_once(self, bucket: Bucket) -> None:
        with casweights.open(bucket, create=True, config=CONFIG) as repo:
            repo.commit(next(history(1, 0.1)))
        [step] = self.steps(bucket)
        flip_bit(bucket, step.name, step.size - 100)
        with casweights.open(bucket) as repo:
            problems = repo.verify().problems
        assert problems
        assert all(str(version_in(step.name)) in str(problem) for problem in problems)
