"""Forged or lost headers and lists of chunks are refused by name, and fill no memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING

import msgpack
import pytest
from xxhash import xxh3_64_intdigest

import casweights
import casweights.content.states  # torch's own memory is not what is measured here
from casweights import ErrorCode, IntegrityError
from casweights.config import KiB, MiB, StoreConfig
from casweights.format.codecs import Encoding
from casweights.format.dtypes import DTYPES
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.file_entry import PAGE_IDS, FileEntry
from casweights.format.hashing import blake3_256, checksum
from casweights.format.manifest import EncodedSnapshot, Manifest
from casweights.format.names import pack_name, snapshot_name
from casweights.format.pack import Frame, build_index
from casweights.format.safetensors import build_header, parse_header
from casweights.ids import ChunkId, SnapshotId
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.faults import flip_bit
from tests.forged_chains import CONFIG
from tests.forged_manifests import bounded_memory
from tests.structure import sealed_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from casweights import Repository
    from casweights.stores.base import ObjectStore

# Each of these names begins a bundle, so that each tensor has a chunk.
NAMES = (f"{n:0800}" for n in count() if xxh3_64_intdigest(f"{n:0800}".encode()) % 64 == 0)
TENSORS = [(name, DTYPES["U8"], (5,)) for name in islice(NAMES, 200)]
HEADER = build_header(TENSORS, {})  # over three chunks
DATA = [n.to_bytes(5, "little") for n in range(len(TENSORS))]
FILE = FileEntry(
    "model.safetensors",
    len(HEADER) + 5 * len(TENSORS),
    HEADER,
    parse_header(HEADER, 5 * len(TENSORS)),
    tuple(ChunkId(blake3_256(raw)) for raw in DATA),
)
STRUCTURE = dict(FILE.structure(CONFIG))
PLACES = {"header": 0, "end of header": 2, "page": 3}

READERS: dict[str, Callable[[Repository, SnapshotId, Path], object]] = {
    "checkout": lambda store, ref, root: store.checkout(ref, root / "out"),
    "load": lambda store, ref, _: store.load(ref),
    "read": lambda store, ref, _: b"".join(store.read(ref, FILE.path)),
    "diff": lambda store, ref, _: store.diff(ref, ref),
}


def test_the_header_has_three_chunks() -> None:
    assert [len(content) for content in STRUCTURE.values()] == [
        *[64 * KiB] * 2,
        len(HEADER) - 128 * KiB,
        len(TENSORS) * 32,
    ]


def add_frames(store: ObjectStore, frames: Mapping[bytes, tuple[int, int, bytes]]) -> str:
    """Add a pack; for each chunk its raw size, its encoding, and its stored bytes."""
    listed, offset = [], PREFIX_SIZE
    for chunk, (size, encoding, payload) in frames.items():
        frame = (ChunkId(chunk), size, encoding, offset, len(payload), checksum(payload))
        listed.append(Frame(*frame))
        offset += len(payload)
    pack, ending = build_index(listed)
    payloads = (payload for _, _, payload in frames.values())
    store.put(pack_name(pack), [prefix(ObjectKind.PACK), *payloads, ending])
    return pack_name(pack)


def raw(content: bytes) -> tuple[int, int, bytes]:
    return len(content), Encoding.RAW, content


def sound() -> dict[bytes, tuple[int, int, bytes]]:
    """Return the frames of `FILE`."""
    frames: dict[bytes, tuple[int, int, bytes]] = {c: raw(s) for c, s in STRUCTURE.items()}
    return frames | {blake3_256(data): raw(data) for data in DATA}


def add_version(store: ObjectStore, *files: FileEntry, config: StoreConfig = CONFIG) -> SnapshotId:
    """Add a version whose table names a pack that is not there."""
    with casweights.open(MemoryStore(), create=True) as other:
        template = other.commit({})
    fields = {name: getattr(template, name) for name in Manifest.__dataclass_fields__}
    snapshot, encoded = EncodedSnapshot.of(Manifest(**{**fields, "files": files, "config": config}))
    table = {"packs": bytes(32), "pack": [0] * len(snapshot.stored_chunks())}
    store.put(snapshot_name(snapshot.id), [sealed_snapshot(encoded, msgpack.packb(table))])
    return snapshot.id


def create(config: StoreConfig = CONFIG) -> MemoryStore:
    store = MemoryStore()
    casweights.open(store, create=True, config=config).close()
    return store


def assert_refused(
    store: ObjectStore, version: SnapshotId, root: Path, code: ErrorCode, why: str
) -> None:
    """Check that verbs that need the structure name the version, and that others work.

    A chunk whose only frame turned out to be damaged counts as missing from then on.
    """
    for name, read in READERS.items():
        with (
            casweights.open(store) as repo,
            bounded_memory(16 * MiB),
            pytest.raises(IntegrityError, match=why) as caught,
        ):
            read(repo, version, root)
        assert caught.value.code in {code, ErrorCode.MISSING_CHUNK}, name
        assert str(version) in str(caught.value), name
        assert len(str(caught.value)) < 2000
    if (root / "out").exists():
        assert list((root / "out").iterdir()) == []
    with casweights.open(store) as repo, bounded_memory(16 * MiB):
        assert repo.snapshot(version).size == repo.stats().versions[0].nbytes
        assert [found.id for found in repo.log(version)] == [version]
        assert any(str(version) in str(problem) for problem in repo.verify().problems)


def test_a_forged_version_with_sound_structure_is_read(tmp_path: Path) -> None:
    """Thus the versions below are refused only because of what is changed in them."""
    store = create()
    add_frames(store, sound())
    version = add_version(store, FILE)
    with casweights.open(store) as repo:
        assert b"".join(repo.read(version, FILE.path)) == HEADER + b"".join(DATA)
        repo.checkout(version, tmp_path / "out")
        assert len(repo.load(version)) == len(TENSORS)
        assert repo.verify().problems == ()


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_missing_structure_is_named(tmp_path: Path, place: int) -> None:
    store, frames = create(), sound()
    lost = list(STRUCTURE)[place]
    del frames[lost]
    add_frames(store, frames)
    why = f"no pack contains the chunk {lost}"
    assert_refused(store, add_version(store, FILE), tmp_path, ErrorCode.MISSING_CHUNK, why)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("size", [1, 64 * MiB])
def test_structure_of_another_size_is_named(tmp_path: Path, place: int, size: int) -> None:
    store, frames = create(), sound()
    wrong = list(STRUCTURE)[place]
    frames[wrong] = (size, Encoding.ZSTD, b"x")
    add_frames(store, frames)
    why = f"chunk {wrong} has {size} bytes instead of {len(STRUCTURE[wrong])}"
    assert_refused(store, add_version(store, FILE), tmp_path, ErrorCode.CORRUPT_OBJECT, why)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("size", [1, 64 * MiB])
def test_a_frame_of_another_size_beside_the_right_one_does_no_harm(place: int, size: int) -> None:
    store = create()
    add_frames(store, sound())
    add_frames(store, {list(STRUCTURE)[place]: (size, Encoding.ZSTD, b"x")})
    version = add_version(store, FILE)
    for _ in range(2):
        with casweights.open(store) as repo, bounded_memory(16 * MiB):
            assert b"".join(repo.read(version, FILE.path)) == HEADER + b"".join(DATA)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_structure_with_another_digest_is_named(tmp_path: Path, place: int) -> None:
    """The frame is sound; its content is not that of the ID."""
    store, frames = create(), sound()
    wrong, content = list(STRUCTURE.items())[place]
    frames[wrong] = raw(content[:-1] + b"?")
    add_frames(store, frames)
    version = add_version(store, FILE)
    assert_refused(store, version, tmp_path, ErrorCode.CORRUPT_OBJECT, str(wrong))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_damaged_structure_is_named(tmp_path: Path, place: int) -> None:
    store, frames = create(), sound()
    damaged, content = list(STRUCTURE.items())[place]
    frames = {damaged: raw(content)} | frames  # its frame is the first
    flip_bit(store, add_frames(store, frames), 8 * (PREFIX_SIZE + 3))
    version = add_version(store, FILE)
    assert_refused(store, version, tmp_path, ErrorCode.CORRUPT_OBJECT, str(damaged))


def test_a_page_that_is_a_chunk_of_another_size_is_named(tmp_path: Path) -> None:
    store = create()
    large = bytes(range(256)) * 256
    ids = (ChunkId(blake3_256(large)), ChunkId(blake3_256(b"end")))
    file = FileEntry(FILE.path, len(large) + 3, None, None, ids)
    row = replace(file.row(CONFIG), ids=(ids[0],))
    file._row = row
    add_frames(store, {blake3_256(content): raw(content) for content in (large, b"end")})
    version = add_version(store, file)
    readers = {name: READERS[name] for name in ("checkout", "read", "diff")}
    for read in readers.values():
        with (
            casweights.open(store) as repo,
            pytest.raises(IntegrityError, match=f"{version}.*has 65536 bytes instead of 64"),
        ):
            read(repo, version, tmp_path)
    with casweights.open(store) as repo:
        assert [str(version) in str(problem) for problem in repo.verify().problems] == [True]


def test_a_page_may_be_a_chunk_of_a_file(tmp_path: Path) -> None:
    """A list of chunks that is also the content of a file is stored once."""
    store = CountingStore(MemoryStore())
    source = tmp_path / "source"
    source.mkdir()
    large = bytes(range(256)) * 256 + b"end"
    page = blake3_256(large[: 64 * KiB]) + blake3_256(b"end")
    (source / "large").write_bytes(large)
    (source / "page").write_bytes(page)
    with casweights.open(store, create=True, config=CONFIG) as repo:
        version = repo.commit(source)
        assert list(version.structure()) == [blake3_256(page)]
        assert blake3_256(page) in version.chunks()
        repo.repack()
    with (
        casweights.open(store) as repo,
        casweights.open(MemoryStore(), create=True, config=CONFIG) as other,
    ):
        repo.push(other, history=False)
        for each in (repo, other):
            assert each.verify().problems == ()
            assert b"".join(each.read(version, "page")) == page
            assert b"".join(each.read(version, "large")) == large


LARGE = StoreConfig(chunk_size=64 * MiB)


@pytest.mark.parametrize("stored", [None, 1, 64 * MiB - 1], ids=["missing", "small", "almost"])
def test_a_header_of_100_mb_is_not_allocated_before_its_frames_are_known(
    tmp_path: Path, stored: int | None
) -> None:
    store, ids = create(LARGE), (ChunkId(b"h" * 32), ChunkId(b"i" * 32))
    if stored is not None:
        add_frames(store, dict.fromkeys(ids, (stored, Encoding.ZSTD, b"x")))
    row = FileEntry(FILE.path, 2**62, None, None, ()).row(LARGE)
    file = FileEntry(FILE.path, 2**62, None, None, ())
    file._row = replace(row, header_size=100_000_008, header=ids, count=0, ids=())
    version = add_version(store, file, config=LARGE)
    code = ErrorCode.MISSING_CHUNK if stored is None else ErrorCode.CORRUPT_OBJECT
    assert_refused(store, version, tmp_path, code, str(ids[0]))


def test_one_page_many_times_shares_its_ids() -> None:
    """A quarter of a million chunks, from one page: their IDs need no memory of their own."""
    store, chunk = create(), ChunkId(blake3_256(bytes(64 * KiB)))
    page = chunk * PAGE_IDS
    add_frames(store, {chunk: raw(bytes(64 * KiB)), blake3_256(page): raw(page)})
    pages = 64
    file = FileEntry(FILE.path, pages * PAGE_IDS * 64 * KiB, None, None, ())
    row = replace(
        FileEntry("", 0, None, None, ()).row(CONFIG),
        path=file.path,
        size=file.size,
        count=pages * PAGE_IDS,
        ids=(ChunkId(blake3_256(page)),) * pages,
    )
    file._row = row
    version = add_version(store, file)
    with casweights.open(store) as repo, bounded_memory(3 * 8 * pages * PAGE_IDS):
        assert repo.snapshot(version).files[0].chunks[-1] == chunk
