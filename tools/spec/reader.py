"""Check out a version of a casweights store, by docs/format.md alone.

This is an example of an independent reader, and a proof that the page is complete: it was written
from the page and imports no part of the library. It reads stores that are local directories, and
refuses everything that the page does not allow.

    python -m tools.spec.reader STORE REF OUT_DIR

REF is a full snapshot ID, a branch or a tag; OUT_DIR must not exist. The exit status is 0, or 1
with a line on stderr that gives the reason.
"""

import argparse
import io
import itertools
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import xxhash
from blake3 import blake3

from tools.spec.archives import find_archived
from tools.spec.chunks import (
    DIGEST_SIZES,
    DIGESTS,
    FAILURES,
    MAX_CHUNK,
    MAX_INT,
    POSITION,
    WHOLE_MOVE,
    ChunkReader,
    Frame,
    StoreError,
    decompress,
    ints,
    is_text,
    need,
    place,
    read_snapshot_end,
    split,
)
from tools.spec.header import MAX_HEADER, Tensor, parse_header
from tools.spec.lineage import parse_lineage

FORMAT = 2
PAGE_IDS = 4_096
MAX_MANIFEST = MAX_TABLE = MAX_STRUCTURE = 268_435_456
MAX_REF = 4_096
MAX_CONFIG = 65_536
MAX_LEVELS = 64
MAX_VALUES = 131_072
MAX_EXPANSION, FREE_EXPANSION = 64, 4_194_304
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999

MOVE = re.compile(POSITION + r"(-[0-9a-f]{64}(-[0-9a-f]{64})?(-[0-9a-f]{16})?)?\.ref")
MARK = re.compile(POSITION + r"-0{64}-(?!0{64})[0-9a-f]{64}\.off")
GONE = bytes(32)  # where a move that deletes a branch or tag leads
NUMBERED = re.compile(r".*(?<![^.])([0-9]+)(?![^.])", re.DOTALL)
REF_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*(?<!\.ref)(?<!\.step)(?<!\.off)")
FORBIDDEN_IN_PATHS = re.compile(r"[\\\x00-\x1f\x7f]|(^|/)([A-Za-z]:|\.?\.?(/|$))")
MANIFEST_KEYS = {
    *("number", "parents", "time", "author", "message", "metadata"),
    *("digest", "chunk_size", "files"),
}


class Chunking(NamedTuple):
    digest: str
    chunk_size: int


Chunk = tuple[bytes, int]  # its ID and raw size


class Row(NamedTuple):
    """A file of a manifest; its header and its list of chunks are in structure chunks."""

    path: str
    size: int
    header: list[Chunk] | None  # structure chunks
    chunk_count: int
    pages: list[Chunk]  # structure chunks; none if the file has at most one chunk
    only_id: bytes  # the ID of the file's only chunk, if it has exactly one

    @property
    def structure(self) -> list[Chunk]:
        return [*(self.header or []), *self.pages]


class File(NamedTuple):
    path: str
    header: bytes
    chunks: list[Chunk]  # in file order


def read_object(store: Path, name: str, limit: int) -> bytes:
    need((store / name).is_file(), f"there is no {name}")
    need((store / name).stat().st_size <= limit, f"{name} is larger than {limit:,} bytes")
    return (store / name).read_bytes()


def unseal(store: Path, name: str, kind: bytes, limit: int) -> bytes:
    """Return the payload of a sealed object."""
    data = read_object(store, name, limit)
    body, checksum = data[:-8], data[-8:]
    need(len(body) >= 8 and xxhash.xxh3_64_digest(body) == checksum, f"{name} is damaged")
    need(body[:5] == b"casw" + kind, f"{name} is of another kind")
    need(body[5] == FORMAT, f"{name} has format version {body[5]}")
    return body[8:]


def read_config(store: Path) -> Chunking:
    name = "casweights.json"
    data = read_object(store, name, MAX_CONFIG)
    fields = json.loads(data)
    checksum = fields.pop("checksum")
    is_intact = checksum == xxhash.xxh3_64_hexdigest(json.dumps(fields, indent=2).encode())
    text = json.dumps({**fields, "checksum": checksum}, indent=2)
    need(is_intact and text.encode() == data, f"{name} is damaged")
    ints([fields["format"]], FORMAT, FORMAT, f"{name}: its format version")
    optional = [key for key in ("refs", "standalone") if key in fields]
    keys = ["format", "store_id", "digest", "chunk_size", *optional]
    need([*fields] == keys, f"{name} has wrong keys")
    need(fields.get("standalone", True) is True, f"{name}: standalone is not true")
    need("refs" not in fields, f"{name}: branches and tags are in a repository on the Hub")
    need(bool(re.fullmatch("[0-9a-f]{32}", fields["store_id"])), f"{name}: malformed store ID")
    need(fields["digest"] in DIGESTS, f"{name}: unknown digest")
    [chunk_size] = ints([fields["chunk_size"]], 65_536, MAX_CHUNK, name)
    need(chunk_size.bit_count() == 1, f"{name}: the chunk size is not a power of two")
    return Chunking(fields["digest"], chunk_size)


