"""Check out a version of a casweights store, by docs/format.md alone.

This is an example of an independent reader, and a proof that the page is complete: it was written
from the page and imports no part of the library. It reads stores that are local directories, and
refuses everything that the page does not allow.

    python -m tools.spec.reader STORE REF OUT_DIR

REF is a full snapshot ID, a branch or a tag; OUT_DIR must not exist. The exit status is 0, or 1
with a line on stderr that gives the reason.
"""

import argparse
import itertools
import json
import re
import shutil
import struct
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import xxhash
from blake3 import blake3

from tools.spec.chunks import (
    DIGEST_SIZES,
    DIGESTS,
    FAILURES,
    MAX_CHUNK,
    MAX_INT,
    ChunkReader,
    StoreError,
    decompress,
    ints,
    need,
    split,
)

MAX_MANIFEST = MAX_TABLE = 268_435_456
MAX_SNAPSHOT = 536_870_912
MAX_HEADER = 100_000_000
MAX_REF = 4_096
MAX_CONFIG = 65_536
MAX_SIZE = 2**64 - 1
MAX_LEVELS = 64
MAX_VALUES = 131_072
MAX_EXPANSION, FREE_EXPANSION = 64, 4_194_304
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999

MOVE = re.compile(r"[0-9]{12}(-[0-9a-f]{64}(-[0-9a-f]{64})?(-[0-9a-f]{16})?)?\.ref")
REF_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*(?<!\.ref)")
FORBIDDEN_IN_PATHS = re.compile(r"[\\\x00-\x1f\x7f]|(^|/)([A-Za-z]:|\.?\.?(/|$))")
FIELDS = ["dtype", "shape", "data_offsets"]
MANIFEST_KEYS = {
    *("parents", "time", "author", "message", "metadata"),
    *("digest", "chunk_size", "files"),
}
DTYPES_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "I64 U64 F64 C64",
}
BITS = {dtype: bits for bits, dtypes in DTYPES_BY_BITS.items() for dtype in dtypes.split()}


class Chunking(NamedTuple):
    digest: str
    chunk_size: int


class File(NamedTuple):
    path: str
    header: bytes
    chunks: list[tuple[bytes, int]]  # chunk IDs and raw sizes, in file order


def is_text(value: object) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


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
    need(body[5] == 1, f"{name} has format version {body[5]}")
    return body[8:]


def read_config(store: Path) -> Chunking:
    name = "casweights.json"
    data = read_object(store, name, MAX_CONFIG)
    fields = json.loads(data)
    checksum = fields.pop("checksum")
    is_intact = checksum == xxhash.xxh3_64_hexdigest(json.dumps(fields, indent=2).encode())
    text = json.dumps({**fields, "checksum": checksum}, indent=2)
    need(is_intact and text.encode() == data, f"{name} is damaged")
    ints([fields["format"]], 1, 1, f"{name}: its format version")
    keys = ["format", "store_id", "digest", "chunk_size"]
    need([*fields] in (keys, [*keys, "refs"]), f"{name} has wrong keys")
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
    """Return the version, in hex, to which a log's last move leads; empty without a log."""
    moves = [path.name for path in (store / log).glob("*.ref") if MOVE.fullmatch(path.name)]
    if not moves:
        return ""
    # Names with an ID come from a copied bucket; a directory does not record which was first.
    last = max(name[:12] for name in moves)
    name = f"{log}/{min(move for move in moves if move.startswith(last))}"
    fields = msgpack.unpackb(unseal(store, name, b"r", MAX_REF))
    ints([fields["time"]], -MAX_INT, MAX_INT, name)
    [snapshot] = split(fields["snapshot"], 32, name)
    return snapshot.hex()


