"""A repository compared with plain dictionaries over long random sequences of operations."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

import casweights
from casweights import Repository, SnapshotId
from casweights.config import KiB, StoreConfig
from casweights.errors import ConflictError, InvalidInputError, NotFoundError
from casweights.stores.base import Capabilities
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from casweights.testing.trees import read_tree, resolve_links, write_tree
from casweights.testing.versatile import VersatileStore
from tests.lengths import examples

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore

names = st.sampled_from(["main", "a/b", "a"])
sizes = st.sampled_from([0, 1, 1000, 65_536, 100_000])
handles = st.integers(0, 1)


def tensor(seed: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


tensors = st.builds(tensor, st.integers(0, 2), sizes)
states = st.dictionaries(st.sampled_from(["w", "head"]), tensors, max_size=2)
trees = st.dictionaries(
    st.sampled_from(["config.json", "sub/optimizer.pt", "sub/deep/notes", "model.bin"]),
    tensors.map(lambda t: t.numpy().tobytes()),
    min_size=1,
)


class RepositoryMachine(RuleBasedStateMachine):
    """Two handles on one store, as in two processes, and a model of its contents."""

    versions = Bundle("versions")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = datetime(2026, 1, 1, tzinfo=UTC)
        self.contents: dict[SnapshotId, dict[str, Any]] = {}
        self.parents: dict[SnapshotId, SnapshotId | None] = {}
        self.branches: dict[str, SnapshotId] = {}
        self.tags: dict[str, SnapshotId] = {}
        self.deleted: dict[str, SnapshotId] = {}  # the last version, until the name is used again

    def make_objects(self) -> ObjectStore:
        raise NotImplementedError

    @initialize(digest=st.sampled_from(["blake3", "xxh3-128"]))
    def create(self, digest: Any) -> None:
        self.objects = self.make_objects()
        config = StoreConfig(digest=digest, chunk_size=64 * KiB)
        self.repos = [
            casweights.open(self.objects, create=True, config=config, workers=1) for _ in range(2)
        ]

    def teardown(self) -> None:
        for snapshot in self.contents:
            self.check_version(self.repos[0], snapshot)
        for repo in self.repos:
            repo.close()
        shutil.rmtree(self.folder)

    def check_version(self, repo: Repository, snapshot: SnapshotId) -> None:
        content = self.contents[snapshot]
        if any(isinstance(value, bytes) for value in content.values()):
            found = {
                f.path: b"".join(repo.read(snapshot, f.path)) for f in repo.snapshot(snapshot).files
            }
            assert found == content
        else:
            assert_same_state(repo.load(snapshot), content)

    def ancestry(self, snapshot: SnapshotId | None) -> list[SnapshotId]:
        found = []
        while snapshot is not None:
            found.append(snapshot)
            snapshot = self.parents[snapshot]
        return found

    def record(
        self, snapshot: casweights.Snapshot, branch: str, content: dict[str, Any]
    ) -> SnapshotId:
        head = self.branches.get(branch)
        assert snapshot.parents == ((head,) if head else ())
        self.contents[snapshot.id] = content
        self.parents[snapshot.id] = head
        self.branches[branch] = snapshot.id
        self.deleted.pop(f"heads/{branch}", None)
        return snapshot.id

    def tick(self) -> datetime:
        self.clock += timedelta(seconds=1)
        return self.clock

    @rule(target=versions, handle=handles, branch=names, state=states)
    def commit_state(self, handle: int, branch: str, state: dict[str, torch.Tensor]) -> SnapshotId:
        snapshot = self.repos[handle].commit(state, branch=branch, time=self.tick())
        return self.record(snapshot, branch, state)

    @rule(target=versions, handle=handles, branch=names, tree=trees)
    def commit_tree(self, handle: int, branch: str, tree: dict[str, bytes]) -> SnapshotId:
        source = self.folder / f"in-{len(self.contents)}"
        write_tree(tree, source)
        snapshot = self.repos[handle].commit(source, branch=branch, time=self.tick())
        return self.record(snapshot, branch, resolve_links(tree))

    @rule(handle=handles, snapshot=versions, delete=st.booleans())
    def checkout(self, handle: int, snapshot: SnapshotId, delete: bool) -> None:
        """Check out into the directory of the earlier checkouts."""
        out = self.folder / "out"
        before = read_tree(out)
        self.repos[handle].checkout(snapshot, out, delete=delete)
        files = {f.path for f in self.repos[handle].snapshot(snapshot).files}
        found = read_tree(out)
        assert {p: c for p, c in found.items() if p not in files} == (
            {} if delete else {p: c for p, c in before.items() if p not in files}
        )
        for path in files:
            assert b"".join(self.repos[1 - handle].read(snapshot, path)) == found[path]
        content = self.contents[snapshot]
        if files != {"model.safetensors"}:
            assert {path: found[path] for path in files} == content

    @rule(handle=handles, snapshot=versions)
    def read(self, handle: int, snapshot: SnapshotId) -> None:
        self.check_version(self.repos[handle], snapshot)

    @rule(handle=handles, name=names, at=versions, force=st.booleans())
    def branch(self, handle: int, name: str, at: SnapshotId, force: bool) -> None:
        if name in self.branches and not force:
            with pytest.raises(ConflictError):
                self.repos[handle].branch(name, at)
        else:
            self.repos[handle].branch(name, at, force=force)
            self.branches[name] = at
            self.deleted.pop(f"heads/{name}", None)

    @rule(handle=handles, name=names)
    def delete_branch(self, handle: int, name: str) -> None:
        if name in self.branches:
            self.repos[handle].delete_branch(name)
            self.deleted[f"heads/{name}"] = self.branches.pop(name)
        else:
            with pytest.raises(NotFoundError):
                self.repos[handle].delete_branch(name)

    @rule(handle=handles, name=names, at=versions)
    def tag(self, handle: int, name: str, at: SnapshotId) -> None:
        if self.tags.get(name, at) != at:
            with pytest.raises(ConflictError):
                self.repos[handle].tag(name, at)
        else:
            self.repos[handle].tag(name, at)
            self.tags[name] = at
            self.deleted.pop(f"tags/{name}", None)

    @rule(handle=handles, name=names)
    def delete_tag(self, handle: int, name: str) -> None:
        if name in self.tags:
            self.repos[handle].delete_tag(name)
            self.deleted[f"tags/{name}"] = self.tags.pop(name)
        else:
            with pytest.raises(NotFoundError):
                self.repos[handle].delete_tag(name)

    @rule(handle=handles, name=names, kind=st.sampled_from(["heads/", "tags/"]))
    def undelete(self, handle: int, name: str, kind: str) -> None:
        if f"{kind}{name}" in self.deleted:
            refs = self.branches if kind == "heads/" else self.tags
            refs[name] = self.deleted.pop(f"{kind}{name}")
            assert self.repos[handle].undelete(f"{kind}{name}") == refs[name]
        else:
            with pytest.raises((NotFoundError, ConflictError)):
                self.repos[handle].undelete(f"{kind}{name}")

    @rule(handle=handles)
    def maintain(self, handle: int) -> None:
        assert self.repos[handle].maintain().may_delete

    @rule(
        handle=handles,
        name=names,
        kind=st.sampled_from(["", "heads/", "tags/"]),
        n=st.integers(0, 4),
    )
    def resolve(self, handle: int, name: str, kind: str, n: int) -> None:
        found = set()
        if kind != "tags/" and name in self.branches:
            found.add(self.branches[name])
        if kind != "heads/" and name in self.tags:
            found.add(self.tags[name])
        line = self.ancestry(found.pop()) if len(found) == 1 else []
        ref = f"{kind}{name}~{n}"
        if n < len(line):
            assert self.repos[handle].resolve(ref) == line[n]
        else:
            with pytest.raises(NotFoundError):
                self.repos[handle].resolve(ref)

    @rule(handle=handles, snapshot=versions, digits=st.integers(4, 64))
    def resolve_prefix(self, handle: int, snapshot: SnapshotId, digits: int) -> None:
        prefix = str(snapshot)[:digits]
        if sum(str(other).startswith(prefix) for other in self.contents) == 1:
            assert self.repos[handle].resolve(prefix) == snapshot
        else:
            with pytest.raises(NotFoundError):
                self.repos[handle].resolve(prefix)

    @rule(handle=handles, snapshot=versions, limit=st.integers(1, 10))
    def log(self, handle: int, snapshot: SnapshotId, limit: int) -> None:
        found = [version.id for version in islice(self.repos[handle].log(snapshot), limit)]
        assert found == self.ancestry(snapshot)[:limit]

    @rule(handle=handles, old=versions, new=versions)
    def diff(self, handle: int, old: SnapshotId, new: SnapshotId) -> None:
        found = self.repos[handle].diff(old, new)
        same = self.repos[handle].snapshot(old).files == self.repos[handle].snapshot(new).files
        assert bool(found.changes) is not same

    @rule(handle=handles, name=names)
    def refuse(self, handle: int, name: str) -> None:
        """A commit that fails leaves no trace."""
        with pytest.raises(InvalidInputError):
            self.repos[handle].commit({"w": tensor(9, 1000), "bad": object()}, branch=name)

    @rule(handle=handles)
    def reopen(self, handle: int) -> None:
        self.repos[handle].close()
        self.repos[handle] = casweights.open(self.objects, workers=1)

    @invariant()
    def refs_match_the_model(self) -> None:
        for repo in self.repos:
            assert repo.branches() == self.branches
            assert repo.tags() == self.tags
            assert repo.deleted() == self.deleted

    @invariant()
    def the_store_is_sound(self) -> None:
        found = self.repos[0].verify()
        assert found.problems == ()
        assert found.snapshots == len(self.contents)


class InMemory(RepositoryMachine):
    def make_objects(self) -> ObjectStore:
        return MemoryStore()


class InDirectory(RepositoryMachine):
    def make_objects(self) -> ObjectStore:
        return LocalStore(self.folder / "store")


class Bucket(VersatileStore):
    """A store in which moves of branches are versions."""

    capabilities = Capabilities(clock_skew=0.0)


class InBucket(RepositoryMachine):
    def make_objects(self) -> ObjectStore:
        return Bucket()


InMemory.TestCase.settings = hypothesis.settings(max_examples=examples(10), stateful_step_count=40)
InDirectory.TestCase.settings = hypothesis.settings(
    max_examples=examples(4), stateful_step_count=30
)
InBucket.TestCase.settings = InMemory.TestCase.settings
TestInMemory = InMemory.TestCase
TestInDirectory = InDirectory.TestCase
TestInBucket = InBucket.TestCase