def find_snapshot(store: Path, ref: str) -> str:
    """Return the ID, in hex, of the version that a full ID, a branch or a tag names."""
    if re.fullmatch("[0-9a-f]{64}", ref):
        return ref
    is_name = len(ref) <= 200 and all(REF_PART.fullmatch(part) for part in ref.split("/"))
    need(is_name, f"{ref!r} cannot be the name of a branch or tag")
    found = {read_ref(store, f"refs/{kind}/{ref}") for kind in ("heads", "tags")} - {""}
    need(bool(found), f"there is no branch or tag {ref!r}")
    need(len(found) == 1, f"the branch {ref!r} and the tag {ref!r} are different versions")
    return found.pop()


def read_ref(store: Path, log: str) -> str:
    """Return the version, in hex, to which a log's last move leads.

    The result is empty without a log, and for a branch or tag that was deleted.
    """
    kinds = (MOVE, MARK, WHOLE_MOVE) if log.startswith("refs/heads/") else (MOVE, MARK)
    listed = [path.name for path in (store / log).glob("*")]
    moves = [name for name in listed if any(kind.fullmatch(name) for kind in kinds)]
    if not moves:
        return ""
    # Names with an ID come from a copied bucket; a directory does not record which was first.
    last = max(name[:12] for name in moves)
    candidates = [move for move in moves if move.startswith(last)]
    if any(MARK.fullmatch(move) for move in candidates):
        return ""
    move = min(candidates)
    if whole := WHOLE_MOVE.fullmatch(move):
        return whole[1]
    name = f"{log}/{move}"
    fields = msgpack.unpackb(unseal(store, name, b"r", MAX_REF))
    ints([fields["time"]], -MAX_INT, MAX_INT, name)
    [snapshot] = split(fields["snapshot"], 32, name)
    if snapshot == GONE:
        need(len(split(fields["before"], 32, name)) == 1, f"{name}: malformed")
        return ""
    return snapshot.hex()


def read_snapshot(store: Path, snapshot: str, chunking: Chunking) -> tuple[list[File], ChunkReader]:
    """Return the files of a version, and a reader of their chunks."""
    name, index, frames = read_version(store, snapshot)
    manifest = expand(index["manifest"], index["manifest_size"], MAX_MANIFEST, name)
    need(blake3(manifest).hexdigest() == snapshot, f"{name} contains another version")
    rows = parse_manifest(manifest, chunking)
    parse_lineage(index, snapshot, sum(row.size for row in rows), name)
    table = expand(index["table"], index["table_size"], MAX_TABLE, name)
    packs, table_rows = parse_pack_table(table, [name] if frames else [])
    structure = count_distinct(itertools.chain.from_iterable(row.structure for row in rows))
    need(table_rows >= structure, f"{name}: {table_rows} rows for {structure} structure chunks")
    chunks = ChunkReader(store, chunking.digest, chunking.chunk_size, packs)
    files = [read_file(row, chunks, chunking) for row in rows]
    count_distinct(itertools.chain.from_iterable(file.chunks for file in files))
    return files, chunks


def read_version(store: Path, snapshot: str) -> tuple[str, dict[str, Any], list[Frame]]:
    """Return the name, index and frames of the object of a version, its own or an archived one."""
    name = f"snapshots/{snapshot}"
    path = place(store, name)
    if path.is_file():
        with path.open("rb") as file:
            return name, *read_snapshot_end(file, name)
    name, data = find_archived(store, snapshot)
    index, frames = read_snapshot_end(io.BytesIO(data), name)
    need(not frames, f"{name} carries frames")
    return name, index, frames


def expand(data: Any, size: Any, limit: int, name: str) -> bytes:
    """Return a manifest or pack table, which must have `size` bytes."""
    need(isinstance(data, bytes), f"{name}: malformed")
    ints([size], 0, min(limit, FREE_EXPANSION + MAX_EXPANSION * len(data)), f"{name}: a size")
    return decompress(data, size, name)