def read_snapshot(store: Path, snapshot: str, chunking: Chunking) -> tuple[list[File], list[bytes]]:
    """Return the files of a version, and the packs that its pack table names."""
    name = f"snapshots/{snapshot}"
    payload = unseal(store, name, b"s", MAX_SNAPSHOT)
    manifest_size, manifest_stored, table_size, table_stored = struct.unpack_from("<4I", payload)
    need(manifest_size <= MAX_MANIFEST and table_size <= MAX_TABLE, f"{name} is too large")
    for size, stored in ((manifest_size, manifest_stored), (table_size, table_stored)):
        need(size <= FREE_EXPANSION + MAX_EXPANSION * stored, f"{name} expands too much")
    start, end = 16, 16 + manifest_stored
    need(len(payload) == end + table_stored, f"{name}: its sizes do not add up")

    manifest = decompress(payload[start:end], manifest_size, name)
    need(blake3(manifest).hexdigest() == snapshot, f"{name} contains another version")
    files = parse_manifest(manifest, chunking)
    raw_sizes: dict[bytes, int] = {}
    for chunk, size in itertools.chain.from_iterable(file.chunks for file in files):
        need(raw_sizes.setdefault(chunk, size) == size, f"{name}: a chunk with two sizes")
    table = decompress(payload[end:], table_size, name)
    return files, parse_pack_table(table, len(raw_sizes))


def parse_manifest(encoded: bytes, chunking: Chunking) -> list[File]:
    fields = msgpack.unpackb(encoded)
    need(fields.keys() == MANIFEST_KEYS, "the manifest has wrong keys")
    parents, metadata = fields["parents"], fields["metadata"]
    is_list = isinstance(parents, list) and len(parents) <= 16
    is_ids = is_list and all(isinstance(p, bytes) and len(p) == 32 for p in parents)
    need(is_ids, "the manifest has malformed parents")
    ints([fields["time"]], FIRST_TIME, LAST_TIME, "the manifest's time")
    need(is_text(fields["author"]) and is_text(fields["message"]), "the manifest lacks a text")
    need(isinstance(metadata, dict), "the manifest has malformed metadata")
    need(check_metadata(metadata) <= MAX_VALUES + 1, "the manifest has too much metadata")
    is_same = (fields["digest"], fields["chunk_size"]) == chunking
    need(is_same and type(fields["chunk_size"]) is int, "the manifest is not for this store")
    files = [parse_row(chunking, *row) for row in fields["files"]]
    check_paths([file.path for file in files])
    return files


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


