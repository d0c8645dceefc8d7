"""Damaged objects and wrong locators in a bucket never lead to wrong bytes."""

from __future__ import annotations

from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING

import pytest

import casweights
import casweights.database.writer
from casweights import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.snapshot import StoredSnapshot, encode_snapshot
from casweights.ids import PackId, SnapshotId
from casweights.stores.hub.locators import XetLocator
from casweights.stores.hub.store import HubStore
from casweights.testing.hub import LocalHub
from tests.faults.hub_driver import BUCKET, PACK, check_sound, new_store, opened, sizes, small_model
from tests.faults.kill_driver import Digests, Model, look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_numbers = count(1000)  # unlike `test_hub_faults.py`: the client remembers the data it sent


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.create_bucket(BUCKET)
        yield hub


@pytest.fixture
def prefix(hub: LocalHub) -> str:
    """An empty store."""
    prefix = f"store/{next(_numbers)}"
    new_store(hub.url, prefix)
    return prefix


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(casweights.database.writer, "PACK_TARGET", PACK)
    return small_model(tmp_path / "model", seed=next(_numbers))  # shares nothing with others


def a_store(hub: LocalHub, prefix: str, model: Model) -> dict[SnapshotId, Digests]:
    """Commit two versions, the second with differences from the first; return their digests."""
    versions = {}
    with opened(hub.url, prefix) as repo:
        for _ in range(2):
            versions[repo.commit(model.folder).id] = model.digests()
            model.step()
    return versions


def objects_of(hub: LocalHub, prefix: str, kind: str) -> dict[str, int]:
    """Return the sizes of the objects of one kind, by name.

    Versions are moves of a branch, unless the kind is that of versions or of moves alone: these
    are made first.
    """
    if kind in ("snapshots/", "refs/heads/"):
        with opened(hub.url, prefix) as repo:
            tip = repo.branches()["main"]
            repo.delete_branch("main")
            repo.maintain()
            repo.branch("main", tip)
    return {name: size for name, size in sizes(hub.url, prefix).items() if kind in name}