def count_distinct(chunks: Iterable[Chunk]) -> int:
    """Return the number of IDs, each of which must always have the same raw size."""
    raw_sizes: dict[bytes, int] = {}
    for chunk, size in chunks:
        need(raw_sizes.setdefault(chunk, size) == size, f"chunk {chunk.hex()} has two sizes")
    return len(raw_sizes)


def parse_manifest(encoded: bytes, chunking: Chunking) -> list[Row]:
    fields = msgpack.unpackb(encoded)
    need(fields.keys() == MANIFEST_KEYS, "the manifest has wrong keys")
    parents, metadata = fields["parents"], fields["metadata"]
    is_list = isinstance(parents, list) and len(parents) <= 16
    is_ids = is_list and all(isinstance(p, bytes) and len(p) == 32 for p in parents)
    need(is_ids, "the manifest has malformed parents")
    ints([fields["number"]], 1, MAX_INT, "the manifest's number")
    ints([fields["time"]], FIRST_TIME, LAST_TIME, "the manifest's time")
    need(is_text(fields["author"]) and is_text(fields["message"]), "the manifest lacks a text")
    need(isinstance(metadata, dict), "the manifest has malformed metadata")
    need(check_metadata(metadata) <= MAX_VALUES + 1, "the manifest has too much metadata")
    is_same = (fields["digest"], fields["chunk_size"]) == chunking
    need(is_same and type(fields["chunk_size"]) is int, "the manifest is not for this store")
    rows = [parse_row(chunking, *row) for row in fields["files"]]
    check_paths([row.path for row in rows])
    headers = sum(size for row in rows for _, size in row.header or [])
    ids = sum(row.chunk_count for row in rows) * DIGEST_SIZES[chunking.digest]
    need(headers + ids <= MAX_STRUCTURE, "the manifest has too many headers and chunks")
    return rows


def check_metadata(value: Any, levels: int = MAX_LEVELS) -> int:
    """Return the number of keys and values in a value, itself included."""
    need(levels >= 0, "the manifest's metadata is nested too deeply")
    count = 1
    if isinstance(value, dict):
        need(all(is_text(key) for key in value), "the manifest has malformed metadata")
        count += len(value)
        value = list(value.values())
    if isinstance(value, list):
        return count + sum(check_metadata(item, levels - 1) for item in value)
    is_scalar = value is None or isinstance(value, bool | int | float | str)
    need(is_scalar, "the manifest has malformed metadata")
    return count


