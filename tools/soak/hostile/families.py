"""Families of hostile stores. The number of bytes of each grows linearly with a parameter."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgpack

import casweights
from casweights.format import names
from casweights.format.codecs import Encoding
from casweights.format.collection import (
    Part,
    Plan,
    PlannedObject,
    aside_name,
    encode_plan,
    part_name,
)
from casweights.format.derived import join
from casweights.format.expired import encode_records
from casweights.format.hashing import blake3_256
from casweights.format.names import TAGS, move_name, snapshot_name
from casweights.format.patterns import Slice
from casweights.format.roots import Root
from casweights.format.signatures import Entry, decode_rows, encode_one, rows_size, signature_name
from casweights.ids import ChunkId, SnapshotId
from casweights.kernels import sparse_encode
from casweights.kernels.kinds import ElementKind
from casweights.results import ExpiredVersion
from tools.soak.hostile.forge import MODEL, Forger, Stored, chunk_id, row, whole

FOLDERS = [
    *(names.PACKS, names.SNAPSHOTS, names.SEGMENTS, names.ARCHIVES, names.DAMAGED, names.EXPIRED),
    *(names.POLICIES, names.LOST, names.ASIDE, names.COLLECTIONS, names.SIGNATURES),
]

Build = Callable[[Forger, int], object]


class Family(NamedTuple):
    """A function that builds a store, and its parameter for the small size."""

    build: Build
    size: int


FAMILIES: dict[str, Family] = {}


def family(size: int) -> Callable[[Build], Build]:
    """Register a family, whose parameter for the small size is `size`."""

    def note(build: Build) -> Build:
        FAMILIES[build.__name__.replace("_", "-")] = Family(build, size)
        return build

    return note


def raw_chunk(number: int) -> bytes:
    """Return a small chunk, different for each number."""
    return number.to_bytes(8, "little") + b"chunk of a forged store"


def made_row(path: str, frame: Stored) -> list[Any]:
    """Return the row of a file that consists of the chunk of a frame, for a manifest."""
    return [path, frame.raw_size, None, b"", 1, frame.chunk]


def missing(number: int) -> SnapshotId:
    """Return the ID of a version that is not there, different for each number."""
    return SnapshotId(blake3_256(b"%d" % number))


def step(number: int, base: int) -> Stored:
    """Return a frame with a chunk as the difference from another chunk."""
    raw, old = raw_chunk(number), raw_chunk(base)
    payload = bytes(sparse_encode(old, raw, ElementKind.PLAIN_8))
    return Stored(chunk_id(raw), len(raw), 4, payload, chunk_id(old))


# Packs.


@family(4000)
def frames_of_a_chunk_that_no_version_needs(store: Forger, n: int) -> None:
    """Many frames of a chunk that no version needs."""
    pack = store.pack([whole(raw_chunk(0)), *[Stored(chunk_id(b"?"), 9, 0, b"frame")] * n])
    store.holding([pack], [raw_chunk(0)])


@family(800)
def bad_frames_of_a_chunk(store: Forger, n: int) -> None:
    """Many damaged frames of a chunk of the version."""
    raw = raw_chunk(0)
    frames = [Stored(chunk_id(raw), len(raw), 1, b"%08d" % number) for number in range(n)]
    store.holding([store.pack(frames)], [raw])


@family(1000)
def sizes_of_a_chunk(store: Forger, n: int) -> None:
    """Frames of one chunk that declare different sizes."""
    frames = [Stored(chunk_id(raw_chunk(0)), 100 + number, 1, b"frame") for number in range(n)]
    store.holding([store.pack(frames)], [raw_chunk(0)])


@family(400)
def chain(store: Forger, n: int) -> None:
    """A version that consists of all chunks of a chain."""
    frames = [whole(raw_chunk(0)), *(step(number, number - 1) for number in range(1, n))]
    store.holding([store.pack(frames)], [raw_chunk(number) for number in range(n)])


@family(400)
def circle(store: Forger, n: int) -> None:
    """Chunks that are differences from each other, in a circle."""
    frames = [step(number, (number + 1) % n) for number in range(n)]
    store.holding([store.pack(frames)], [raw_chunk(number) for number in range(n)])


@family(400)
def web_without_an_end(store: Forger, n: int) -> None:
    """Chunks with the same base, of which every frame has a missing base."""
    frames = [step(0, 10**6 + number) for number in range(n)]
    frames += [step(number, 0) for number in range(1, n)]
    store.holding([store.pack(frames)], [raw_chunk(number) for number in range(n)])


@family(250)
def tree_of_differences(store: Forger, n: int) -> None:
    """Chunks with several frames each, as differences from earlier chunks."""
    chance = random.Random(n)
    frames = [whole(raw_chunk(0))]
    for number in range(1, n):
        frames += [step(number, chance.randrange(number)) for _ in range(3)]
    store.holding([store.pack(frames)], [raw_chunk(number) for number in range(n)])


@family(500)
def tiny_frames(store: Forger, n: int) -> None:
    """Many small files, each a frame."""
    raws = [raw_chunk(number) for number in range(n)]
    store.holding([store.pack(list(map(whole, raws)))], raws)


def derived(number: int, roots: list[int]) -> Stored:
    """Return a frame with a chunk that consists of others, and of as many zeros as its number."""
    raws = list(map(raw_chunk, roots))
    raw = b"".join(raws) + bytes(number)
    found = tuple(Root(chunk_id(one), len(one)) for one in raws)
    slices = [Slice(at, 0, root.raw_size) for at, root in enumerate(found)]
    payload = join([*slices, Slice(None, 0, number)], None)
    return Stored(chunk_id(raw), len(raw), Encoding.DERIVED, payload, roots=found)


@family(250)
def roots_with_chains(store: Forger, n: int) -> None:
    """Chunks that are made from eight others each, all of which are parts of one long chain."""
    chance = random.Random(n)
    frames = [whole(raw_chunk(0)), *(step(number, number - 1) for number in range(1, n))]
    made = [derived(number, chance.sample(range(n), min(8, n))) for number in range(1, n)]
    pack = store.pack(frames + made)
    rows = [made_row(f"{number:08}", frame) for number, frame in enumerate(made)]
    store.version(rows, table={"packs": pack, "pack": [0] * len(made)})


@family(400)
def roots_of_roots(store: Forger, n: int) -> None:
    """Chunks that are made from each other, in a circle."""
    sizes = 16
    ids = [ChunkId(blake3_256(b"%d" % number)) for number in range(n)]
    payload = join([Slice(0, 0, sizes)], None)
    frames = [
        Stored(ids[number], sizes, Encoding.DERIVED, payload, None, (Root(ids[number - 1], sizes),))
        for number in range(n)
    ]
    rows = [made_row(f"{number:08}", frame) for number, frame in enumerate(frames)]
    store.version(rows, table={"packs": store.pack(frames), "pack": [0] * n})


@family(80)
def packs(store: Forger, n: int) -> None:
    """Many packs, each with a chunk of the version and another frame of the first chunk."""
    raws = [raw_chunk(number) for number in range(n)]
    made = [store.pack([whole(raw), step(0, 10**6 + m)]) for m, raw in enumerate(raws)]
    rows = [row(f"{number:08}", raw) for number, raw in enumerate(raws)]
    store.version(rows, table={"packs": b"".join(made), "pack": list(range(n))})


@family(80)
def chain_of_packs(store: Forger, n: int) -> None:
    """A chain across packs, each of which has another frame of the first chunk, too."""
    frames = [whole(raw_chunk(0)), *(step(number, number - 1) for number in range(1, n))]
    made = [store.pack([frame, step(0, 10**6 + m)]) for m, frame in enumerate(frames)]
    rows = [row(f"{number:08}", raw_chunk(number)) for number in range(n)]
    store.version(rows, table={"packs": b"".join(made), "pack": list(range(n))})


@family(500)
def missing_chunks(store: Forger, n: int) -> None:
    """Files whose chunks and packs are missing."""
    raws = [raw_chunk(number) for number in range(n)]
    rows = [row(f"{number:08}", raw) for number, raw in enumerate(raws)]
    packs = [chunk_id(b"pack" + raw) for raw in raws]
    store.version(rows, table={"packs": b"".join(packs), "pack": list(range(n))})


@family(100)
def equal_signatures(store: Forger, n: int) -> None:
    """Signatures of many versions that are not there, all equal to that of a model."""
    with casweights.open(store.root) as repo:
        version = repo.commit(MODEL)
    data = (store.root / signature_name(version.id)).read_bytes()
    [row] = decode_rows(data[: rows_size(1)], signature_name(version.id))
    for number in range(n):
        content = data[row.offset : row.offset + row.size]
        made = encode_one(Entry(missing(number), row.coarse, content))
        store.put(made.name, b"".join(made.parts))


# Manifests.


@family(15)
def deep_paths(store: Forger, n: int) -> None:
    """Files in folders that are nested a hundred deep."""
    store.version([row("/".join([f"{number:06}", *["a"] * 99])) for number in range(n)])


@family(100)
def long_paths(store: Forger, n: int) -> None:
    """Names of the maximum length."""
    store.version([row(f"{number:06}" + "x" * 4000) for number in range(n)])


@family(50)
def marked_paths(store: Forger, n: int) -> None:
    """Names of combining marks in the wrong order, which normalization has to sort."""
    store.version([row(f"{number:06}" + "\u0301\u0323" * 1000) for number in range(n)])


@family(10_000)
def wide_metadata(store: Forger, n: int) -> None:
    """Metadata with many keys."""
    store.version(metadata={f"key{number:08}": number for number in range(n)})


@family(2000)
def keys_above_metadata(store: Forger, n: int) -> None:
    """Metadata with a long key and many values below it."""
    store.version(metadata={"k" * 10 * n: [[] for _ in range(n)]})


@family(250)
def deep_metadata(store: Forger, n: int) -> None:
    """Metadata of deeply nested lists."""
    store.version(metadata={"a": [[[[[[[[[[]]]]]]]]] for _ in range(n)] * 4})


@family(50_000)
def metadata_of_empty_lists(store: Forger, n: int) -> None:
    """Metadata of empty lists, each one byte when encoded and 64 bytes in memory."""
    store.version(metadata=b"\x81\xa1a\xdd" + n.to_bytes(4, "big") + b"\x90" * n)


@family(500_000)
def files_of_empty_lists(store: Forger, n: int) -> None:
    """Empty lists in place of files."""
    store.version(files=b"\xdd" + n.to_bytes(4, "big") + b"\x90" * n)


@family(500_000)
def table_of_empty_lists(store: Forger, n: int) -> None:
    """Empty lists in a pack table."""
    store.version([row("a", b"x")], table={"packs": b"", "pack": [[]] * n})


@family(200_000)
def header_of_empty_lists(store: Forger, n: int) -> None:
    """Empty lists in a JSON header."""
    store.safetensors(b'{"a":[' + b"[]," * n + b"[]]}")


@family(3000)
def tensors_without_bytes(store: Forger, n: int) -> None:
    """Many tensors without elements."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    store.safetensors({f"tensor{number:06}": entry for number in range(n)})


