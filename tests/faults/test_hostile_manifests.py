"""Forged manifests with matching IDs are refused by errors that name them; nothing is written."""

from __future__ import annotations

import shutil
import struct
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard

import casweights
import casweights.content.states  # torch's own memory is not what is measured here
from casweights import ErrorCode, IntegrityError, SnapshotId, StoreError
from casweights.config import MiB, StoreConfig
from casweights.format.envelope import ObjectKind, seal, unseal
from casweights.format.hashing import blake3_256
from casweights.format.names import snapshot_name
from casweights.stores.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZES = struct.Struct("<4I")
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
        payload = unseal(ObjectKind.SNAPSHOT, self.objects.get(snapshot_name(self.honest)), "it")
        _, split, _, _ = SIZES.unpack_from(payload)
        body = payload[SIZES.size :]
        self.manifest = msgpack.unpackb(zstandard.decompress(body[:split]))
        self.table = msgpack.unpackb(zstandard.decompress(body[split:]), strict_map_key=False)

    def add(self, manifest: Any = None, table: Any = None) -> SnapshotId:
        """Store any values as manifest and pack table; bytes count as already encoded."""
        encoded = [
            value if isinstance(value, bytes) else msgpack.packb(value)
            for value in (manifest or self.manifest, table or self.table)
        ]
        packed = [zstandard.compress(part) for part in encoded]
        sizes = [len(part) for pair in zip(encoded, packed, strict=True) for part in pair]
        return self.add_payload(encoded[0], SIZES.pack(*sizes) + b"".join(packed))

    def add_payload(self, manifest: bytes, payload: bytes) -> SnapshotId:
        snapshot_id = SnapshotId(blake3_256(manifest))
        name = snapshot_name(snapshot_id)
        self.objects.delete(name)
        self.objects.put(name, [seal(ObjectKind.SNAPSHOT, payload)])
        return snapshot_id

    def renamed(self, *paths: Any) -> dict[str, Any]:
        """Return the valid manifest with other paths for its files, in the right order."""
        rows = self.manifest["files"]
        names = sorted((*paths, "y", "z")[: len(rows)], key=str)
        files = [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]
        return {**self.manifest, "files": files}

    def resized(self, size: Any, ids: Any, header: Any = None) -> dict[str, Any]:
        """Return the valid manifest with another first file."""
        files = [["a", size, header, ids], *self.manifest["files"][1:]]
        return {**self.manifest, "files": files}


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    return Forger(tmp_path)


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


def assert_refused(forger: Forger, forged: SnapshotId, because: str = MANIFEST) -> None:
    """Check that no verb reads the version or changes any file around store and target."""
    (forger.root / "target").mkdir()
    (forger.root / "target" / "a").write_bytes(b"mine")
    before = everything_below(forger.root)
    for name, read in readers(forger.root).items():
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


HOSTILE_PATHS: dict[str, list[Any]] = {
    "parent": ["../x"],
    "parent inside": ["sub/../../x"],
    "parent at the end": ["sub/.."],
    "absolute": ["/tmp/casweights-was-here"],
    "two slashes": ["//x"],
    "empty": [""],
    "empty part": ["sub//x"],
    "empty last part": ["sub/"],
    "dot": ["."],
    "dot inside": ["sub/./x"],
    "NUL": ["a\0b"],
    "newline": ["a\nb"],
    "terminal escape": ["\x1b[2Ja"],
    "delete character": ["a\x7f"],
    "backslash": ["..\\x"],
    "drive": ["C:x"],
    "drive and root": ["c:/x"],
    "drive inside": ["sub/C:/x"],
    "too long": ["sub/" * 1500 + "x"],
    "far too long": ["x" * 8_000_000],
    "too deep": ["d/" * 1500 + "x"],
    "twice": ["a", "a"],
    "differ in case": ["a", "A"],
    "differ in case above": ["sub/a", "SUB/A"],
    "differ in Unicode form": ["caf\u00e9", "cafe\u0301"],
    "file and folder": ["a", "a/b"],
    "folder and file": ["a/b", "a"],
    "file and folder in another case": ["A", "a/b/c"],
    "bytes": [b"a"],
    "number": [1],
    "nil": [None],
}