@pytest.mark.parametrize(
    "kind", [names.CONFIG, "packs/", "snapshots/", names.STEP_SUFFIX, "refs/heads/"]
)
@pytest.mark.parametrize("change", ["flip", "replace"])
def test_a_tampered_object_is_reported(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path, kind: str, change: str
) -> None:
    versions = a_store(hub, prefix, model)
    for name, size in objects_of(hub, prefix, kind).items():
        if change == "flip":
            hub.corrupt_object(BUCKET, f"{prefix}/{name}", size // 2)
        else:
            replace_object(hub, prefix, name, bytes(size))
    said = kind.replace(names.STEP_SUFFIX, "snapshots/")  # a version is named by its ID
    errors: list[CasweightsError] = []
    try:
        with opened(hub.url, prefix) as repo:
            assert any(said in str(problem) for problem in repo.verify().problems)
            for version, digests in versions.items():
                if kind == "refs/heads/":  # a reader that knows the ID needs no ref
                    repo.checkout(version, tmp_path / "out", delete=True)
                    assert look(tmp_path / "out") == digests
                else:
                    with pytest.raises(IntegrityError, match=said):
                        repo.checkout(version, tmp_path / "out", delete=True)
                    assert look(tmp_path / "out") == {}
            list(repo.log())
    except CasweightsError as error:
        errors.append(error)
    if said in (names.CONFIG, "snapshots/"):
        assert isinstance(errors[0], IntegrityError)
        assert said in str(errors[0])
    else:
        assert not errors


@pytest.mark.parametrize(("start", "size"), [(0, 1000), (0, 100), (900, 100)])
def test_missing_content_is_not_reported_as_a_network_failure(
    hub: LocalHub, start: int, size: int
) -> None:
    store = HubStore(BUCKET, "gone", endpoint=hub.url)
    for xet_hash in (bytes(range(32)), b"x" * 32):
        with pytest.raises((NotFoundError, IntegrityError), match="packs/x"):
            store._xet.download(
                XetLocator(xet_hash.hex(), 1000), start, memoryview(bytearray(size)), "packs/x"
            )


def replace_object(hub: LocalHub, prefix: str, name: str, data: bytes) -> None:
    """Replace an object, as another client with the right to write could."""
    store = HubStore(BUCKET, prefix, endpoint=hub.url)
    store.delete(name)
    store.put(name, [data])


@pytest.mark.parametrize(
    "kind",
    [
        "packs/",
        "snapshots/",
        names.STEP_SUFFIX,
    ],
)
def test_damage_in_the_disk_cache_is_bypassed(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path, kind: str
) -> None:
    versions = a_store(hub, prefix, model)
    hashes = set(map(cache_folder, objects_of(hub, prefix, kind)))
    cache = tmp_path / "cache"
    with opened(hub.url, prefix, cache) as repo:
        check_sound(repo, versions, tmp_path / "out")
    extents = [path for path in cache.rglob("*-*") if path.is_file()]
    chosen = [path for path in extents if path.parent.name in hashes]
    assert chosen
    for path in chosen:
        path.write_bytes(bytes(path.stat().st_size))
    for _ in range(2):
        with opened(hub.url, prefix, cache) as repo:
            for version, digests in versions.items():
                repo.checkout(version, tmp_path / "again", delete=True)
                assert look(tmp_path / "again") == digests


def cache_folder(name: str) -> str:
    """Return the folder of an object's extents in a disk cache."""
    return sha256(name.encode()).hexdigest()[2:]


PLACES = ["other content", "garbage", "short", "unknown hash", "too large", "too small", "huge"]


@pytest.mark.parametrize("wrong", PLACES)
@pytest.mark.parametrize("cached", [False, True])
def test_wrong_locators_in_a_snapshot_do_no_harm(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path, wrong: str, cached: bool
) -> None:
    versions = a_store(hub, prefix, model)
    bucket = HubStore(BUCKET, prefix, endpoint=hub.url)
    packs = {
        PackId.from_hex(info.name.removeprefix("packs/")): size
        for info in bucket.list("packs/")
        if (size := info.size)
    }
    good = {pack: bucket.locator(names.pack_name(pack)) or b"" for pack in packs}

    def misplaced(pack: PackId) -> bytes:
        xet_hash, size = good[pack][:32], packs[pack]
        others = [other for other in good if other != pack]
        return {
            "other content": good[others[0]][:32] + size.to_bytes(8, "little"),
            "garbage": b"nonsense",
            "short": b"",
            "unknown hash": bytes(range(32)) + size.to_bytes(8, "little"),
            "too large": xet_hash + (size + 1000).to_bytes(8, "little"),
            "too small": xet_hash + (size - 1000).to_bytes(8, "little"),
            "huge": xet_hash + ((1 << 64) - 1).to_bytes(8, "little"),
        }[wrong]

    with opened(hub.url, prefix) as repo:
        for version in versions:
            stored = repo._db.snapshots.load_stored(version)
            places = {pack: misplaced(pack) for pack in stored.table.packs}
            rewrite(hub, prefix, stored.with_table(stored.table._replace(places=places)))
    for _ in range(2):
        with opened(hub.url, prefix, tmp_path / "cache" if cached else None) as repo:
            for version, digests in versions.items():
                repo.checkout(version, tmp_path / "out", delete=True)
                assert look(tmp_path / "out") == digests
    with opened(hub.url, prefix, tmp_path / "cache" if cached else None) as repo:
        versions[repo.commit(model.folder).id] = model.digests()
        check_sound(repo, versions, tmp_path / "out")


def rewrite(hub: LocalHub, prefix: str, stored: StoredSnapshot) -> None:
    data = b"".join(encode_snapshot(stored))
    replace_object(hub, prefix, names.snapshot_name(stored.snapshot.id), data)


def test_locators_from_before_a_repack_do_no_harm(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path
) -> None:
    versions = a_store(hub, prefix, model)
    cache = tmp_path / "cache"
    with opened(hub.url, prefix, cache) as early, opened(hub.url, prefix) as other:
        check_sound(early, dict(list(versions.items())[:1]), tmp_path / "out")
        other.repack(compression="small")
        for repo in (early, other):
            check_sound(repo, versions, tmp_path / "out")
        versions[early.commit(model.folder).id] = model.digests()
    for place in (cache, None):
        with opened(hub.url, prefix, place) as late:
            check_sound(late, versions, tmp_path / "out")
