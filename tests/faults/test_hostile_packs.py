"""Forged packs with matching IDs and checksums are named, and no large memory is allocated."""

from __future__ import annotations

import resource
import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zstandard

import casweights
from casweights import IntegrityError
from casweights.config import KiB, MiB, StoreConfig
from casweights.format.codecs import Encoding, decode
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.hashing import blake3_256, checksum
from casweights.format.names import pack_name, snapshot_name
from casweights.format.pack import Frame, build_index
from casweights.format.parts import Part, join
from casweights.format.planes import encode_planes
from casweights.ids import ChunkId, PackId
from casweights.kernels.reference.bits import varint
from casweights.stores.local import LocalStore
from tests import forged_chains
from tests.forged_manifests import bounded_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights import SnapshotId

CHUNK = bytes(range(64)) * 1024
CHUNK_ID = ChunkId(blake3_256(CHUNK))
CONFIG = StoreConfig(chunk_size=64 * KiB)


@pytest.fixture
def objects(tmp_path: Path) -> LocalStore:
    """A valid store of one version."""
    with casweights.open(tmp_path / "store", create=True, config=CONFIG) as store:
        (tmp_path / "honest.bin").write_bytes(b"honest")
        store.commit(tmp_path / "honest.bin")
    return LocalStore(tmp_path / "store")


def frame_of(payload: bytes, encoding: int) -> Frame:
    return Frame(CHUNK_ID, len(CHUNK), encoding, PREFIX_SIZE, len(payload), checksum(payload))


def add_version(objects: LocalStore, frame: Frame, payload: bytes) -> tuple[SnapshotId, str]:
    """Add a version of one file, whose chunk is stored as this frame; return ID and pack name."""
    pack, ending = build_index([frame])
    objects.put(pack_name(pack), [prefix(ObjectKind.PACK), payload, ending])
    return forged_chains.add_version(objects, CHUNK, [pack]), pack_name(pack)


