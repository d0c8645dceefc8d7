"""Collections of damaged stores (H9): they take nothing that a repair would use."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casweights.errors import CasweightsError
from casweights.format import names
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import pack_names, weights
from tests.large_versions import packs_apart
from tests.lengths import examples
from tests.operations.collecting import LONG, commit_all, open_repo
from tests.operations.damage import copy_of, flip, frames_of, overwrite, readable, save

if TYPE_CHECKING:
    from tests.histories import State
    from tests.operations.collecting import Versions


VERSIONS = 4
VERBS = ["gc", "gc", "maintain", "repack", "verify", "wait"]


@pytest.fixture(params=["memory", "bucket"])
def objects(request: pytest.FixtureRequest) -> MemoryStore:
    made: MemoryStore = Bucket() if request.param == "bucket" else MemoryStore()
    open_repo(made, create=True).close()
    return made


class Twice:
    """A store with a needed chunk of which two packs have the same frame.

    Attributes:
        spare: The pack that a collection would set aside.
        in_use: The other one.
    """

    def __init__(self, objects: MemoryStore) -> None:
        self._objects = objects
        state = {"w": weights(1)}
        with packs_apart(), open_repo(objects) as repo:
            repo.commit({"w": weights(1, seed=7)})  # has the header, too
            before = pack_names(objects)
            self._kept = {repo.commit(state).id: state}
            [first] = pack_names(objects) - before
        sound = objects.get(first)
        self._damage(first)
        with packs_apart(), open_repo(objects) as repo:
            repo.commit(state, branch="lost")  # stores the chunk again
            repo.delete_branch("lost")
            repo.maintain()
            [second] = pack_names(objects) - before - {first}
        overwrite(objects, first, sound)
        age(objects, LONG)
        with open_repo(objects) as repo:
            assert repo.verify().problems == ()
            [self.spare] = {found.name for found in repo.gc().objects} & {first, second}
        self.in_use = first if self.spare == second else second

    def damage(self) -> None:
        """Damage the pack that is in use, and let a check find it."""
        self._damage(self.in_use)

    def _damage(self, pack: str) -> None:
        frames = [frame for found in frames_of(self._objects).values() for frame in found]
        for name, offset, size in frames:
            if name == pack:
                flip(self._objects, pack, offset + size // 2)
        age(self._objects, LONG)
        with open_repo(self._objects) as repo:
            assert repo.verify().problems

    def check_after_collections(self) -> None:
        """Collect until everything has gone that goes, and check that the chunk can be read."""
        for _ in range(3):
            with open_repo(self._objects) as repo:
                repo.gc(apply=True)
            age(self._objects, LONG)
        with open_repo(self._objects) as reader:
            for version, state in self._kept.items():
                assert_same_state(reader.load(version), state)


def test_h9_the_sound_frame_of_a_damaged_chunk_stays(objects: MemoryStore) -> None:
    twice = Twice(objects)
    twice.damage()
    twice.check_after_collections()
    assert twice.in_use in pack_names(objects)  # somebody may know how to read it


def test_h9_a_sound_frame_comes_back_once_the_other_one_is_damaged(objects: MemoryStore) -> None:
    twice = Twice(objects)
    with open_repo(objects) as repo:
        repo.gc(apply=True)
    assert twice.spare not in pack_names(objects)
    twice.damage()
    twice.check_after_collections()


@cache
def made(kind: str) -> tuple[MemoryStore, Versions, list[State]]:
    """Return a store with versions on a branch, and others that nothing names; and their states."""
    objects = Bucket() if kind == "bucket" else MemoryStore()
    with open_repo(objects, create=True) as repo:
        kept = commit_all(repo, "main", VERSIONS)
        with packs_apart():
            lost = commit_all(repo, "lost", 2, seed=50)
            # One chunk of both, so that a frame which is needed lies between others.
            old, dead = next(iter(kept.values())), next(iter(lost.values()))
            shared = {"w": old["w"], "v": dead["w"]}
            kept[repo.commit(shared, branch="both").id] = shared
        repo.delete_branch("lost")
        repo.maintain()
    age(objects, LONG)
    return objects, kept, [*kept.values(), *lost.values()]


@settings(max_examples=examples(12))
@given(
    kind=st.sampled_from(["memory", "bucket"]),
    which=st.lists(st.integers(0, 99), min_size=1, max_size=2),
    where=st.integers(0),
    verbs=st.lists(
        st.sampled_from(["gc", "gc", "maintain", "repack", "verify", "wait"]), max_size=7
    ),
)
def test_h9_a_repair_after_collections_brings_all_back_that_one_before_would(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    which: list[int],
    where: int,
    verbs: list[str],
) -> None:
    store, kept, states = made(kind)
    objects = copy_of(store, type(store))
    packs = [i.name for folder in (names.PACKS, names.HEADS) for i in objects.list(folder)]
    for number in which:
        flip(objects, packs[number % len(packs)], where)
    with open_repo(objects) as repo, suppress(CasweightsError):
        repo.verify()
    copy = tmp_path_factory.getbasetemp() / f"states-{kind}"
    for number, state in enumerate(states):
        save(copy, state, f"{number}.safetensors")
    before, after = copy_of(objects, type(store)), objects
    for verb in verbs:
        if verb == "wait":
            age(after, LONG)
            continue
        with open_repo(after) as repo, suppress(CasweightsError):
            repo.gc(apply=True) if verb == "gc" else getattr(repo, verb)()
    found = []
    for one in (before, after):
        with open_repo(one) as repo, suppress(CasweightsError):
            repo.repair([copy], apply=True)
        found.append(readable(one, kept))
    assert found[0] <= found[1]
