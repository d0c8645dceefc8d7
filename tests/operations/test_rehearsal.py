"""A repack encodes everything once, and its packs wait on disk until they are wanted."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.errors import IntegrityError
from casweights.operations.forest import Forest
from casweights.operations.rewriting import Rewrite
from casweights.stores.memory import MemoryStore
from tests.histories import CHUNK, blur, check_versions, history, pack_names, step, weights
from tests.operations.damage import copy_of

if TYPE_CHECKING:
    from casweights import SnapshotId
    from tests.histories import State

pytestmark = pytest.mark.usefixtures("packs_apart")

CONFIG = StoreConfig(chunk_size=CHUNK)
NOW = timedelta(0)


class Filled(NamedTuple):
    """A store in which each version is whole, as long as nothing repacks it."""

    objects: MemoryStore
    versions: dict[SnapshotId, State]

    def packs(self) -> dict[str, bytes]:
        return {name: bytes(self.objects.get(name)) for name in pack_names(self.objects)}


def filled() -> Filled:
    store, versions = MemoryStore(), dict[casweights.SnapshotId, "State"]()
    with casweights.open(store, create=True, config=CONFIG) as repo:
        repo.database.signatures.keep(wanted=False)
        for n, state in enumerate(history(4, 0.02, chunks=3)):
            versions[repo.commit(state, branch=f"{n}").id] = state
            repo.delete_branch(f"{n}")  # so that the next commit finds no base
    return Filled(store, versions)


def repacked(store: MemoryStore) -> None:
    with casweights.open(store) as repo:
        repo.database.signatures.keep(wanted=True)
        repo.repack(grace=NOW)


def test_each_chunk_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []
    encode = Rewrite.encode

    def counted(self: Rewrite, *args: object, **options: object) -> object:
        encoded.append(self.chunk)
        return encode(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Rewrite, "encode", counted)
    store = filled()
    before = store.packs()
    repacked(store.objects)
    assert not before.keys() & store.packs().keys()
    assert len(encoded) == len(set(encoded)) > 0
    check_versions(*store)


@pytest.mark.parametrize("trouble", ["full", "no folder"])
def test_without_room_on_disk_the_packs_are_the_same(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    with_room = filled()
    without = Filled(copy_of(with_room.objects), with_room.versions)
    repacked(with_room.objects)
    if trouble == "full":
        usage = shutil.disk_usage(os.curdir)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * CHUNK))
    else:
        monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    repacked(without.objects)
    assert without.packs().keys() == with_room.packs().keys()
    check_versions(*without)


@pytest.mark.parametrize("at", [-20, 100])
def test_packs_that_are_damaged_on_disk_replace_nothing(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """One bit of an index, or of a frame."""

    def damaged(descriptor: int, start: int, out: memoryview) -> bool:
        out[:] = os.pread(descriptor, len(out), start)
        out[at] ^= 1
        return True

    store = filled()
    before = store.packs()
    monkeypatch.setattr("casweights.operations.rehearsal.read_exactly", damaged)
    with pytest.raises(IntegrityError, match="packs/"):
        repacked(store.objects)
    assert store.packs() == before
    check_versions(*store)


def test_packs_never_become_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a tree of which every version is whole."""
    store = filled()
    repacked(store.objects)
    before = store.packs()
    whole = Forest(dict.fromkeys(store.versions))
    monkeypatch.setattr("casweights.operations.repack.forest", lambda *_: whole)
    repacked(store.objects)
    assert store.packs() == before
    with casweights.open(store.objects) as repo:
        repo.repack(compression="fast", grace=NOW)  # which asks for larger ones
    assert sum(map(len, store.packs().values())) > sum(map(len, before.values()))
    check_versions(*store)


def test_a_version_with_room_has_no_shortcuts_for_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its tree, each of its chunks is one difference from the version above.

    The steps of one tensor take so much together that a commit would shorten their chain.
    """
    calm, wild = weights(4, seed=1), weights(1, seed=2)
    states = [{"calm": calm, "wild": wild}]
    for n in range(10):
        states.append({"calm": step(calm, 0.002, n), "wild": blur(states[-1]["wild"], 0.002, n)})
    store, versions = MemoryStore(), dict[casweights.SnapshotId, "State"]()
    with casweights.open(store, create=True, config=CONFIG) as repo:
        for n, state in enumerate(states):
            versions[repo.commit(state, branch=f"{n}").id] = state
        order = list(versions)
        line = Forest(dict(zip(order, [None, *order[:-1]], strict=True)))
        monkeypatch.setattr("casweights.operations.repack.forest", lambda *_: line)
        repo.repack(grace=NOW, compression="fast")
        index = repo.database.index
        index.load()
        for version, above in zip(order[1:], order, strict=False):
            bases = {chunk for chunk, _ in repo.snapshot(above).pieces()}
            for chunk, _ in repo.snapshot(version).pieces():
                frames = index.frames(chunk)
                assert len(frames) == 1
                assert frames[0].frame.base in bases
        (far,) = (c for c, p in repo.snapshot(order[-1]).pieces() if p.name == "wild")
        chain = index.chain(far)
        assert chain is not None
        assert chain.links == len(order)
        assert chain.read_size - chain.whole_size > chain.whole_size / 3
    check_versions(store, versions)