def streamed(content: bytes, times: int = 1) -> bytes:
    """Return a zstd frame that does not declare the size of its content."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(content) for _ in range(times)) + compressor.flush()


def declaring(frame: bytes, size: int, window: int | None = None) -> bytes:
    """Return a zstd frame that declares a content size and a window (RFC 8878, 3.1.1.1)."""
    descriptor = frame[5:6] if window is None else bytes((window - 10 << 3,))
    return frame[:4] + b"\x80" + descriptor + size.to_bytes(4, "little") + frame[6:]


def planes(width: int, *bodies: tuple[int, bytes], claims: int | None = None) -> bytes:
    heads = [
        bytes((mode,)) + (len(body) if claims is None else claims).to_bytes(4, "little")
        for mode, body in bodies
    ]
    return bytes((width,)) + b"".join(heads) + b"".join(body for _, body in bodies)


SKIPPABLE = b"\x50\x2a\x4d\x18" + (2**32 - 1).to_bytes(4, "little")
BOMB = streamed(bytes(MiB), 1024)
ZEROS = bytes(len(CHUNK))
HALF = bytes(len(CHUNK) // 2)

HOSTILE_FRAMES: dict[str, tuple[int, bytes]] = {
    "raw that is too short": (Encoding.RAW, CHUNK[:-1]),
    "raw of other bytes": (Encoding.RAW, bytes(len(CHUNK))),
    "nothing": (Encoding.RAW, b""),
    "zstd of nothing": (Encoding.ZSTD, b""),
    "zstd of other text": (Encoding.ZSTD, b"not zstd"),
    "zstd without a size": (Encoding.ZSTD, streamed(CHUNK)),
    "zstd of other bytes": (Encoding.ZSTD, zstandard.compress(bytes(len(CHUNK)))),
    "zstd of too little": (Encoding.ZSTD, zstandard.compress(CHUNK[:-1])),
    "zstd of too much": (Encoding.ZSTD, zstandard.compress(CHUNK + b"x")),
    "zstd that is cut": (Encoding.ZSTD, zstandard.compress(CHUNK)[:-1]),
    "zstd that declares too much": (Encoding.ZSTD, declaring(streamed(b"less"), len(CHUNK))),
    "bomb": (Encoding.ZSTD, BOMB),
    "bomb that hides its size": (Encoding.ZSTD, declaring(BOMB, len(CHUNK))),
    "window of 1 GiB": (Encoding.ZSTD, declaring(streamed(ZEROS), len(CHUNK), window=30)),
    "window of 1 GiB, cut": (Encoding.ZSTD, declaring(streamed(ZEROS), len(CHUNK), window=30)[:-1]),
    "window of 2 TiB": (Encoding.ZSTD, declaring(streamed(ZEROS), len(CHUNK), window=41)),
    "skippable frame": (Encoding.ZSTD, SKIPPABLE),
    "planes of nothing": (Encoding.PLANES, b""),
    "planes of no width": (Encoding.PLANES, planes(0)),
    "planes of odd width": (Encoding.PLANES, planes(3, *[(0, b"")] * 3)),
    "planes of width 255": (Encoding.PLANES, b"\xff" * 2000),
    "planes cut in the header": (Encoding.PLANES, b"\x08\0"),
    "planes of an unknown mode": (Encoding.PLANES, planes(2, (2, HALF), (0, b""))),
    "planes that are too short": (Encoding.PLANES, planes(2, (0, HALF[:-1]), (0, HALF[:-10]))),
    "planes that claim 4 GiB": (Encoding.PLANES, planes(1, (0, CHUNK[:9]), claims=2**32 - 1)),
    "coded planes that claim 4 GiB": (Encoding.PLANES, planes(1, (1, BOMB), claims=2**32 - 1)),
    "plane that is a bomb": (Encoding.PLANES, planes(1, (1, BOMB))),
    "plane that hides a bomb": (Encoding.PLANES, planes(1, (1, declaring(BOMB, len(CHUNK))))),
    "planes with extra bytes": (Encoding.PLANES, encode_planes(CHUNK, 1) + b"more"),
    "parts that are missing": (Encoding.PARTS, b"\xff"),
    "part that is a bomb": (
        Encoding.PARTS,
        join([Part(1, len(HALF), BOMB), Part(1, len(HALF), b"")]),
    ),
    "parts in parts": (Encoding.PARTS, join(2 * [Part(Encoding.PARTS, len(HALF), b"")])),
    "records that are missing": (Encoding.RECORDS, b"\1\0\1"),
    "record of 2^62 bytes": (Encoding.RECORDS, b"\1\0" + varint(1 << 62) + b"\1\0\1"),
    "2^62 records": (Encoding.RECORDS, b"\1\0\1\1\0" + varint(1 << 62)),
    "encoding of the future": (6, CHUNK),
    "unknown encoding": (255, CHUNK),
}


@pytest.mark.parametrize("hostile", HOSTILE_FRAMES.values(), ids=HOSTILE_FRAMES)
def test_hostile_frame_is_refused(
    tmp_path: Path, objects: LocalStore, hostile: tuple[int, bytes]
) -> None:
    encoding, payload = hostile
    assert len(payload) <= len(CHUNK), "the case must not be refused for its size alone"
    assert_refused(tmp_path, objects, frame_of(payload, encoding), payload)


@contextmanager
def bounded_address_space(extra: int) -> Iterator[None]:
    """Limit the address space, because Python's accounting does not see what zstd allocates."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("hostile", HOSTILE_FRAMES.values(), ids=HOSTILE_FRAMES)
def test_hostile_frame_needs_little_memory(hostile: tuple[int, bytes]) -> None:
    encoding, payload = hostile
    out = memoryview(bytearray(len(CHUNK)))
    with bounded_address_space(80 * MiB):  # one window of the largest size, and a little more
        try:
            decode(encoding, payload, out)
        except ValueError:
            return
    assert out != CHUNK


def test_frame_with_a_base_that_its_encoding_does_not_use_is_refused(
    tmp_path: Path, objects: LocalStore
) -> None:
    frame = frame_of(CHUNK, Encoding.RAW)._replace(base=CHUNK_ID)
    assert_refused(tmp_path, objects, frame, CHUNK)


