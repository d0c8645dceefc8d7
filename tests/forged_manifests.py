"""Build stores with forged manifests under matching IDs, and check that readers refuse them."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard

import casweights
import casweights.content.states  # torch's own memory is not what is measured here
from casweights import ErrorCode, IntegrityError, SnapshotId
from casweights.config import MiB, StoreConfig
from casweights.format.hashing import blake3_256
from casweights.format.names import snapshot_name
from casweights.format.pack import TRAILER_SIZE
from casweights.format.snapshot import end_span
from casweights.stores.local import LocalStore
from tests import forged_chains
from tests.structure import sealed_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from pathlib import Path

WEIGHTS = b"weights that must never leave the store" * 10
LARGE_CHUNKS = StoreConfig(chunk_size=64 * MiB)


class Forger:
    """A store with one valid version of three files, and methods that add forged ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        model = root / "model"
        model.mkdir()
        for name in ("a", "b", "c"):
            (model / name).write_bytes(name.encode() + WEIGHTS)
        with casweights.open(root / "store", create=True, config=LARGE_CHUNKS) as store:
            self.honest = store.commit(model).id
        self.objects = LocalStore(root / "store")
        data = self.objects.get(snapshot_name(self.honest))
        start, stop = end_span(data[-TRAILER_SIZE:], len(data), "it")
        index = msgpack.unpackb(data[start:stop])
        self.manifest = msgpack.unpackb(zstandard.decompress(index["manifest"]))
        own = msgpack.unpackb(zstandard.decompress(index["table"]), strict_map_key=False)
        self.table = {**own, "packs": self.honest, "carried": [0]}  # forged versions are bare

    def add(self, manifest: Any = None, table: Any = None) -> SnapshotId:
        """Store any values as manifest and pack table; bytes count as already encoded."""
        encoded = [
            value if isinstance(value, bytes) else msgpack.packb(value)
            for value in (manifest or self.manifest, table or self.table)
        ]
        return self.add_object(encoded[0], sealed_snapshot(encoded[0], encoded[1]))

    def add_object(self, manifest: bytes, data: bytes) -> SnapshotId:
        """Store an object under the ID of a manifest."""
        snapshot_id = SnapshotId(blake3_256(manifest))
        name = snapshot_name(snapshot_id)
        self.objects.delete(name)
        self.objects.put(name, [data])
        return snapshot_id

    def renamed(self, *paths: Any) -> dict[str, Any]:
        """Return the valid manifest with other paths for its files, in the right order."""
        rows = self.manifest["files"]
        names = sorted((*paths, "y", "z")[: len(rows)], key=str)
        files = [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]
        return {**self.manifest, "files": files}

    def resized(self, *row: Any) -> dict[str, Any]:
        """Return the valid manifest with another row, without its path, for its first file."""
        return {**self.manifest, "files": [["a", *row], *self.manifest["files"][1:]]}

    def store(self, *contents: bytes) -> bytes:
        """Store chunks in a pack that no table names; return their IDs, joined."""
        forged_chains.add_pack(self.objects, [forged_chains.whole(raw) for raw in contents])
        return b"".join(map(blake3_256, contents))

    def add_with_structure(self, *row: Any) -> SnapshotId:
        """Store the valid manifest with another first file that has a structure chunk."""
        table = {**self.table, "pack": [0, *self.table["pack"]], "structure": 1}
        return self.add(self.resized(*row), table)


def everything_below(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


@contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def readers(root: Path) -> dict[str, Callable[[casweights.Repository, SnapshotId], object]]:
    return {
        "checkout": lambda store, ref: store.checkout(ref, root / "target/out"),
        "checkout --delete": lambda store, ref: store.checkout(ref, root / "target", delete=True),
        "partial": lambda store, ref: store.checkout(ref, root / "target", include=["*"]),
        "load": lambda store, ref: store.load(ref),
        "tensor": lambda store, ref: store.tensor(ref, "t"),
        "read": lambda store, ref: b"".join(store.read(ref, "a")),
        "snapshot": lambda store, ref: store.snapshot(ref),
        "log": lambda store, ref: list(store.log(ref)),
        "diff": lambda store, ref: store.diff(ref, ref),
        "tag": lambda store, ref: store.tag("v1", ref),
        "branch": lambda store, ref: store.branch("other", ref),
    }


MANIFEST = "the manifest of snapshot"


# These read no headers and no lists of chunks.
LISTING = ("snapshot", "log", "tag", "branch")


def assert_refused(
    forger: Forger, forged: SnapshotId, because: str = MANIFEST, *, listing: Container[str] = ()
) -> None:
    """Check that no verb reads the version or changes any file around store and target.

    Args:
        forger: The store.
        forged: The version.
        because: A pattern that the errors match.
        listing: The verbs that are not tried.
    """
    (forger.root / "target").mkdir()
    (forger.root / "target" / "a").write_bytes(b"mine")
    before = everything_below(forger.root)
    for name, read in readers(forger.root).items():
        if name in listing:
            continue
        with (
            casweights.open(forger.root / "store") as store,
            bounded_memory(32 * MiB),
            pytest.raises(IntegrityError, match=because) as caught,
        ):
            read(store, forged)
        assert caught.value.code is ErrorCode.CORRUPT_OBJECT, name
        assert str(forged) in str(caught.value), name
        assert len(str(caught.value)) < 2000
        assert everything_below(forger.root) == before, name
    with casweights.open(forger.root / "store") as store:
        problems = store.verify().problems
        assert [str(forged) in str(problem) for problem in problems] == [True]
        store.checkout(forger.honest, forger.root / "honest")