@pytest.mark.parametrize("paths", HOSTILE_PATHS.values(), ids=HOSTILE_PATHS)
def test_hostile_path_is_refused(forger: Forger, paths: list[Any]) -> None:
    assert_refused(forger, forger.add(forger.renamed(*paths)))


def test_path_that_is_not_unicode_is_refused(forger: Forger) -> None:
    encoded = msgpack.packb(forger.renamed("@@@")).replace(b"@@@", b"\xed\xa0\x80")
    assert_refused(forger, forger.add(encoded))


def header(shape: list[int], stop: int, claimed: int | None = None) -> bytes:
    text = b'{"t": {"dtype": "U8", "shape": %s, "data_offsets": [0, %d]}}' % (
        str(shape).encode(),
        stop,
    )
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text


HUGE = 2**62
ABSURD_FILES: dict[str, tuple[Any, Any, Any]] = {
    "no chunks": (HUGE, b"", None),
    "one chunk": (HUGE, bytes(32), None),
    "one chunk too many": (1, bytes(64), None),
    "no size": (0, bytes(32), None),
    "part of an ID": (1, bytes(31), None),
    "negative": (-1, b"", None),
    "2^63": (2**63, b"", None),
    "2^64 - 1": (2**64 - 1, b"", None),
    "fraction": (1.0, bytes(32), None),
    "true": (True, bytes(32), None),
    "IDs as text": (1, "x" * 32, None),
    "no IDs": (1, None, None),
    "a header of 2^64 bytes": (HUGE, bytes(32), header([HUGE], HUGE, 2**64 - 1)),
    "a huge tensor": (HUGE + len(header([HUGE], HUGE)), bytes(32), header([HUGE], HUGE)),
    "a tensor of 2^124 elements": (HUGE, bytes(32), header([HUGE, HUGE], HUGE)),
    "more dimensions than bytes": (HUGE, bytes(32), header([HUGE] * 100_000, HUGE)),
    "a header longer than the file": (3, b"", header([], 1)),
    "a header as text": (100, bytes(32), "x" * 60),
    "a header of zeros": (100, bytes(32), b"\0" * 60),
}


@pytest.mark.parametrize("claim", ABSURD_FILES.values(), ids=ABSURD_FILES)
def test_absurd_file_is_refused(forger: Forger, claim: tuple[Any, Any, Any]) -> None:
    assert_refused(forger, forger.add(forger.resized(*claim)))


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


ABSURD_FIELDS: dict[str, dict[str, Any]] = {
    "time beyond the calendar": {"time": 2**63},
    "time before the calendar": {"time": -(2**63)},
    "fractional time": {"time": 1.5},
    "a thousand parents": {"parents": [bytes(32)] * 1000},
    "a short parent": {"parents": [bytes(31)]},
    "parents in one": {"parents": bytes(32)},
    "author in bytes": {"author": b"x"},
    "no message": {"message": None},
    "metadata is a list": {"metadata": []},
    "metadata holds bytes": {"metadata": {"a": b"x"}},
    "metadata has a key in bytes": {"metadata": {b"a": 1}},
    "metadata holds an extension": {"metadata": {"a": [msgpack.ExtType(5, b"x")]}},
    "metadata holds a timestamp": {"metadata": {"a": msgpack.Timestamp(0)}},
    "metadata nested deeply": {"metadata": nested(400)},
    "chunks of 1 byte": {"chunk_size": 1},
    "chunks of 2^40 bytes": {"chunk_size": 2**40},
    "chunks of no size": {"chunk_size": 0},
    "unknown digest": {"digest": "md5"},
    "another digest": {"digest": "xxh3-128"},
    "digest is a list": {"digest": ["blake3"]},
    "files is a map": {"files": {}},
    "a file is a number": {"files": [1]},
    "a file of three": {"files": [["a", 0, None]]},
    "unknown field": {"more": 1},
}