def assert_refused(root: Path, objects: LocalStore, frame: Frame, payload: bytes) -> None:
    forged, pack = add_version(objects, frame, payload)
    with casweights.open(objects.root) as store, bounded_memory(16 * MiB):
        with pytest.raises(IntegrityError, match=pack):
            store.checkout(forged, root / "out")
        with pytest.raises(IntegrityError, match=pack):
            b"".join(store.read(forged, "chunk.bin"))
        assert list((root / "out").iterdir()) == []
        problems = [str(problem) for problem in store.verify().problems]
    assert len(problems) == 2
    assert pack in problems[0]
    assert f"{snapshot_name(forged)}: no sound frame holds its chunk {CHUNK_ID}" == problems[1]


def test_a_frame_built_like_the_forged_ones_is_read_if_valid(
    tmp_path: Path, objects: LocalStore
) -> None:
    payload = declaring(streamed(CHUNK), len(CHUNK), window=20)
    forged, _ = add_version(objects, frame_of(payload, Encoding.ZSTD), payload)
    with casweights.open(objects.root) as store:
        store.checkout(forged, tmp_path / "out")
        assert store.verify().problems == ()
    assert (tmp_path / "out/chunk.bin").read_bytes() == CHUNK


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def index_of(**columns: Any) -> dict[str, Any]:
    """Return the index of a pack with `CHUNK` uncompressed, with some columns replaced."""
    return {
        "digest_size": 32,
        "chunk": CHUNK_ID,
        "raw_size": u32(len(CHUNK)),
        "size": u32(len(CHUNK)),
        "encoding": bytes(1),
        "checksum": checksum(CHUNK),
        "based": b"\0",
        "base": b"",
        **columns,
    }


ABSURD_INDEXES: dict[str, Any] = {
    "raw size of 2^32 - 1": index_of(raw_size=u32(2**32 - 1)),
    "raw size below the frame's": index_of(raw_size=u32(1)),
    "raw size as a number": index_of(raw_size=len(CHUNK)),
    "frame of 2^32 - 1": index_of(size=u32(2**32 - 1)),
    "frame that ends beyond": index_of(size=u32(len(CHUNK) + 1), raw_size=u32(len(CHUNK) + 1)),
    "frame that ends before": index_of(size=u32(len(CHUNK) - 1)),
    "frames that cancel out": index_of(size=u32(2**32 - 1, len(CHUNK) + 1)),
    "part of a size": index_of(size=bytes(3)),
    "size as text": index_of(size="1234"),
    "more sizes than chunks": index_of(size=u32(len(CHUNK), *[0] * 100_000)),
    "more chunks than sizes": index_of(chunk=CHUNK_ID * 1000),
    "digests of 1 byte": index_of(digest_size=1),
    "digests of 0 bytes": index_of(digest_size=0),
    "digests of 2^62 bytes": index_of(digest_size=2**62),
    "digest size as text": index_of(digest_size="32"),
    "part of an ID": index_of(chunk=CHUNK_ID[:31]),
    "IDs as text": index_of(chunk="x" * 32),
    "no encoding": index_of(encoding=b""),
    "short checksum": index_of(checksum=bytes(7)),
    "base of a missing frame": index_of(based=b"\2", base=CHUNK_ID),
    "base as a list": index_of(based=b"\1", base=[CHUNK_ID]),
    "short base": index_of(based=b"\1", base=b"x"),
    "very many bits": index_of(based=bytes(1_000_000)),
    "very many bases": index_of(based=b"\1", base=CHUNK_ID * 10_000),
    "no columns": {},
    "a list": [],
    "a number": 1,
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "map of 2^32": b"\xdf\xff\xff\xff\xff",
    "bytes of 2^32": b"\xc6\xff\xff\xff\xff",
    "nested deeply": b"\x91" * 100_000 + b"\x90",
    "no msgpack": b"\xc1",
}