@family(50_000)
def dimensions(store: Forger, n: int) -> None:
    """One tensor with many dimensions."""
    entry = {"dtype": "F32", "shape": [0] * n, "data_offsets": [0, 0]}
    store.safetensors({"tensor": entry})


@family(2000)
def tree_of_a_state(store: Forger, n: int) -> None:
    """A long key, and many names below it for one tied tensor."""
    names = [[f"t{number:05}", ["tensor", "t"]] for number in range(n)]
    tree = ["dict", [["k" * 10 * n, ["dict", names]]]]
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    metadata = {"format": "pt", "casweights.tree": json.dumps(tree)}
    store.safetensors({"__metadata__": metadata, "t": entry})


# Versions and refs.


@family(60)
def ancestors(store: Forger, n: int) -> None:
    """A long history."""
    parents: list[SnapshotId] = []
    for number in range(1, n + 1):
        parents = [store.version(parents=parents, number=number, branch=None)]
    store.move("main", parents[0])


@family(60)
def parents(store: Forger, n: int) -> None:
    """A history in which each version has the previous sixteen as its parents."""
    before: list[SnapshotId] = []
    for number in range(1, n + 1):
        made = store.version(parents=before[-16:][::-1], number=number, branch=None)
        before.append(made)
    store.move("main", before[-1])