def parse_row(chunking: Chunking, path: Any, size: Any, header: Any, joined_ids: Any) -> File:
    need(is_text(path), "a file of the manifest has no path")
    extents = ints([size], 0, MAX_INT, repr(path))
    if header is not None:
        extents = parse_header(header, f"the header of {path!r}")
        need(len(header) + sum(extents) == size, f"the header of {path!r} is not for its size")
    ids = split(joined_ids, DIGEST_SIZES[chunking.digest], repr(path))
    grid = chunking.chunk_size
    count = sum(-(-extent // grid) for extent in extents)
    need(count == len(ids), f"{path!r} has {len(ids)} chunks instead of {count}")
    sizes = (min(grid, extent - start) for extent in extents for start in range(0, extent, grid))
    return File(path, header or b"", list(zip(ids, sizes, strict=True)))


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


class Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object, in which keys may repeat."""


class Tensor(NamedTuple):
    """A tensor in a header; begin and end count from the end of the header."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def parse_header(header: bytes, what: str) -> list[int]:
    """Return the sizes of the tensors of a safetensors file, in the order of their bytes."""
    tensors, _ = parse_tensors(header, what)
    position = 0
    for tensor in tensors.values():
        need(tensor.begin == position, f"{what} leaves holes or overlaps")
        position = tensor.end
    return [tensor.end - tensor.begin for tensor in tensors.values()]


def parse_tensors(header: bytes, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, in the order of their bytes, and its metadata."""
    need(len(header) <= 8 + MAX_HEADER, f"{what} is too large")
    need(header[:8] == (len(header) - 8).to_bytes(8, "little"), f"{what} has a wrong length")
    entries = parse_json(header[8:], what)
    need(isinstance(entries, Pairs), f"{what} is not an object")
    metadata = [value for key, value in entries if key == "__metadata__"]
    need(len(metadata) <= 1, f"{what}: metadata twice")
    for value in metadata:
        is_map = isinstance(value, Pairs) and all(isinstance(text, str) for _, text in value)
        need(value is None or is_map, f"{what}: metadata")
    fields = {
        name: tensor_fields(entry, f"{what}: tensor {name!r}")
        for name, entry in entries
        if name != "__metadata__"
    }
    found = {
        name: Tensor(dtype, shape, *tensor_span(dtype, shape, offsets, f"{what}: tensor {name!r}"))
        for name, (dtype, shape, offsets) in fields.items()
    }
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    return tensors, dict(metadata[0] or []) if metadata else {}


def parse_json(text: bytes, what: str) -> Any:
    bare = re.sub(rb'"(?:[^"\\]++|\\.)*+"?+', b"", text, flags=re.DOTALL)
    brackets = bare.count(b"[") + bare.count(b"{")
    need(brackets <= 1024 + len(text) // 12, f"{what} has too many brackets")
    depths = itertools.accumulate((byte in b"[{") - (byte in b"]}") for byte in bare)
    need(max(depths, default=0) <= 127, f"{what} is nested too deeply")
    value = json.loads(
        text.decode(), object_pairs_hook=Pairs, parse_int=to_int, parse_float=to_float
    )
    check_values(value, what)
    return value


def to_int(digits: str) -> int | float:
    return to_float(digits) if digits == "-0" or len(digits) > 20 else int(digits)


def to_float(digits: str) -> float:
    need(abs(float(digits)) <= sys.float_info.max, "a number is out of range")
    return float(digits)


def check_values(value: Any, what: str) -> None:
    """Refuse values that Python accepts although they are not valid JSON."""
    if isinstance(value, list | tuple):  # `Pairs` are lists of tuples
        for item in value:
            check_values(item, what)
    is_bad_text = isinstance(value, str) and not is_text(value)
    is_constant = isinstance(value, float) and not abs(value) <= sys.float_info.max
    need(not is_bad_text and not is_constant, f"{what} is not JSON")


def tensor_fields(entry: Any, what: str) -> tuple[str, list[int], list[int]]:
    if isinstance(entry, Pairs):
        known = [(key, value) for key, value in entry if key in FIELDS]
        need(len(known) == len(dict(known)), f"{what} has a field twice")
        entry = [dict(known).get(key) for key in FIELDS]
    need(isinstance(entry, list) and len(entry) == len(FIELDS), f"{what} is malformed")
    dtype, shape, offsets = entry
    if isinstance(dtype, Pairs) and len(dtype) == 1 and dtype[0][1] is None:
        dtype = dtype[0][0]
    need(isinstance(dtype, str) and dtype in BITS, f"{what} has an unknown dtype")
    is_lists = type(shape) is list and type(offsets) is list and len(offsets) == 2
    need(is_lists, f"{what} is malformed")
    return dtype, ints(shape, 0, MAX_SIZE, what), ints(offsets, 0, MAX_SIZE, what)


def tensor_span(dtype: str, shape: list[int], offsets: list[int], what: str) -> tuple[int, int]:
    start, end = offsets
    elements = 1
    for n in shape:
        elements *= n
        need(elements <= MAX_SIZE, f"{what} is too large")
    bits = elements * BITS[dtype]
    need(bits <= MAX_SIZE and bits == (end - start) * 8, f"{what} has a wrong size")
    return start, end


def parse_pack_table(encoded: bytes, chunks: int) -> list[bytes]:
    fields, what = msgpack.unpackb(encoded, strict_map_key=False), "the pack table"
    packs = split(fields["packs"], 32, what)
    rows = ints(fields["pack"], 0, len(packs) - 1, what)
    need(len(rows) == chunks, f"{what} has {len(rows)} rows for {chunks} chunks")
    return packs


def check_out(store: Path, ref: str, out_dir: Path) -> None:
    chunking = read_config(store)
    files, packs = read_snapshot(store, find_snapshot(store, ref), chunking)
    chunks = ChunkReader(store, chunking.digest, packs)
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
