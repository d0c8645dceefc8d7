"""After an error, a call can be repeated, and the result is that of one call.

For every verb, each of its calls to the store fails, or a sample of them: before or after it has
done its work, and either once or as the first of an outage that lasts until the verb gives up.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights import Publisher, Reporter
from casweights.config import KiB, StoreConfig
from casweights.content.files import scan
from casweights.errors import CasweightsError, ConflictError, ErrorCode, StoreError
from casweights.operations.commit import Description, commit_encoded
from casweights.operations.encode import encode_files
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore
from casweights.testing.trees import write_tree
from tests.lengths import spread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casweights import Repository, Snapshot
    from casweights.stores.base import ObjectStore

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("directory", "bucket", "copying bucket", "git")


class Bucket(MemoryStore):
    capabilities = Capabilities(exclusive_create=False)


class Store(FaultyStore):
    """A store with faults. Calls to a separate store for its refs are counted with its own."""

    def __init__(self, inner: ObjectStore, refs: ObjectStore, lead: Store | None = None) -> None:
        super().__init__(inner)
        self.is_out = False
        self._refs = refs
        self._lead = lead or self

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        return Store(self._refs, self._refs, self)

    def fail(self, call: int, *, after: bool, outage: bool) -> None:
        """Let a call fail, counted from now on; in an outage, let all later calls fail, too."""
        self.is_out = outage
        number = len(self.calls) + call
        self.unused = [Fault(call=number, after=after, action=vanish)]

    def calm(self) -> None:
        """Let all further calls succeed."""
        self.unused, self.is_out = [], False

    def _due(self, method: str, name: str) -> Sequence[Fault]:
        if self._lead is not self:
            return self._lead._due(method, name)
        is_over = self.is_out and not self.unused
        due = super()._due(method, name)
        return [Fault(call=0, action=vanish)] if is_over else due


class Copying(Store):
    """A store with faults that copies objects, so that moves of branches are versions."""

    def copy(self, name: str, new_name: str) -> bool:
        with self._call("copy", new_name):
            return self._inner.put(new_name, [self._inner.get(name)])


def vanish() -> None:
    raise StoreError(ErrorCode.UNREACHABLE, "the network is gone")


class Place:
    """A store with some history, a store to push from, and a publisher."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        inner = MemoryStore() if kind == "directory" else Bucket()
        self.objects = (Copying if kind == "copying bucket" else Store)(inner, MemoryStore())
        self.repo = make(self.objects, refs="datasets/me/refs" if kind == "git" else None)
        self.repo.branch("old", "main~1")
        self.repo.tag("v1", "main~1")
        self.repo.branch("lost", "main~1")
        self.repo.delete_branch("lost")
        self.repo.tag("v0", "main~1")
        self.repo.delete_tag("v0")
        self.source = make(MemoryStore())
        for branch, parent in (("old", "main~2"), ("next", "main")):
            self.source.commit({"n": branch}, branch=branch, parent=parent, time=WHEN)
        self.source.tag("v2", "next")
        self.publisher = Publisher(self.repo, "live", compression="fast")

    def reopen(self) -> None:
        """Close the store and open it again, as another process would."""
        with suppress(StoreError):  # the error that was reported before
            self.publisher.close()
        self.repo.close()
        self.repo = casweights.open(self.objects, workers=1)
        self.publisher = Publisher(self.repo, "live", compression="fast")

    def close(self) -> None:
        """Close the publisher and both stores."""
        for handle in (self.publisher, self.repo, self.source):
            handle.close()

    def state(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the history of every ref, without times."""
        refs = {f"heads/{name}": tip for name, tip in self.repo.branches().items()}
        refs |= {f"tags/{name}": tip for name, tip in self.repo.tags().items()}
        return {
            name: [content_of(v) for v in self.repo.log(str(tip))] for name, tip in refs.items()
        }


def make(objects: ObjectStore, refs: str | None = None) -> Repository:
    config = StoreConfig(chunk_size=64 * KiB, refs=refs)
    repo = casweights.open(objects, create=True, config=config, workers=1)
    for n in range(3):
        repo.commit({"n": n}, message="before", time=WHEN)
    return repo


def content_of(version: Snapshot) -> tuple[Any, ...]:
    """Return the parts of a version that do not depend on time."""
    return version.message, repr(version.metadata), version.files


def join_parts(place: Place) -> None:
    """Commit files that were encoded before, as a distributed checkpoint does."""
    db = place.repo.database
    head = db.refs.head("main")
    assert head is not None
    before = db.snapshots.load(head.snapshot, with_locations=True)
    part = encode_files(db, scan(place.folder), parent=before, compression="fast").durable(db)
    description = Description(
        parents=(head.snapshot,), time=datetime.now(UTC), author="", message="parts", metadata={}
    )
    commit_encoded(db, part, description, "main", head)


def copy(place: Place) -> None:
    with suppress(ConflictError):  # one branch has diverged
        place.source.push(place.repo, unnamed=True)


def publish(place: Place) -> None:
    place.publisher.publish({"n": 7}, step=7)
    place.publisher.wait()


VERBS = {
    "commit": lambda place: place.repo.commit({"n": 9}, metadata={"loss": float("nan")}),
    "commit a branch": lambda place: place.repo.commit({"n": 9}, branch="new", parent="main~1"),
    "branch": lambda place: place.repo.branch("new", "main~1"),
    "branch, moved": lambda place: place.repo.branch("old", "main", force=True),
    "tag": lambda place: place.repo.tag("v3", "main"),
    "delete a branch": lambda place: place.repo.delete_branch("old"),
    "delete a tag": lambda place: place.repo.delete_tag("v1"),
    "undelete a branch": lambda place: place.repo.undelete("lost"),
    "undelete a tag": lambda place: place.repo.undelete("tags/v0"),
    "undelete as": lambda place: place.repo.undelete("lost", "found"),
    "undelete a version": lambda place: place.repo.undelete(
        place.repo.resolve("main~2"), "tags/found"
    ),
    "maintain": lambda place: place.repo.maintain(),
    "push": lambda place: place.source.push(place.repo, ["next", "v2"]),
    "push with force": lambda place: place.source.push(place.repo, ["old"], force=True),
    "copy": copy,
    "shallow push": lambda place: place.source.push(place.repo, ["next"], history=False),
    "parts": join_parts,
    "publish": publish,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tree({"a": b"part"}, tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_an_error_means_that_repeating_it_does_what_one_call_does(
    verb: str, kind: str, folder: Path
) -> None:
    undisturbed = Place(kind, folder)
    before = len(undisturbed.objects.calls)
    VERBS[verb](undisturbed)
    calls = len(undisturbed.objects.calls) - before
    expected = undisturbed.state()
    undisturbed.close()
    assert calls
    faults = [*product(range(1, calls + 1), (False, True), (False, True))]
    for fault in spread(faults, 6, (verb, kind)):
        try_once(verb, Place(kind, folder), expected, fault)


def try_once(
    verb: str, place: Place, expected: dict[str, Any], fault: tuple[int, bool, bool]
) -> None:
    """Run a verb with a fault, and repeat it after an error; check the state afterwards."""
    call, after, outage = fault
    place.objects.fail(call, after=after, outage=outage)
    try:
        VERBS[verb](place)
    except StoreError:
        place.objects.calm()
        if not outage:  # another process may repeat the call as well
            place.reopen()
        VERBS[verb](place)
    place.objects.calm()
    assert place.state() == expected, fault
    assert not place.repo.verify().problems
    place.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_with_an_unknown_outcome_names_the_version(kind: str, folder: Path) -> None:
    place = Place(kind, folder)
    seen = len(place.objects.calls)
    place.repo.branch("other", "main")  # to learn which call puts a move
    moves = [name for _, name in place.objects.calls[seen:]]
    put = next(n for n, name in enumerate(moves, 1) if name.startswith("refs/heads/other/0"))
    place.objects.fail(put, after=True, outage=True)
    with pytest.raises(StoreError, match="unknown") as caught:
        place.repo.branch("another", "main")
    place.objects.calm()
    assert caught.value.code is ErrorCode.UNREACHABLE
    assert caught.value.snapshot == place.repo.resolve("another")
    place.close()


class Broken(Reporter):
    """Raises an error when the first version is reported."""

    def __init__(self) -> None:
        self.left = 1

    def committed(self, stats: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise LookupError("the reporter's own")


def test_a_commit_whose_reporter_failed_can_be_repeated() -> None:
    with casweights.open("memory://", create=True, reporter=Broken()) as repo:
        with pytest.raises(LookupError):
            repo.commit({"n": 1}, message="mine")
        landed = repo.snapshot("main")
        assert repo.commit({"n": 1}, message="mine") == landed
        assert repo.commit({"n": 2}, message="mine") != landed
        assert len(list(repo.log())) == 2


def test_an_equal_commit_without_an_error_before_it_is_a_new_version(folder: Path) -> None:
    place = Place("directory", folder)
    place.objects.fail(10**9, after=True, outage=False)
    first = place.repo.commit({"n": 4})
    assert place.repo.commit({"n": 4}).parents == (first.id,)  # no error: not a repetition
    with pytest.raises(ConflictError):
        place.repo.branch("old", "main~1")
    with pytest.raises(CasweightsError):
        place.repo.delete_branch("nothing")
    place.close()
