"""Forged and damaged refs are named by errors, and do no harm to other refs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import casweights
from casweights import IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import ObjectKind, seal
from casweights.stores.local import LocalStore

if TYPE_CHECKING:
    from pathlib import Path

MAIN, SIDE, TAG = (
    names.move_name(names.HEADS, "main", 1),
    names.move_name(names.HEADS, "side", 1),
    names.move_name(names.TAGS, "v1", 1),
)
LAST = 10**names.POSITION_DIGITS - 1


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    with casweights.open(tmp_path / "store", create=True) as repo:
        snapshot = repo.commit(tmp_path / "model")
        repo.branch("side", snapshot)
        repo.tag("v1", snapshot)
    return LocalStore(tmp_path / "store")


def forge(store: LocalStore, name: str, payload: Any, kind: ObjectKind = ObjectKind.REF) -> None:
    data = payload if isinstance(payload, bytes) else msgpack.packb(payload)
    store.delete(name)
    store.put(name, [seal(kind, data)])


FORGED: dict[str, Any] = {
    "no snapshot": {"time": 1},
    "no time": {"snapshot": bytes(32)},
    "short ID": {"snapshot": bytes(31), "time": 1},
    "ID of a chunk": {"snapshot": bytes(16), "time": 1},
    "ID as text": {"snapshot": "0" * 32, "time": 1},
    "time as text": {"snapshot": bytes(32), "time": "now"},
    "a list": [bytes(32), 1],
    "nothing": b"",
    "no msgpack": b"\xc1",
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "two values": b"\x80\x80",
    "nested deeply": b"\x91" * 3000,
}


@pytest.mark.parametrize("payload", FORGED.values(), ids=FORGED)
def test_forged_refs_are_named_and_do_no_harm_to_others(
    store: LocalStore, tmp_path: Path, payload: Any
) -> None:
    for name in (SIDE, TAG):
        forge(store, name, payload)
    with casweights.open(store) as repo:
        for ref, name in (("side", SIDE), ("v1", TAG)):
            with pytest.raises(IntegrityError, match=name):
                repo.resolve(ref)
        with pytest.raises(IntegrityError, match=SIDE):
            repo.commit(tmp_path / "model", branch="side")
        for action in (repo.branches, repo.tags):
            with pytest.raises(IntegrityError, match=f"{SIDE}|{TAG}"):
                action()
        problems = [str(problem) for problem in repo.verify().problems]
        assert [SIDE in problems[0], TAG in problems[1], len(problems)] == [True, True, 2]
        repo.checkout("main", tmp_path / "out")
        repo.commit(tmp_path / "model")


def test_ref_that_is_an_object_of_another_kind_is_refused(store: LocalStore) -> None:
    forge(store, SIDE, {"snapshot": bytes(32), "time": 1}, ObjectKind.SNAPSHOT)
    with casweights.open(store) as repo, pytest.raises(IntegrityError, match=SIDE):
        repo.resolve("side")


def test_ref_to_a_missing_version_is_reported(store: LocalStore, tmp_path: Path) -> None:
    forge(store, SIDE, {"snapshot": b"\x01" * 32, "time": 1})
    with casweights.open(store) as repo:
        with pytest.raises(NotFoundError, match="01" * 32):
            repo.checkout("side", tmp_path / "out")
        assert ["side" in str(problem) for problem in repo.verify().problems] == [True]
    assert not (tmp_path / "out").exists()


def test_branch_at_its_last_possible_position_refuses_to_move(
    store: LocalStore, tmp_path: Path
) -> None:
    """The error names the position, and the branch keeps the version that it names."""
    with casweights.open(store) as repo:
        forge(
            store,
            names.move_name(names.HEADS, "side", LAST),
            {"snapshot": repo.resolve("v1"), "time": 1},
        )
        with pytest.raises(IntegrityError, match=str(LAST)):
            repo.commit(tmp_path / "model", branch="side", message="more")
        assert repo.resolve("side") == repo.resolve("v1")
        assert repo.verify().problems == ()


STRAY_NAMES = [
    "refs/heads/-x/000000000001.ref",
    "refs/heads/x.ref/000000000001.ref",
    "refs/heads/x..y.ref/000000000001.ref",
    "refs/heads/\x1b[31mred/000000000001.ref",
    "refs/heads/\u00e9/000000000001.ref",
    "refs/tags/x\u202e/000000000001.ref",
    f"refs/tags/{'x' * 201}/000000000001.ref",
    "refs/heads/main/1.ref",
    "refs/heads/main/000000000002",
    "refs/heads/main/\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.ref",
    "refs/heads/000000000001.ref",
    "refs/heads/a b/000000000001.ref",
    "refs/tags/v2",
    "refs/tags/v\n2.ref",
    "refs/notes/x.ref",
    "snapshots/README",
    f"snapshots/{'AB' * 32}",
    "snapshots/" + "\u0661" * 64,
    f"packs/{'00' * 31}",
    f"packs/{'AB' * 32}",
    f"packs/{'00' * 32} ",
    "stranger",
]


@pytest.mark.parametrize("name", STRAY_NAMES, ids=ascii)
def test_stray_object_is_reported_and_hides_no_other_damage(
    store: LocalStore, tmp_path: Path, name: str
) -> None:
    """A reader that knows the ID of a version is not affected."""
    content = store.get(TAG if name.startswith("refs/") else MAIN)
    (store.root / name).parent.mkdir(exist_ok=True)
    (store.root / name).write_bytes(content)
    with casweights.open(store) as repo:
        snapshot = repo.resolve("v1")
        (stray,) = repo.verify().problems
        assert re.search(f"{re.escape(name)}|{re.escape(ascii(name)[1:-1])}", str(stray))
        repo.checkout(snapshot, tmp_path / "out")
        for damaged in (SIDE, TAG):
            forge(store, damaged, b"")
        others = [problem for problem in repo.verify().problems if str(problem) != str(stray)]
    assert [str(problem).split()[0] for problem in others] == [SIDE, TAG]


@pytest.mark.usefixtures("packs_apart")
def test_pack_under_a_name_in_capitals_is_reported(store: LocalStore) -> None:
    (name,) = (info.name for info in store.list(names.PACKS))
    stray = names.PACKS + name.removeprefix(names.PACKS).upper()
    store.put(stray, [store.get(name)])
    with casweights.open(store) as repo:
        assert [stray in str(problem) for problem in repo.verify().problems] == [True]


@pytest.mark.parametrize("name", STRAY_NAMES, ids=ascii)
def test_stray_objects_are_ignored_by_all_verbs_but_verify(
    store: LocalStore, tmp_path: Path, name: str
) -> None:
    (store.root / name).parent.mkdir(exist_ok=True)
    (store.root / name).write_bytes(b"stray")
    with casweights.open(store) as repo:
        snapshot = repo.resolve("v1")
        assert repo.branches() == {"main": snapshot, "side": snapshot}
        assert repo.tags() == {"v1": snapshot}
        assert [version.id for version in repo.log("main")] == [snapshot]
        assert repo.resolve(str(snapshot)[:8]) == snapshot
        assert len(repo.stats().versions) == repo.stats().packs == 1
        with pytest.raises(NotFoundError):
            repo.resolve("abab")
        newer = repo.commit(tmp_path / "model", message="more")
        repo.repack()
        repo.checkout(newer, tmp_path / "out")
        assert len(repo.verify().problems) == 1
