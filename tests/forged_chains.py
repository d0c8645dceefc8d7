"""Build stores with forged frames, under matching IDs and checksums."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import zstandard

import casweights
from casweights.config import KiB, StoreConfig
from casweights.format.codecs import Encoding
from casweights.format.derived import join
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.file_entry import FileEntry
from casweights.format.hashing import blake3_256, checksum
from casweights.format.manifest import EncodedSnapshot, Manifest
from casweights.format.names import pack_name, snapshot_name
from casweights.format.pack import Frame, build_index
from casweights.format.pack_table import PackTable
from casweights.format.patterns import Slice
from casweights.format.roots import Root
from casweights.format.snapshot import StoredSnapshot, encode_snapshot
from casweights.ids import ChunkId
from casweights.kernels import dense_encode, sparse_encode
from casweights.kernels.kinds import ElementKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights import SnapshotId
    from casweights.ids import PackId
    from casweights.stores.base import ObjectStore

CONFIG = StoreConfig(chunk_size=64 * KiB)
NAME = "chunk.bin"


class Link(NamedTuple):
    """A frame to store: a chunk, and the bytes that claim to encode it."""

    raw: bytes
    encoding: int
    payload: bytes
    base: bytes | None = None
    roots: tuple[tuple[bytes, int], ...] = ()  # each with the size that the index claims


def chunk(number: int, size: int = 1030) -> bytes:
    """Return a chunk that differs from others in a few bytes; its usual size is even, but not a
    multiple of 4."""
    return number.to_bytes(4, "little") + bytes(n % 256 for n in range(size - 4))


def chunk_id(raw: bytes) -> ChunkId:
    return ChunkId(blake3_256(raw))


def whole(raw: bytes) -> Link:
    return Link(raw, Encoding.RAW, raw)


def difference(raw: bytes, base: bytes) -> Link:
    return Link(raw, Encoding.SPARSE, sparse_encode(base, raw, ElementKind.PLAIN_8), base)


def derived(raw: bytes, *roots: bytes) -> Link:
    """Return a chunk that is made from others, end to end."""
    slices = [Slice(number, 0, len(root)) for number, root in enumerate(roots)]
    sizes = tuple((root, len(root)) for root in roots)
    return Link(raw, Encoding.DERIVED, join(slices, None), None, sizes)


def chain(links: int) -> list[Link]:
    """Return a whole chunk and `links` differences; the last one is of `chunk(links)`."""
    chunks = [chunk(n) for n in range(links + 1)]
    return [whole(chunks[0]), *(difference(raw, base) for base, raw in pairwise(chunks))]


def create(store: ObjectStore) -> None:
    casweights.open(store, create=True, config=CONFIG).close()


def add_pack(store: ObjectStore, links: Sequence[Link]) -> PackId:
    frames, offset = [], PREFIX_SIZE
    for raw, encoding, payload, base, roots in links:
        base_id = None if base is None else chunk_id(base)
        frame = (chunk_id(raw), len(raw), encoding, offset, len(payload), checksum(payload))
        frames.append(Frame(*frame, base_id, tuple(Root(chunk_id(r), size) for r, size in roots)))
        offset += len(payload)
    pack, ending = build_index(frames)
    store.put(pack_name(pack), [prefix(ObjectKind.PACK), *(link.payload for link in links), ending])
    return pack


def add_version(store: ObjectStore, raw: bytes, packs: Sequence[PackId]) -> SnapshotId:
    """Add a version of one file of one chunk; its table names the first pack for the chunk."""
    manifest = Manifest(
        number=1,
        parents=(),
        time=datetime(2024, 1, 1, tzinfo=UTC),
        author="",
        message="",
        metadata={},
        config=CONFIG,
        files=(FileEntry(NAME, len(raw), None, None, (chunk_id(raw),)),),
    )
    snapshot, encoded = EncodedSnapshot.of(manifest)
    table = PackTable(list(packs), {chunk_id(raw): packs[0]})
    store.put(snapshot_name(snapshot.id), encode_snapshot(StoredSnapshot(snapshot, encoded, table)))
    return snapshot.id


A, B, C = chunk(1), chunk(2), chunk(3)
LONGER, SHORTER = chunk(4, len(A) + 100), chunk(4, len(A) - 100)
SPARSE = difference(B, A).payload
DENSE = dense_encode(A, B, ElementKind.PLAIN_8)
HUGE = b"\xff" * 8 + b"\x7f"  # 2^63 - 1, as a varint


def sparse(payload: bytes) -> list[Link]:
    return [whole(A), Link(B, Encoding.SPARSE, payload, A)]


def dense(payload: bytes) -> list[Link]:
    return [whole(A), Link(B, Encoding.DENSE, payload, A)]


HEAD, TAIL = B[:500], B[500:]
MADE = derived(B, HEAD, TAIL)
# More than 8 chunks of the store together.
LARGE = [B[129 * n : 129 * n + 129].ljust(66_000, bytes([n])) for n in range(8)]
FROM_A = join([Slice(0, 0, len(A))], (Encoding.SPARSE, SPARSE))
ROOT_A = ((A, len(A)),)


def made(payload: bytes) -> list[Link]:
    return [whole(HEAD), whole(TAIL), MADE._replace(payload=payload)]


# Frames in one pack from which B cannot be rebuilt.
REFUSED: dict[str, list[Link]] = {
    "missing base": [difference(B, A)],
    "missing base of a base": [difference(C, A), difference(B, C)],
    "itself": [Link(B, Encoding.SPARSE, SPARSE, B)],
    "circle of two": [difference(A, B), difference(B, A)],
    "circle of three": [difference(A, C), difference(B, A), difference(C, B)],
    "chain into a circle": [difference(B, A), difference(A, C), difference(C, A)],
    "longer base": [whole(LONGER), Link(B, Encoding.SPARSE, SPARSE, LONGER)],
    "shorter base": [whole(SHORTER), Link(B, Encoding.SPARSE, SPARSE, SHORTER)],
    "another base": [whole(C), Link(B, Encoding.SPARSE, SPARSE, C)],
    "no base": [Link(B, Encoding.SPARSE, SPARSE)],
    "no base for dense": [Link(B, Encoding.DENSE, DENSE)],
    "base for raw": [whole(A), Link(B, Encoding.RAW, B, A)],
    "base for zstd": [whole(A), Link(B, Encoding.ZSTD, b"not looked at", A)],
    "base for planes": [whole(A), Link(B, Encoding.PLANES, b"not looked at", A)],
    "base for an unknown encoding": [whole(A), Link(B, 77, B, A)],
    "sparse as dense": dense(SPARSE),
    "dense as sparse": sparse(DENSE),
    "unknown kind of elements": sparse(b"\x0b" + SPARSE[1:]),
    "unknown kind of elements, dense": dense(b"\xff" + DENSE[1:]),
    "elements that do not fill the chunk": sparse(b"\x02" + SPARSE[1:]),
    "nothing": sparse(b""),
    "nothing dense": dense(b""),
    "cut": sparse(SPARSE[:-1]),
    "cut dense": dense(DENSE[:-1]),
    "and more": sparse(SPARSE + b"more"),
    "and more, dense": dense(DENSE + b"more"),
    "no class": sparse(b"\0\0" + SPARSE[2:]),
    "more changes than elements": sparse(b"\0\x01\x87\x08\x00\x82\x01" + b"\xff" * 130),
    "2^63 changes": sparse(b"\0\x01" + HUGE + b"\x1a\x01\x01"),
    "gaps of 2^63 bytes": sparse(b"\0\x01\x01\x00" + HUGE + b"\x01"),
    "gap that does not end": sparse(b"\0\x01\x01\x1a\x87\x07" + bytes(903)),
    "words of 2^63": dense(b"\0\0\x01\x01\x00\x80\x20" + HUGE + b"\0"),
    "plain bytes of 2^63": dense(b"\0\0\x01\x01\x00\x80\x20\x02" + HUGE + bytes(4)),
    "no chances": dense(b"\0\0\x01\x01\x00\x00\x02\x00\x80\0\0\0"),
    "expected steps of whole numbers": dense(b"\0\1\0\0" + DENSE[2:]),
    "no group": dense(DENSE[:2] + b"\0" + DENSE[3:]),
    "five groups": dense(DENSE[:2] + b"\5" + 5 * b"\1\0\x80\x20" + b"\0\2\0\0\0\0\x80"),
    "groups of 2^63 bytes": dense(b"\0\0\2" + 2 * b"\1\0\x80\x20" + HUGE),
    "other differences": sparse(difference(C, A).payload),
    "damaged base": [Link(A, Encoding.RAW, B), difference(B, A)],
    "damaged in the middle": [
        *(whole(A), Link(C, Encoding.SPARSE, difference(chunk(5), A).payload, A)),
        difference(B, C),
    ],
    "missing root": [whole(HEAD), MADE],
    "made from itself": [derived(B, B)],
    "made from what is made from it": [derived(A, B), Link(B, 6, FROM_A, None, ROOT_A)],
    "made from a difference from it": [difference(A, B), Link(B, 6, FROM_A, None, ROOT_A)],
    "derived root": [whole(HEAD), whole(A), Link(TAIL, 6, b"\0", None, ROOT_A), MADE],
    "root behind a derived chunk": [
        *(whole(A), Link(chunk(7), 6, FROM_A, None, ROOT_A), difference(C, chunk(7))),
        derived(B, C),
    ],
    "root of another size": [
        *(whole(HEAD), whole(TAIL)),
        MADE._replace(roots=((HEAD, 500), (TAIL, len(TAIL) + 1))),
    ],
    "damaged root": [whole(HEAD), Link(TAIL, Encoding.RAW, bytes(530)), MADE],
    "no roots": [MADE._replace(roots=())],
    "roots for raw": [whole(A), Link(B, Encoding.RAW, B, None, ROOT_A)],
    "roots for a difference": [whole(A), Link(B, Encoding.SPARSE, SPARSE, None, ROOT_A)],
    "roots for an unknown encoding": [whole(A), Link(B, 77, B, None, ROOT_A)],
    "roots in another order": [*made(b"")[:2], MADE._replace(roots=MADE.roots[::-1])],
    "another rule": made(b"\1" + MADE.payload[1:]),
    "no slices": made(b"\0\0\xff"),
    "a cut payload": made(MADE.payload[:-1]),
    "2^63 slices": made(b"\0" + HUGE + MADE.payload[2:]),
    "a slice of 2^63 bytes": made(b"\0\1\1\0" + HUGE + b"\xff"),
    "zeros of 2^62 bytes": made(b"\0\1\0\0" + b"\x80" * 8 + b"\x40\xff"),
    "large roots": [
        *(whole(root) for root in LARGE),
        Link(B, 6, join([Slice(n, 0, 129 - 2 * (n == 7)) for n in range(8)], None), None)._replace(
            roots=tuple((root, len(root)) for root in LARGE)
        ),
    ],
}
# Frames with one chain to B, and others that mislead a reader.
READ: dict[str, list[Link]] = {
    "circle with a way out at the end": [*REFUSED["circle of three"], whole(C)],
    "circle with a way out at once": [*REFUSED["circle of three"], whole(B)],
    "circle with a way out between": [*REFUSED["circle of three"], whole(A)],
    "derived": made(MADE.payload),
    "derived, with a difference": [whole(A), Link(B, 6, FROM_A, None, ROOT_A)],
    "derived from a chunk with another chain": [
        *(Link(TAIL, Encoding.RAW, bytes(530)), whole(HEAD), MADE),
        Link(TAIL, Encoding.ZSTD, zstandard.compress(TAIL)),
    ],
    "made from itself, too": [derived(B, B), *sparse(SPARSE)],
    "derived, and whole after all": [*REFUSED["damaged root"], whole(B)],
    "derived from a derived chunk, too": [*REFUSED["derived root"], whole(TAIL)],
    "itself, too": [*REFUSED["itself"], whole(B)],
    "base of another size, too": [*REFUSED["longer base"], *sparse(SPARSE)],
    "missing base, too": [difference(B, C), *dense(DENSE)],
    "damaged, too": [Link(B, Encoding.ZSTD, b"zstd", None), *sparse(SPARSE)],
    "damaged in the middle, with another chain": [
        *REFUSED["damaged in the middle"],
        difference(C, A),
    ],
    "damaged base, with another frame": [*REFUSED["damaged base"], difference(A, C), whole(C)],
}