@pytest.mark.parametrize("fields", ABSURD_FIELDS.values(), ids=ABSURD_FIELDS)
def test_absurd_field_is_refused(forger: Forger, fields: dict[str, Any]) -> None:
    assert_refused(forger, forger.add({**forger.manifest, **fields}))


def test_another_manifest_under_the_id_of_a_version_is_refused(forger: Forger) -> None:
    """Even the owner of a store cannot pass other weights to a reader that knows the ID."""
    forged = forger.objects.get(snapshot_name(forger.add({**forger.manifest, "message": "forged"})))
    for info in forger.objects.list("snapshots/"):
        forger.objects.delete(info.name)
    forger.objects.put(snapshot_name(forger.honest), [forged])
    with casweights.open(forger.root / "store") as store:
        for ref in (forger.honest, "main", str(forger.honest)[:8]):
            with pytest.raises(IntegrityError, match=f"{forger.honest}.*do not match its ID"):
                store.checkout(ref, forger.root / "out")
        assert [str(forger.honest) in str(problem) for problem in store.verify().problems] == [True]
    assert not (forger.root / "out").exists()


def test_manifest_for_another_store_is_refused(forger: Forger) -> None:
    forged = forger.add({**forger.manifest, "chunk_size": 1 * MiB})
    assert_refused(forger, forged, "does not belong here")


NO_MANIFESTS = {
    "number": b"\x01",
    "list": b"\x90",
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "map of 2^32": b"\xdf\xff\xff\xff\xff",
    "bytes of 2^32": b"\xc6\xff\xff\xff\xff",
    "extension of 2^32": b"\xc9\xff\xff\xff\xff\x01",
    "reserved byte": b"\xc1",
    "nested deeply": b"\x91" * 100_000 + b"\x90",
    "two values": b"\x80\x80",
    "map with a list as key": b"\x81\x90\x01",
}