@family(100)
def moves(store: Forger, n: int) -> None:
    """A branch with many moves, none of which was removed."""
    version = store.version()
    for position in range(1, n + 1):
        store.move("main", version, position)


@family(100)
def moves_to_one_position(store: Forger, n: int) -> None:
    """Many moves of a branch to one position, as if by concurrent writers."""
    version = store.version()
    for number in range(n):
        other = SnapshotId(number.to_bytes(32, "big"))
        data = (store.root / move_name("refs/heads/", "main", 1)).read_bytes()
        store.put(move_name("refs/heads/", "main", 2, other), data)
    store.move("main", version, 3)


@family(100)
def branches_and_tags(store: Forger, n: int) -> None:
    """Many branches and tags."""
    version = store.version()
    for number in range(n):
        store.move(f"branch-{number}", version)
        store.move(f"tag-{number}", version, kind=TAGS)


@family(100)
def deletions(store: Forger, n: int) -> None:
    """A branch that was deleted and made again, many times."""
    version = store.version()
    for position in range(2, 2 * n, 2):
        store.delete("main", version, position)
        store.move("main", version, position + 1)


@family(100)
def expired_versions(store: Forger, n: int) -> None:
    """Records, in an object each, of a long history that expired."""
    for number in range(1, n):
        parents = (missing(number - 1),) if number > 1 else ()
        row = ExpiredVersion(
            id=missing(number), number=number, parents=parents, time=datetime.now(UTC), policy=""
        )
        for record in encode_records([row]):
            store.put(record.name, record.data)
    store.version(parents=[missing(n - 1)], number=n)


@family(100)
def collections(store: Forger, n: int) -> None:
    """Many collections that were begun, and that set the same objects aside."""
    version = snapshot_name(store.version())
    for number in range(n):
        plan = Plan(now=number, grace=0, objects=[PlannedObject(version, 1, 0)] * 4)
        store.put(part_name(f"{number:016x}", Part.PLAN), encode_plan(plan))
        store.put(aside_name(f"{number:016x}", version), b"what was set aside")


@family(100)
def strays(store: Forger, n: int) -> None:
    """Stray files among refs, packs and snapshots."""
    store.version()
    for number in range(n):
        for folder in ("refs/", "refs/heads/main/", "refs/tags/", *FOLDERS):
            store.put(f"{folder}stray{number}", b"stray")


@family(100)
def empty_packs(store: Forger, n: int) -> None:
    """Many damaged packs."""
    store.version()
    for number in range(n):
        store.put(f"packs/{number:064x}", msgpack.packb({"number": number}) * 4)
