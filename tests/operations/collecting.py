"""Stores with versions that nothing names any more, and what tests of collections do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import casweights
from casweights.config import Keep, StoreConfig
from casweights.format import names
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from tests.ages import DAY, GRACE, age
from tests.copying_bucket import Bucket
from tests.histories import CHUNK, State, history

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore

    Versions = dict[SnapshotId, State]

CONFIG = StoreConfig(chunk_size=CHUNK)
LONG = GRACE + DAY
KINDS = ("directory", "memory", "bucket")  # of stores, see `make_objects`


class InPlace(WrapperStore):
    """A store that does not show what was set aside."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (i for i in self.inner.list(prefix) if not i.name.startswith(names.ASIDE))


def make_objects(kind: str, folder: Path) -> ObjectStore:
    """Return an empty store of one of `KINDS`."""
    if kind == "directory":
        return LocalStore(folder / "s")
    return MemoryStore() if kind == "memory" else Bucket()


def open_repo(objects: ObjectStore, *, create: bool = False) -> Repository:
    return casweights.open(objects, create=create, config=CONFIG, workers=1)


def commit_all(repo: Repository, branch: str, count: int = 3, seed: int = 0) -> Versions:
    return {repo.commit(s, branch=branch).id: s for s in history(count, 0.01, seed=seed)}


def expired_run(objects: ObjectStore) -> Versions:
    """Make a store of a run of which most has expired long ago; return what stays of it."""
    with open_repo(objects, create=True) as repo:
        states = [*history(12, 0.02, chunks=6)]
        versions = {repo.commit(s, branch="main").id: s for s in states}
        repo.expire(Keep(every=6), apply=True)
        repo.maintain()
        kept = {version.id: versions[version.id] for version in repo.log()}
    age(objects, LONG)
    return kept


def abandon(repo: Repository, objects: ObjectStore, seed: int = 50, count: int = 3) -> Versions:
    """Make versions that nothing names, long ago."""
    lost = commit_all(repo, "lost", count, seed)
    repo.delete_branch("lost")
    repo.maintain()  # in a bucket, the versions are moves of the branch until then
    age(objects, LONG)
    return lost


def stored(objects: ObjectStore) -> set[str]:
    """Return the names of all objects but those about collections and the deleted branch."""
    found = {info.name for info in objects.list()}
    return {n for n in found if not n.startswith((names.COLLECTIONS, f"{names.HEADS}lost/"))}


def unsigned(found: set[str]) -> set[str]:
    """Leave out signatures, which a collection drops when it sets their versions aside."""
    return {name for name in found if not name.startswith(names.SIGNATURES)}


def collect(repo: Repository) -> str:
    """Set something aside; return the digits of the collection."""
    done = repo.gc(apply=True)
    assert done.collection is not None
    return done.collection


def finish(repo: Repository, objects: ObjectStore) -> None:
    """Let the grace time pass, and delete what was set aside."""
    age(objects, LONG)
    repo.gc(apply=True, finish_only=True)


def apply(repo: Repository) -> object:
    """Do one run."""
    return repo.gc(apply=True)


def undelete_all(repo: Repository) -> None:
    """Bring everything back that lies aside."""
    for pending in repo.gc().pending:
        repo.undelete_collection(pending.id)