@pytest.mark.parametrize("index", ABSURD_INDEXES.values(), ids=ABSURD_INDEXES)
def test_absurd_index_is_refused(tmp_path: Path, objects: LocalStore, index: Any) -> None:
    encoded = index if isinstance(index, bytes) else msgpack.packb(index)
    name = pack_name(PackId(blake3_256(prefix(ObjectKind.PACK) + encoded)))
    trailer = len(encoded).to_bytes(4, "little") + b"cidx"
    objects.put(name, [prefix(ObjectKind.PACK), CHUNK, encoded, trailer])
    assert_pack_is_named_and_passed_over(tmp_path, objects, name)


@pytest.mark.parametrize("claimed", [0, 1, 2**31, 2**32 - 1])
def test_absurd_trailer_is_refused(tmp_path: Path, objects: LocalStore, claimed: int) -> None:
    encoded = msgpack.packb(index_of())
    name = pack_name(PackId(blake3_256(prefix(ObjectKind.PACK) + encoded)))
    trailer = claimed.to_bytes(4, "little") + b"cidx"
    objects.put(name, [prefix(ObjectKind.PACK), CHUNK, encoded, trailer])
    assert_pack_is_named_and_passed_over(tmp_path, objects, name)


@pytest.mark.parametrize("content", [b"", b"x", prefix(ObjectKind.PACK), bytes(15), bytes(100_000)])
def test_bytes_that_are_not_a_pack_are_refused(
    tmp_path: Path, objects: LocalStore, content: bytes
) -> None:
    name = pack_name(PackId(bytes(32)))
    objects.put(name, [content])
    assert_pack_is_named_and_passed_over(tmp_path, objects, name)


def assert_pack_is_named_and_passed_over(root: Path, objects: LocalStore, name: str) -> None:
    """Check that `verify` reports one problem, the valid version is read, and commits work."""
    (root / "chunk.bin").write_bytes(CHUNK)
    with casweights.open(objects.root) as store, bounded_memory(16 * MiB):
        assert [name in str(problem) for problem in store.verify().problems] == [True]
        store.checkout("main", root / "out")
        store.checkout(store.commit(root / "chunk.bin"), root / "out")
    assert (root / "out/honest.bin").read_bytes() == b"honest"
    assert (root / "out/chunk.bin").read_bytes() == CHUNK


SPARSE = 64 << 30


@pytest.mark.parametrize("frame_size", [64 * MiB, 4096 * MiB - 1])
def test_pack_of_4_gib_is_not_read_into_memory(
    tmp_path: Path, objects: LocalStore, frame_size: int
) -> None:
    """A hole in the file replaces the frame: as large as declared, far larger than its chunk."""
    index = msgpack.packb(index_of(size=u32(frame_size)))
    name = pack_name(PackId(blake3_256(prefix(ObjectKind.PACK) + index)))
    (objects.root / name).parent.mkdir()
    with (objects.root / name).open("wb") as file:
        file.write(prefix(ObjectKind.PACK))
        file.seek(frame_size, 1)
        file.write(index + len(index).to_bytes(4, "little") + b"cidx")
    assert_pack_is_named_and_passed_over(tmp_path, objects, name)


def test_snapshot_branch_and_tag_of_64_gib_are_not_read_into_memory(objects: LocalStore) -> None:
    """The objects are small by the format, so that readers fetch them whole."""
    with casweights.open(objects.root) as store:
        snapshot = store.resolve("main")
        store.tag("v1", snapshot)
    for name in (
        snapshot_name(snapshot),
        "refs/heads/main/000000000001.ref",
        "refs/tags/v1/000000000001.ref",
    ):
        path = objects.root / name
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(SPARSE)
        with casweights.open(objects.root) as store, bounded_memory(16 * MiB):
            assert any(name in str(problem) for problem in store.verify().problems)
        path.write_bytes(content)
    with (objects.root / "casweights.json").open("r+b") as file:
        file.truncate(SPARSE)
    with bounded_memory(16 * MiB), pytest.raises(IntegrityError, match=r"casweights\.json"):
        casweights.open(objects.root)