def parse_row(
    chunking: Chunking,
    path: Any,
    size: Any,
    header_size: Any,
    header_ids: Any,
    count: Any,
    listed: Any,
) -> Row:
    need(is_text(path), "a file of the manifest has no path")
    what, digest_size = repr(path), DIGEST_SIZES[chunking.digest]
    ints([size], 0, MAX_INT, what)
    ints([count], 0, MAX_STRUCTURE // digest_size, what)
    if header_size is not None:
        ints([header_size], 8, min(8 + MAX_HEADER, size), f"the header of {what}")
    header = pair(header_ids, digest_size, cut(header_size or 0, chunking.chunk_size), what)
    if count > 1:
        sizes = cut(count * digest_size, PAGE_IDS * digest_size)
        pages, only_id = pair(listed, digest_size, sizes, what), b""
    else:
        need(len(split(listed, digest_size, what)) == count, f"{what} does not have {count} chunks")
        pages, only_id = [], listed
    return Row(path, size, None if header_size is None else header, count, pages, only_id)


def cut(size: int, grid: int) -> Iterator[int]:
    """Return the sizes of the pieces into which bytes are cut."""
    return (min(grid, size - start) for start in range(0, size, grid))


def cut_tensors(tensors: Mapping[str, Tensor], grid: int) -> Iterator[int]:
    """Return the sizes of the chunks of a file's tensors, which are in the order of their bytes."""
    return itertools.chain.from_iterable(cut(size, grid) for size in bundle_sizes(tensors, grid))


def bundle_sizes(tensors: Mapping[str, Tensor], grid: int) -> Iterator[int]:
    """Return the sizes of the bundles of a file's tensors."""
    size, dtype, block = 0, None, ""  # of the bundle of small tensors that is not complete yet
    for name, tensor in tensors.items():
        if not tensor.size:
            continue
        small, before, (block, mark) = 2 * tensor.size < grid, block, block_of(name)
        begins = xxhash.xxh3_64_intdigest(mark.encode()) % 64 == 0 or 8 * size >= grid
        fits = small and tensor.dtype == dtype and size + tensor.size <= grid
        if fits and (block == before or not begins):
            size += tensor.size
            continue
        if size:
            yield size
        size, dtype = tensor.size, tensor.dtype if small else None
    if size:
        yield size


def block_of(name: str) -> tuple[str, str]:
    """Return the block of a tensor, and its mark."""
    numbered = NUMBERED.match(name)
    return (numbered[0], numbered[1]) if numbered else (name, name)


def pair(joined_ids: Any, digest_size: int, sizes: Iterator[int], what: str) -> list[Chunk]:
    """Return chunks by their concatenated IDs and their sizes, of which there may be very many."""
    ids = split(joined_ids, digest_size, what)
    known = list(itertools.islice(sizes, len(ids) + 1))
    need(len(known) == len(ids), f"{what} has a wrong number of chunks")
    return list(zip(ids, known, strict=True))


def read_file(row: Row, chunks: ChunkReader, chunking: Chunking) -> File:
    """Read the header of a file and the list of its chunks."""
    header = b"".join(chunks.read(*chunk) for chunk in row.header or [])
    sizes = cut(row.size, chunking.chunk_size)
    if row.header is not None:
        tensors = parse_header(header, f"the header of {row.path!r}")
        is_whole = len(header) + sum(tensor.size for tensor in tensors.values()) == row.size
        need(is_whole, f"the header of {row.path!r} is not for its size")
        sizes = cut_tensors(tensors, chunking.chunk_size)
    joined_ids = row.only_id + b"".join(chunks.read(*page) for page in row.pages)
    return File(
        row.path, header, pair(joined_ids, DIGEST_SIZES[chunking.digest], sizes, repr(row.path))
    )


def check_paths(paths: Sequence[str]) -> None:
    need(all(a < b for a, b in itertools.pairwise(paths)), "the manifest's files are not in order")
    for path in paths:
        is_short = len(path.encode()) <= 4096 and path.count("/") < 100
        need(is_short and not FORBIDDEN_IN_PATHS.search(path), f"the path {path!r} is malformed")
    folded = {unicodedata.normalize("NFC", path.casefold()) for path in paths}
    need(len(folded) == len(paths), "the manifest has two paths that are equal on some systems")
    for path in folded:
        folders = itertools.accumulate(path.split("/")[:-1], "{}/{}".format)
        need(folded.isdisjoint(folders), f"{path!r} lies inside a file")


def parse_pack_table(encoded: bytes, own: list[str]) -> tuple[list[str], int]:
    """Return the names of the objects that a pack table lists, and the number of its rows.

    The first is the snapshot's own object, `own`, if that carries frames.
    """
    fields, what = msgpack.unpackb(encoded, strict_map_key=False), "the pack table"
    listed = [pack.hex() for pack in split(fields["packs"], 32, what)]
    count = len(own) + len(listed)
    carried = set(ints(fields.get("carried", []), len(own), count - 1, what))
    ints([fields.get("structure", 0)], 0, count, what)
    need(isinstance(fields.get("shallow", False), bool), f"{what}: malformed")
    places = fields.get("places", {})
    ints(list(places.keys()), 0, count - 1, what)
    need(all(isinstance(place, bytes) for place in places.values()), f"{what}: malformed places")
    folders = ["snapshots" if n in carried else "packs" for n in range(len(own), count)]
    names = [f"{folder}/{pack}" for folder, pack in zip(folders, listed, strict=True)]
    return [*own, *names], len(ints(fields["pack"], 0, count - 1, what))


def check_out(store: Path, ref: str, out_dir: Path) -> None:
    chunking = read_config(store)
    files, chunks = read_snapshot(store, find_snapshot(store, ref), chunking)
    out_dir.mkdir()
    try:
        for file in files:
            path = out_dir / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                out.write(file.header)
                out.writelines(chunks.read(*chunk) for chunk in file.chunks)
    except BaseException:
        shutil.rmtree(out_dir)
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description="Check out a version of a local casweights store.")
    parser.add_argument("store", type=Path)
    parser.add_argument("ref", help="a full snapshot ID, a branch or a tag")
    parser.add_argument("out_dir", type=Path, help="a folder that does not exist yet")
    args = parser.parse_args()
    try:
        check_out(args.store, args.ref, args.out_dir)
    except FAILURES as error:
        is_told = isinstance(error, StoreError | OSError)
        print(f"error: {str(error) if is_told else repr(error):.500}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
