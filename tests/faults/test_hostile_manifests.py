"""Forged manifests with matching IDs are refused by errors that name them; nothing is written."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import casweights
from casweights import ErrorCode, IntegrityError, StoreError
from casweights.config import MiB
from casweights.format.names import snapshot_name
from tests.forged_manifests import (
    LISTING,
    Forger,
    assert_refused,
    bounded_memory,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    return Forger(tmp_path)


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
OPAQUE = (None, b"")
ONE = (1, bytes(32))
NONE = (0, b"")
CHUNK = 64 * MiB
PAGE = bytes(32)
ABSURD_FILES: dict[str, tuple[Any, ...]] = {
    "no chunks": (HUGE, *OPAQUE, *NONE),
    "one chunk": (HUGE, *OPAQUE, *ONE),
    "one chunk too many": (1, *OPAQUE, 2, bytes(64)),
    "one ID too many": (1, *OPAQUE, 1, bytes(64)),
    "no size": (0, *OPAQUE, *ONE),
    "part of an ID": (1, *OPAQUE, 1, bytes(31)),
    "negative": (-1, *OPAQUE, *NONE),
    "2^63": (2**63, *OPAQUE, *NONE),
    "2^64 - 1": (2**64 - 1, *OPAQUE, *NONE),
    "fraction": (1.0, *OPAQUE, *ONE),
    "true": (True, *OPAQUE, *ONE),
    "IDs as text": (1, *OPAQUE, 1, "x" * 32),
    "no IDs": (1, *OPAQUE, 1, None),
    "a negative number of chunks": (1, *OPAQUE, -1, b""),
    "a fraction of chunks": (1, *OPAQUE, 1.0, bytes(32)),
    "no number of chunks": (1, *OPAQUE, None, bytes(32)),
    "more chunks than pages": (4097 * CHUNK, *OPAQUE, 4097, PAGE),
    "more pages than chunks": (4096 * CHUNK, *OPAQUE, 4096, PAGE * 2),
    "2^62 bytes in one page": (HUGE, *OPAQUE, HUGE // CHUNK, PAGE),
    "one page 2,049 times": (2049 * 4096 * CHUNK, *OPAQUE, 2049 * 4096, PAGE * 2049),
    "one page of two sizes": (4097 * CHUNK, *OPAQUE, 4097, PAGE * 2),
    "a header of 2^62 bytes": (HUGE, HUGE, bytes(32), *ONE),
    "a header that is too long": (HUGE, 100_000_009, bytes(32) + b"x" * 32, *ONE),
    "a header in too few pieces": (HUGE, CHUNK + 1, bytes(32), *ONE),
    "a header in too many pieces": (100, 60, bytes(64), *ONE),
    "a header in no piece": (100, 60, b"", *ONE),
    "a piece of no header": (100, None, bytes(32), *ONE),
    "a piece of two sizes": (HUGE, CHUNK + 1, bytes(64), *ONE),
    "a header without length bytes": (100, 7, bytes(32), *ONE),
    "a negative header": (100, -1, b"", *ONE),
    "a header longer than the file": (3, len(header([], 1)), bytes(32), *NONE),
    "a header as text": (100, 60, "x" * 32, *ONE),
    "a header in the row": (100, b"\0" * 60, bytes(32), *ONE),
    "a header that is true": (100, True, bytes(32), *ONE),
    "a row of format 1": (1, None, bytes(32)),
    "a row with an unknown element": (0, *OPAQUE, *NONE, None),
}


@pytest.mark.parametrize("claim", ABSURD_FILES.values(), ids=ABSURD_FILES)
def test_absurd_file_is_refused(forger: Forger, claim: tuple[Any, ...]) -> None:
    assert_refused(forger, forger.add(forger.resized(*claim)))


ABSURD_HEADERS: dict[str, tuple[int, bytes]] = {
    "a header of 2^64 bytes": (HUGE, header([HUGE], HUGE, 2**64 - 1)),
    "a huge tensor": (HUGE + len(header([HUGE], HUGE)), header([HUGE], HUGE)),
    "a tensor of 2^124 elements": (HUGE, header([HUGE, HUGE], HUGE)),
    "more dimensions than bytes": (HUGE, header([HUGE] * 100_000, HUGE)),
    "a header of zeros": (100, b"\0" * 60),
    "a tensor of another size": (100, header([1], 1)),
}


@pytest.mark.parametrize(("size", "raw"), ABSURD_HEADERS.values(), ids=ABSURD_HEADERS)
def test_absurd_header_is_refused(forger: Forger, size: int, raw: bytes) -> None:
    """It is stored as the manifest says, so only verbs that read headers look at it."""
    forged = forger.add_with_structure(size, len(raw), forger.store(raw), *ONE)
    assert_refused(forger, forged, listing=LISTING)


def test_headers_of_a_million_bytes_do_not_fill_the_memory(forger: Forger) -> None:
    """A header of 1 MB in 2,000 files: more than a version may have, in one small chunk."""
    raw = header([1], 1).ljust(1_000_000)
    row = [1_000_001, len(raw), forger.store(raw), *ONE]
    files = [[f"{n:04}", *row] for n in range(2000)]
    assert_refused(forger, forger.add({**forger.manifest, "files": files}))


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
    "a number of zero": {"number": 0},
    "a number of 2^63": {"number": 2**63},
    "a negative number": {"number": -1},
    "a fractional number": {"number": 1.0},
    "no number": {"number": None},
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


def test_version_larger_than_the_disk_is_refused_before_it_is_written(forger: Forger) -> None:
    """All of its chunks exist: it repeats one chunk of 64 MiB."""
    count = shutil.disk_usage(forger.root).free // CHUNK + 1
    ids = forger.manifest["files"][0][5] * count
    pages = forger.store(*(ids[at : at + 4096 * 32] for at in range(0, len(ids), 4096 * 32)))
    distinct = len({pages[at : at + 32] for at in range(0, len(pages), 32)})
    table = {**forger.table, "pack": [0] * (distinct + 3)}
    forged = forger.add(forger.resized(count * CHUNK, *OPAQUE, count, pages), table)
    with casweights.open(forger.root / "store") as store, bounded_memory(32 * MiB):
        with pytest.raises(StoreError) as caught:
            store.checkout(forged, forger.root / "out")
        assert caught.value.code is ErrorCode.NO_SPACE
    assert list((forger.root / "out").iterdir()) == []
