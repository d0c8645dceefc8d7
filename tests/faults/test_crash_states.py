"""After a crash of the machine, reported changes are there and reported deletions hold."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import ConflictError, Publisher, StoreError
from casweights.config import KiB, StoreConfig
from casweights.stores.local import LocalStore
from casweights.system.staging import PREFIX
from tests.faults.crash_states import Disk, write_tree
from tests.histories import step, weights
from tests.lengths import spread
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from tests.faults.crash_states import Tree

CONFIG = StoreConfig(chunk_size=64 * KiB)
SEED = 20261128
CRASHES = 80  # of each test, in the suite


@dataclass(frozen=True)
class Facts:
    """Refs and versions of a store."""

    refs: Mapping[str, SnapshotId]
    versions: frozenset[SnapshotId]

    @classmethod
    def of(cls, repo: Repository) -> Facts:
        branches = {f"branch {name}": at for name, at in repo.branches().items()}
        tags = {f"tag {name}": at for name, at in repo.tags().items()}
        return cls(branches | tags, frozenset(repo.database.snapshots.ids()))


@dataclass(frozen=True)
class Crash:
    """A folder after a crash.

    Attributes:
        during: The command that was running or had just completed.
        tree: Files and folders that survived.
        before: The facts before that command.
        after: The facts after it.
        done: Whether the command had completed.
    """

    during: str
    tree: Tree
    before: Facts
    after: Facts
    done: bool


class Recording:
    """Runs commands on a store, and collects the states that a crash at any moment may leave."""

    def __init__(self, folder: Path) -> None:
        self.crashes: list[Crash] = []
        self._folder = folder
        self._chance = random.Random(SEED)
        self._disk = Disk(folder, self._note)
        self._trees: dict[frozenset[tuple[str, bytes | None]], Tree] = {}
        self._facts = Facts({}, frozenset())
        self._patches = ExitStack()
        self._patches.enter_context(self._disk.recording())
        self.run("create", self._create)

    def stop(self) -> None:
        self._patches.close()

    @property
    def root(self) -> Path:
        return self._folder / "store"

    def _create(self) -> None:
        casweights.open(self.root, create=True, config=CONFIG).close()

    def _note(self) -> None:
        for tree in self._disk.states(self._chance):
            visible = frozenset(item for item in tree.items() if PREFIX not in item[0])
            self._trees.setdefault(visible, tree)

    def run(self, name: str, command: Callable[[], object]) -> None:
        """Run a command; record the crashes during it, and one after it."""
        self._trees = {}
        command()
        running, self._trees = self._trees, {}
        self._note()
        done, self._trees = self._trees, {}
        before = self._facts
        with casweights.open(self.root, workers=1) as repo:
            self._facts = Facts.of(repo)
        for trees, is_done in ((running, False), (done, True)):
            for tree in trees.values():
                self.crashes.append(Crash(name, tree, before, self._facts, is_done))

    def use(self, name: str, command: Callable[[Repository], object]) -> None:
        """Run a command on a store that is opened for it."""

        def work() -> None:
            with casweights.open(self.root, workers=1) as repo:
                command(repo)

        self.run(name, work)


def check(crash: Crash, place: Path) -> None:
    """Check that a store after a crash holds the facts before or after the command."""
    write_tree(crash.tree, place)
    if crash.during == "create" and not crash.done:
        with casweights.open(place / "store", create=True, config=CONFIG, workers=1) as repo:
            assert Facts.of(repo) == crash.before
        return
    with casweights.open(place / "store", workers=1) as repo:
        found = Facts.of(repo)
        assert repo.verify().problems == ()
    assert found.versions >= crash.before.versions
    allowed = [crash.after] if crash.done else [crash.before, crash.after]
    for ref in found.refs.keys() | crash.before.refs.keys() | crash.after.refs.keys():
        at = found.refs.get(ref)
        assert at in [facts.refs.get(ref) for facts in allowed], f"{ref} is at {at}"
    if crash.done:
        assert found.versions == crash.after.versions


def check_all(recording: Recording, folder: Path) -> None:
    """Check the store after every crash, or a sample; fail with a list of all broken ones."""
    recording.stop()
    broken = []
    for number, crash in enumerate(spread(recording.crashes, CRASHES)):
        place = folder / str(number)
        try:
            check(crash, place)
        except (AssertionError, casweights.CasweightsError) as error:
            when = "after" if crash.done else "during"
            broken.append(f"{when} {crash.during}: {error!s:.200}")
        shutil.rmtree(place)
    assert not broken, f"{len(broken)} of {len(recording.crashes)}: {sorted(set(broken))}"


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    monkeypatch.setattr("casweights.database.reflog._KEPT_MOVES", 2)
    monkeypatch.setattr("casweights.operations.maintain._RECENT_PACKS", 1)
    monkeypatch.setattr("casweights.operations.merging.FAN_IN", 2)
    monkeypatch.setattr("casweights.operations.merging.LEVELS", (1 << 30,))
    monkeypatch.setattr("casweights.database.reflog.RECENT_MOVES", 1)
    (tmp_path / "disk").mkdir()
    recording = Recording(tmp_path / "disk")
    yield recording
    recording.stop()


def test_commands_with_a_handle_each_survive_a_crash(recording: Recording, tmp_path: Path) -> None:
    state = weights(2)
    for n in range(4):  # the last commit shortens the log of the branch
        recording.use("commit", lambda repo, w=state: repo.commit({"w": w}))  # type: ignore[misc]
        state = step(state, 0.01, n)
    for name in ("a", "b/c"):
        recording.use("tag", lambda repo, name=name: repo.tag(name, "main~1"))  # type: ignore[misc]
    recording.use("branch", lambda repo: repo.branch("other", "main~2"))
    recording.use("move", lambda repo: repo.branch("other", "main~1", force=True))
    recording.use("move", lambda repo: repo.branch("other", "main", force=True))
    recording.use("delete branch", lambda repo: repo.delete_branch("other"))
    recording.use("branch again", lambda repo: repo.branch("other", "main~1"))
    recording.use("delete tag", lambda repo: repo.delete_tag("a"))
    recording.use("tag again", lambda repo: repo.tag("a", "main"))
    recording.use("delete branch", lambda repo: repo.delete_branch("other"))
    recording.use("delete tag", lambda repo: repo.delete_tag("b/c"))
    recording.use("maintain", lambda repo: repo.maintain())
    recording.use("undelete branch", lambda repo: repo.undelete("other"))
    recording.use("undelete tag", lambda repo: repo.undelete("b/c"))
    recording.use("repack", lambda repo: repo.repack(compression="small"))
    recording.use("repack", lambda repo: repo.repack(compression="fast"))
    check_all(recording, tmp_path)


def test_commands_with_one_handle_survive_a_crash(recording: Recording, tmp_path: Path) -> None:
    repo = casweights.open(recording.root, workers=1)
    state = weights(2)
    recording.run("commit", lambda: repo.commit({"w": state}, branch="x"))
    recording.run("tag", lambda: repo.tag("x", "heads/x"))
    recording.run("branch", lambda: repo.branch("y", "heads/x"))
    recording.run("commit", lambda: repo.commit({"w": step(state, 0.01, 1)}, branch="y"))
    recording.run("delete branch", lambda: repo.delete_branch("y"))
    recording.run("delete tag", lambda: repo.delete_tag("x"))
    recording.run("undelete branch", lambda: repo.undelete("y"))
    recording.run("undelete tag", lambda: repo.undelete("tags/x"))
    recording.run("repack", lambda: repo.repack(compression="small"))

    def publish() -> None:
        with Publisher(repo, "y") as publisher:
            publisher.publish({"w": step(state, 0.01, 2)})

    recording.run("publish", publish)
    check_all(recording, tmp_path)


def test_a_move_that_was_reported_as_lost_does_not_come_back(
    recording: Recording, tmp_path: Path
) -> None:
    recording.use("commit", lambda repo: repo.commit({"w": weights(1)}))
    recording.use("branch", lambda repo: repo.branch("other", "main"))
    with casweights.open(recording.root, workers=1) as late:
        head = late.database.refs.head("other")
        assert head is not None
        recording.use("delete branch", lambda repo: repo.delete_branch("other"))

        def lose() -> None:
            with suppress(ConflictError):
                late.database.refs.advance("other", head, head.snapshot, ready=seen_now)
                raise AssertionError("it won")

        recording.run("lose", lose)
    recording.crashes = [crash for crash in recording.crashes if crash.done]
    check_all(recording, tmp_path)


def test_put_syncs_folders_that_another_writer_left_unsynced(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise OSError

    store = LocalStore(recording.root)
    with monkeypatch.context() as patch:
        patch.setattr("casweights.stores.root.fsync_folder", stop)
        with pytest.raises(StoreError):
            store.put("a/name", [b"x"])
    recording.run("put", lambda: LocalStore(recording.root).put("a/name", [b"x"]))
    states = [crash.tree for crash in recording.crashes if crash.during == "put" and crash.done]
    assert {tree.get("store/a/name") for tree in states} == {b"x"}


def test_the_model_of_a_disk_loses_unsynced_changes(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", lambda: None)
    with disk.recording():
        os.mkdir(tmp_path / "disk" / "folder")
        descriptor = os.open(tmp_path / "disk/folder/file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.writev(descriptor, [b"bytes"])
        states = [*disk.states(random.Random(0))]
        os.fsync(descriptor)
        os.close(descriptor)
    assert states == [
        *({}, {}, {}, {}),
        *({"folder": None}, {"folder": None}),
        {"folder": None, "folder/file": b"bytes"},
        {"folder": None, "folder/file": b""},
    ]
    assert {tree.get("folder/file") for tree in disk.states(random.Random(0))} == {None, b"bytes"}


def test_the_model_of_a_disk_may_change_while_its_states_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", lambda: None)
    with disk.recording():
        os.mkdir(tmp_path / "disk" / "a")
        states = disk.states(random.Random(0))
        seen = [next(states)]
        os.mkdir(tmp_path / "disk" / "b")
        seen += states
    assert seen == [{}, {}, {"a": None}, {"a": None}]
