"""Damage that `verify` finds is repaired by any writer that has the chunks."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import casweights
from casweights.errors import IntegrityError
from casweights.format import names
from casweights.stores.memory import MemoryStore
from tests.findings import (
    CONFIG,
    DAMAGES,
    STATES,
    Remote,
    assert_readable,
    commit_again,
    filled,
    listed,
    suspects,
)
from tests.operations.damage import copy_of

if TYPE_CHECKING:
    from casweights import SnapshotId
    from casweights.stores.base import ObjectStore
    from tests.histories import State

pytestmark = pytest.mark.usefixtures("both_forms")


def commit_on_top(objects: ObjectStore, intact: ObjectStore, state: State) -> None:
    with casweights.open(objects) as repo:
        repo.commit(state)


def publish(objects: ObjectStore, intact: ObjectStore, state: State) -> None:
    with casweights.open(objects) as repo, casweights.Publisher(repo) as publisher:
        publisher.publish(state)


def push(objects: ObjectStore, intact: ObjectStore, state: State) -> None:
    with casweights.open(objects) as target, casweights.open(intact) as source:
        source.push(target)


def push_shallow(objects: ObjectStore, intact: ObjectStore, state: State) -> None:
    with casweights.open(objects) as target, casweights.open(intact) as source:
        for version in source.log():
            source.push(target, [str(version.id)], history=False)


HEALERS: dict[str, Any] = {
    "commit": commit_again,
    "commit on top": commit_on_top,
    "publish": publish,
    "push": push,
    "shallow push": push_shallow,
}


SITUATIONS = [
    *itertools.product(["payload"], [0, 2, 4], [False, True]),
    *itertools.product(DAMAGES.keys() - {"payload"}, [0, 2], [False]),
]


class Scene(NamedTuple):
    """A sound store, which tests copy, and a push of it.

    Attributes:
        store: The store.
        intact: Another store, to which all was pushed.
        versions: What `filled` returned: the versions,
        packs: and the objects with their frames.
    """

    store: MemoryStore
    intact: MemoryStore
    versions: list[SnapshotId]
    packs: list[str]


@cache
def scene(form: str, remote: bool) -> Scene:
    """Make a scene once for each form of commits."""
    store, intact = MemoryStore(), MemoryStore()
    objects = seen_as(store, remote)
    versions, packs = filled(objects)
    with casweights.open(objects) as repo:
        repo.push(casweights.open(intact, create=True, config=CONFIG))
    return Scene(store, intact, versions, packs)


def seen_as(store: MemoryStore, remote: bool) -> ObjectStore:
    return Remote(store) if remote else store


@pytest.mark.parametrize("healer", HEALERS.values(), ids=HEALERS)
@pytest.mark.parametrize(("damage", "position", "remote"), sorted(SITUATIONS))
def test_each_kind_of_writer_stores_damaged_chunks_again(
    request: pytest.FixtureRequest, healer: Any, damage: str, position: int, remote: bool
) -> None:
    store, intact, versions, packs = scene(request.node.callspec.params["both_forms"], remote)
    objects, intact = seen_as(copy_of(store), remote), copy_of(intact)
    bad = packs[position]
    is_version = bad.startswith(names.SNAPSHOTS)
    DAMAGES[damage](objects, bad)
    with casweights.open(objects) as repo:
        found = repo.verify()
        assert (found.damaged, found.noted) == (1, objects.url)

    healer(objects, intact, STATES[position])

    lost = [bad] if is_version and damage != "payload" else []
    assert_readable(objects, versions, lost)
    with casweights.open(objects) as repo:
        problems = repo.verify().problems
        assert problems
        assert all(bad in str(problem) for problem in problems)
        with (
            pytest.raises(IntegrityError, match=str(versions[position])) if lost else nullcontext()
        ):
            repo.repack()
    left = suspects(objects)
    assert_readable(objects, versions, lost)
    with casweights.open(objects) as repo:
        problems = repo.verify().problems
    if bad in listed(objects, ""):  # repack keeps snapshots, and packs whose index it cannot read
        assert all(bad in str(problem) for problem in problems)
        assert damage != "payload" or is_version
    else:
        assert problems == ()
        assert left == []
