"""Hostile stores against collections: nothing outside is deleted, and nothing that a ref reaches.

A client that may add objects, or a server that lies in listings, must not gain the right to delete
that the collector has.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from casweights.database.packs import read_pack_index
from casweights.errors import CasweightsError, IntegrityError, InvalidInputError
from casweights.format import names
from casweights.format.archive import build_archive
from casweights.format.collection import Part, Settled, mark, part_name, settled_name
from casweights.format.envelope import MAX_GENERATION, PREFIX_SIZE, ObjectKind, prefix
from casweights.format.expired import encode_records
from casweights.format.finding import Finding, encode_finding, finding_name
from casweights.format.pack import build_index
from casweights.ids import PackId, SnapshotId, Suspect
from casweights.results import ExpiredVersion
from casweights.stores.base import ObjectInfo
from casweights.stores.hub.store import HubStore
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.hub import LocalHub
from casweights.testing.states import assert_same_state
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import pack_names, weights
from tests.large_versions import packs_apart
from tests.lengths import examples
from tests.operations.collecting import LONG, commit_all, open_repo
from tests.operations.damage import copy_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from casweights.stores.base import ObjectStore
    from tests.operations.collecting import Versions

MAY_GO = re.compile(
    r"(aside/[0-9a-f]{16}/)?(packs|snapshots|versions)/[0-9a-f]{64}"
    r"|collections/([0-9a-f]{16}/(look|plan|end)|settled-[0-9a-f]{64}-[0-9]+)"
    r"|signatures/([0-9]+-)?[0-9a-f]{64}"  # those of versions that are gone
)
NEEDED = (names.PACKS, names.SNAPSHOTS, names.HEADS, names.TAGS)
ID = "ab" * 32
KINDS = {"memory": MemoryStore, "bucket": Bucket}


class Made(NamedTuple):
    """A store with versions that refs reach, and others; and the names of what the former need."""

    objects: MemoryStore
    kept: Versions
    tips: list[SnapshotId]
    needed: set[str]


@cache
def made(kind: str) -> Made:
    objects = KINDS[kind]()
    with open_repo(objects, create=True) as repo:
        kept = commit_all(repo, "main", 2)
        with packs_apart():
            kept |= commit_all(repo, "side", 2, seed=20)
        repo.tag("v1", next(iter(kept)))
        needed = {info.name for info in objects.list() if info.name.startswith(NEEDED)}
        with packs_apart():
            commit_all(repo, "lost", 2, seed=50)
        repo.delete_branch("lost")
        repo.maintain()
        tips = [*repo.branches().values(), *repo.tags().values()]
    age(objects, LONG)
    return Made(objects, kept, tips, needed)


class Lying(WrapperStore):
    """A store whose listings show objects that it does not have, or that are not its own.

    Attributes:
        deleted: The names of all objects that a client has deleted.
    """

    def __init__(self, inner: ObjectStore, lies: Sequence[tuple[str, str]]) -> None:
        super().__init__(inner)
        self._lies = lies
        self.deleted: list[str] = []

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = {info.name: info for info in self.inner.list(prefix)}
        for lie in (lie for folder, lie in self._lies if folder == prefix):
            found.setdefault(lie, ObjectInfo(lie, 100, 1))
        return iter(sorted(found.values(), key=lambda info: info.name))

    def delete(self, name: str) -> None:
        self.deleted.append(name)
        self.inner.delete(name)


outside = st.sampled_from(
    [
        "../other/packs/" + ID,
        "/etc/passwd",
        f"packs/../{ID}",
        f"packs/../../other/{ID}",
        f"packs/{ID}/../../casweights.json",
        f"snapshots/{ID}/x",
        "snapshots/./x",
        "packs/x",
        f"packs/{ID.upper()}",
        f"aside/{'0' * 16}/casweights.json",
        f"aside/{'0' * 16}/refs/heads/main/000000000001.ref",
        f"aside/{'0' * 16}/../../../x",
        f"aside/{'0' * 16}/packs/../x",
        f"collections/{'0' * 16}/../../casweights.json",
        f"collections/{'0' * 16}/plan",
        f"collections/settled-{'0' * 64}-1/../../x",
        "casweights.json",
        "refs/heads/main/../../tags/x",
        "",
    ]
)
folders = st.sampled_from(["", *NEEDED, names.ARCHIVES, names.ASIDE, names.COLLECTIONS])
digits = st.sampled_from(["0" * 16, "1" * 16])
parts = st.sampled_from(list(Part))
acts = st.one_of(
    st.tuples(st.just("aside"), digits, st.integers(0, 99), st.binary(max_size=40)),
    st.tuples(st.just("part"), digits, parts, st.binary(max_size=20)),
    st.tuples(st.just("note"), st.integers(0, 10**18)),
    st.tuples(st.just("finding"), st.integers(0, 99)),
    st.tuples(st.just("record"), st.integers(0, 99), st.booleans()),
    st.tuples(st.just("archive"), st.lists(st.integers(0, 99), max_size=3), st.integers(0, 2**31)),
    st.tuples(st.just("pack"), st.integers(0, MAX_GENERATION)),
    st.tuples(
        st.just("move"),
        st.sampled_from(["heads/main", "heads/x", "tags/y"]),
        st.integers(1, 9),
        st.binary(max_size=64),
    ),
)


def forge_copy(objects: ObjectStore, name: str, generation: int) -> None:
    """Add a pack that claims to have the frames of another one, and has other bytes."""
    [info] = objects.list(name)
    frames = [location.frame for location in read_pack_index(objects, info)]
    pack, ending = build_index(frames, generation)
    body = bytes(max(frame.offset + frame.size for frame in frames) - PREFIX_SIZE)
    objects.put(names.pack_name(pack), [prefix(ObjectKind.PACK), body, ending])


class Attack:
    """Forges objects in a copy of a store.

    Attributes:
        spared: Versions that a forged record calls expired.
    """

    def __init__(self, store: Made) -> None:
        self.made = store
        self.objects = copy_of(store.objects, type(store.objects))
        self.spared: set[SnapshotId] = set()

    def __call__(self, kind: str, *arguments: object) -> None:
        getattr(self, f"forge_{kind}")(*arguments)

    def forge_aside(self, collection: str, which: int, data: bytes) -> None:
        needed = sorted(n for n in self.made.needed if n.startswith(("packs/", "snapshots/")))
        if needed:
            self.objects.put(f"aside/{collection}/{needed[which % len(needed)]}", [data])

    def forge_part(self, collection: str, part: Part, data: bytes) -> None:
        self.objects.put(part_name(collection, part), [data or mark()])

    def forge_note(self, until: int) -> None:
        self.objects.put(settled_name(Settled("0" * 64, until)), [mark()])

    def forge_record(self, which: int, cut: bool) -> None:
        version = list(self.made.kept)[which % len(self.made.kept)]
        with open_repo(self.objects) as repo:
            found = repo.snapshot(version)
        row = ExpiredVersion(
            id=version,
            number=found.number,
            parents=() if cut else found.parents,
            time=datetime(2026, 1, 1, tzinfo=UTC),
            policy="forged",
        )
        for record in encode_records([row]):
            self.objects.put(record.name, [record.data])
        self.spared.add(version)
        if cut:
            self.spared.update(found.parents)

    def check(self) -> None:
        """Check that what refs reach can be read, once what was forged is gone.

        A head and a tag count in any case, and the versions before a forged record do not.
        """
        store, there = self.made, {info.name for info in self.objects.list()}
        clean = copy_of(store.objects, type(store.objects))
        clean.delete_all([name for name in store.needed if name not in there])
        with open_repo(clean) as repo:
            for version, state in store.kept.items():
                if version in store.tips or version not in self.spared:
                    assert_same_state(repo.load(version), state)

    def forge_finding(self, which: int) -> None:
        packs = sorted(n for n in self.made.needed if n.startswith("packs/"))
        suspect = Suspect(PackId.from_hex(packs[which % len(packs)].removeprefix("packs/")), None)
        finding = Finding(suspect=suspect, why="forged", time=0)
        self.objects.put(finding_name(suspect), [encode_finding(finding)])

    def forge_archive(self, which: list[int], generation: int) -> None:
        versions = list(self.made.kept)
        claimed = {versions[n % len(versions)]: bytes(50) for n in which}
        if claimed:
            sealed = build_archive(claimed, generation + 1)
            self.objects.put(sealed.name, sealed.parts)

    def forge_pack(self, generation: int) -> None:
        for name in sorted(self.made.needed):
            if name.startswith(names.PACKS):
                forge_copy(self.objects, name, generation)

    def forge_move(self, ref: str, position: int, data: bytes) -> None:
        self.objects.put(f"refs/{ref}/{position:012d}.ref", [data])


# Shrinking a failure takes minutes.
@settings(max_examples=examples(60), phases=[Phase.generate], report_multiple_bugs=False)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    attack=st.lists(acts, max_size=4),
    lies=st.lists(st.tuples(folders, outside), max_size=3),
)
def test_a_hostile_store_makes_a_collection_delete_nothing_outside_and_nothing_that_refs_reach(
    kind: str, attack: list[tuple[str, ...]], lies: list[tuple[str, str]]
) -> None:
    forged = Attack(made(kind))
    for act in attack:
        forged(*act)
    age(forged.objects, LONG)
    lying = Lying(forged.objects, lies)
    for _ in range(3):
        with suppress(CasweightsError), open_repo(lying) as repo:
            repo.gc(apply=True)
        age(forged.objects, LONG)
    assert [name for name in lying.deleted if not MAY_GO.fullmatch(name)] == []
    forged.check()


def test_a_forged_copy_of_a_pack_does_not_replace_it() -> None:
    """The copy claims to be made last, and has other bytes."""
    for kind in KINDS.values():
        objects = kind()
        with open_repo(objects, create=True) as repo, packs_apart():
            repo.commit({"w": weights(1, 1)})
            before = pack_names(objects)
            state = {"w": weights(1, 2)}
            version = repo.commit(state).id
            [pack] = pack_names(objects) - before
        forge_copy(objects, pack, 7)
        age(objects, LONG)
        with open_repo(objects) as repo, pytest.raises(IntegrityError, match="nothing was"):
            repo.gc(apply=True)
        for _ in range(2):
            with open_repo(objects) as repo:
                repo.gc(apply=True)
            age(objects, LONG)
        with open_repo(objects) as repo:
            assert_same_state(repo.load(version), state)


@pytest.mark.parametrize("name", ["../x", "packs/../../x", "/etc/x", "packs/./x", "packs//x"])
def test_no_driver_deletes_outside_its_prefix(tmp_path: Path, name: str) -> None:
    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        local = LocalStore(tmp_path / "a" / "store")
        local.create()
        for store in (local, MemoryStore(), HubStore("me/weights", "run", endpoint=hub.url)):
            for call in (store.delete, lambda n: store.delete_all([n])):  # noqa: B023
                with pytest.raises(InvalidInputError):
                    call(name)