@pytest.mark.parametrize("encoded", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_bytes_that_are_not_a_manifest_are_refused(forger: Forger, encoded: bytes) -> None:
    assert_refused(forger, forger.add(encoded))


ABSURD_TABLES: dict[str, dict[str, Any]] = {
    "packs that are not there": {"pack": [2**40] * 3},
    "packs of 2^64 - 1": {"pack": [2**64 - 1] * 3},
    "one beyond the last pack": {"pack": [1] * 3},
    "negative packs": {"pack": [-1] * 3},
    "packs that are fractions": {"pack": [0.0] * 3},
    "packs that are no numbers": {"pack": ["0"] * 3},
    "packs that are false": {"pack": [False] * 3},
    "too few packs": {"pack": [0]},
    "too many packs": {"pack": [0] * 1000},
    "no packs": {"packs": b""},
    "part of a pack": {"packs": bytes(31)},
    "a pack and a part": {"packs": bytes(33)},
    "packs as text": {"packs": "x" * 32},
    "packs in a list": {"packs": [bytes(32)]},
    "a number": {"pack": 0},
    "nothing": {"pack": None},
}


@pytest.mark.parametrize("columns", ABSURD_TABLES.values(), ids=ABSURD_TABLES)
def test_absurd_pack_table_is_refused(forger: Forger, columns: dict[str, Any]) -> None:
    forged = forger.add({**forger.manifest, "message": "forged"}, table={**forger.table, **columns})
    assert_refused(forger, forged, "its pack table is not valid")


@pytest.mark.parametrize("key", ["packs", "pack"])
def test_pack_table_without_a_column_is_refused(forger: Forger, key: str) -> None:
    table = {other: column for other, column in forger.table.items() if other != key}
    forged = forger.add({**forger.manifest, "message": "forged"}, table=table)
    assert_refused(forger, forged, "its pack table is not valid")


MISLEADING_TABLES: dict[str, dict[str, Any]] = {
    "packs that are not there": {"packs": bytes(range(256)) * 4, "pack": [0, 7, 31]},
    "the same pack over and over": {"packs": bytes(32) * 1000, "pack": [999] * 3},
    "an extra column": {"offset": [2**63] * 3},
}


@pytest.mark.parametrize("columns", MISLEADING_TABLES.values(), ids=MISLEADING_TABLES)
def test_misleading_pack_table_does_no_harm(forger: Forger, columns: dict[str, Any]) -> None:
    """The table is only a hint: its content does not matter as long as its form is right."""
    forged = forger.add({**forger.manifest, "message": "forged"}, table={**forger.table, **columns})
    with casweights.open(forger.root / "store") as store, bounded_memory(16 * MiB):
        store.checkout(forged, forger.root / "out")
    assert everything_below(forger.root / "out") == everything_below(forger.root / "model")


@pytest.mark.parametrize("raw", [2**32 - 1, 300 << 20, 256 << 20, 0, 1])
@pytest.mark.parametrize("part", [0, 2])
def test_sizes_that_do_not_match_the_content_are_refused(
    forger: Forger, raw: int, part: int
) -> None:
    encoded = [msgpack.packb({**forger.manifest, "message": "forged"}), msgpack.packb(forger.table)]
    packed = [zstandard.compress(value) for value in encoded]
    sizes = [len(value) for pair in zip(encoded, packed, strict=True) for value in pair]
    sizes[part] = raw
    assert_refused(
        forger,
        forger.add_payload(encoded[0], SIZES.pack(*sizes) + packed[0] + packed[1]),
        "sizes do not add up|it claims",
    )


@pytest.mark.parametrize("declared", [False, True])
def test_compression_bomb_in_place_of_a_manifest_is_refused(forger: Forger, declared: bool) -> None:
    """32 KiB decode to 1 GiB of zeros; they declare no size, or that of a valid manifest."""
    encoded = msgpack.packb({**forger.manifest, "message": "forged"})
    table = zstandard.compress(msgpack.packb(forger.table))
    compressor = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(compressor.compress(bytes(MiB)) for _ in range(1024)) + compressor.flush()
    if declared:  # insert the field "frame content size" (RFC 8878, 3.1.1.1)
        bomb = bomb[:4] + b"\x80" + bomb[5:6] + len(encoded).to_bytes(4, "little") + bomb[6:]
    sizes = SIZES.pack(len(encoded), len(bomb), len(msgpack.packb(forger.table)), len(table))
    forged = forger.add_payload(encoded, sizes + bomb + table)
    assert_refused(forger, forged, "buffer is too small" if declared else "sizes do not add up")


@pytest.mark.parametrize("part", [0, 1])
def test_compression_bomb_that_declares_its_size_is_refused(forger: Forger, part: int) -> None:
    parts = [msgpack.packb({**forger.manifest, "message": "forged"}), msgpack.packb(forger.table)]
    manifest = parts[0]
    parts[part] = bytes(300 * MiB)
    packed = [zstandard.compress(value) for value in parts]
    sizes = [len(value) for pair in zip(parts, packed, strict=True) for value in pair]
    del parts
    forged = forger.add_payload(manifest, SIZES.pack(*sizes) + b"".join(packed))
    assert_refused(forger, forged, "it claims")


def test_version_larger_than_the_disk_is_refused_before_it_is_written(forger: Forger) -> None:
    """All of its chunks exist: it repeats one chunk of 64 MiB."""
    count = shutil.disk_usage(forger.root).free // (64 * MiB) + 1
    ids = forger.manifest["files"][0][3] * count
    forged = forger.add(forger.resized(count * 64 * MiB, ids))
    with casweights.open(forger.root / "store") as store, bounded_memory(32 * MiB):
        with pytest.raises(StoreError) as caught:
            store.checkout(forged, forger.root / "out")
        assert caught.value.code is ErrorCode.NO_SPACE
    assert list((forger.root / "out").iterdir()) == []
