"""Read chunks from packs, by docs/format.md alone. Part of `reader`."""

import itertools
import operator
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack
import xxhash
import zstandard
from blake3 import blake3

from tools.spec.arithmetic import FLOATS, read_rule
from tools.spec.differences import Bytes, decode_dense, decode_sparse
from tools.spec.low_rank import read_factors
from tools.spec.records import decode_records

MAX_CHUNK = MAX_INDEX = MAX_WINDOW = 67_108_864
POSITION = "(?!0{12})[0-9]{12}"
WHOLE_MOVE = re.compile(
    POSITION + r"-(?!0{64})([0-9a-f]{64})(-[0-9a-f]{64})?(-[0-9a-f]{16})?\.step"
)
MAX_END = 536_870_912  # bytes of the index of a snapshot object
MAX_INT = 2**63 - 1
MAX_FRAMES = 4_096
MAX_ROOTS = 8
MAX_SLICES = 65_536
MAX_RANK = 64
DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "blake3": lambda data: blake3(data).digest(),
    "xxh3-128": lambda data: xxhash.xxh3_128_digest(data),
}
DIGEST_SIZES = {"blake3": 32, "xxh3-128": 16}


class Frame(NamedTuple):
    chunk: bytes
    raw_size: int
    name: str  # of the object that contains it
    offset: int
    size: int
    encoding: int
    checksum: bytes
    base: bytes | None
    roots: tuple[tuple[bytes, int], ...]  # each with its raw size


class StoreError(ValueError):
    """The store breaks a rule of docs/format.md, or does not contain what was requested."""


# Exceptions of reading malformed data, such as a missing key or a value of a wrong type.
FAILURES = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error),
    *(msgpack.UnpackException, zstandard.ZstdError),
)


def need(condition: bool, problem: str) -> None:
    if not condition:
        raise StoreError(problem)


def ints(values: Any, low: int, high: int, what: str) -> list[int]:
    is_list = isinstance(values, list) and all(type(n) is int and low <= n <= high for n in values)
    need(is_list, f"{what}: malformed numbers")
    return list(values)


def is_text(value: object) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def split(joined: Any, size: int, what: str) -> list[bytes]:
    is_column = isinstance(joined, bytes) and len(joined) % size == 0
    need(is_column, f"{what}: not made of {size} bytes each")
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def decompress(data: bytes, size: int, what: str) -> bytes:
    """Return the content of one zstd frame, which must have `size` bytes."""
    frame = zstandard.get_frame_parameters(data)
    need(frame.content_size == size, f"{what}: its zstd frame does not hold {size} bytes")
    need(frame.window_size <= MAX_WINDOW, f"{what}: its zstd window is too large")
    content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    need(len(content) == size, f"{what}: its zstd frame is truncated")
    return content


def whole_moves(store: Path) -> dict[str, Path]:
    """Return the moves that are versions, by the name that their version has as an object."""
    found: dict[str, Path] = {}
    for path in sorted((store / "refs" / "heads").rglob("*.step")):
        if match := WHOLE_MOVE.fullmatch(path.name):
            found.setdefault(f"snapshots/{match[1]}", path)
    return found


def place(store: Path, name: str) -> Path:
    """Return the file of an object; the object of a version may be a move of a branch."""
    path = store / name
    if name.startswith("snapshots/") and not path.is_file():
        return whole_moves(store).get(name, path)
    return path


class End(NamedTuple):
    """The end of a pack or of a snapshot object."""

    prefix: bytes  # the first bytes of the object
    start: int  # offset of the index
    content: bytes  # the index
    rest: bytes  # the bytes between the index and the trailer


def read_end(file: BinaryIO, name: str, rest: int, limit: int) -> End:
    """Return the end of an object that has `rest` bytes between its index and its trailer."""
    prefix = file.read(8)
    end = file.seek(-8, 2)
    size, magic = struct.unpack("<I4s", file.read(8))
    need(magic == b"cidx" and size <= min(limit, end - rest - 8), f"{name} is damaged")
    start = file.seek(end - rest - size)
    return End(prefix, start, file.read(size), file.read(rest))


def read_snapshot_end(file: BinaryIO, name: str) -> tuple[dict[str, Any], list[Frame]]:
    """Return the fields of a snapshot object's index, and the frames that the object carries."""
    end = read_end(file, name, 8, MAX_END)
    need(xxhash.xxh3_64_digest(end.prefix + end.content) == end.rest, f"{name} is damaged")
    need(end.prefix[:5] == b"casws", f"{name} is of another kind")
    need(end.prefix[5] == 2, f"{name} has format version {end.prefix[5]}")
    fields = msgpack.unpackb(end.content)
    if "frames" not in fields:
        need(end.start == 8, f"{name} has bytes that are no frames")
        return fields, []
    need(len(fields["frames"]) <= MAX_INDEX, f"{name}: too many frames")
    frames = parse_columns(fields["frames"], name, end.start)
    need(bool(frames), f"{name} lists no frames")
    return fields, frames


def read_index(store: Path, name: str) -> list[Frame]:
    """Return the frames that a pack or a snapshot object lists."""
    with place(store, name).open("rb") as file:
        if name.startswith("snapshots/"):
            return read_snapshot_end(file, name)[1]
        end = read_end(file, name, 0, MAX_INDEX)
    need(f"packs/{blake3(end.prefix + end.content).hexdigest()}" == name, f"{name} is damaged")
    need(end.prefix[:6] == b"caswp\x02", f"{name} has another format version")
    return parse_columns(end.content, name, end.start)


def parse_columns(index: bytes, what: str, start: int) -> list[Frame]:
    """Return the frames that columns describe; the last one must end at `start`."""
    fields = msgpack.unpackb(index, strict_map_key=False)
    need(fields["digest_size"] in DIGEST_SIZES.values(), f"{what} has an unknown digest")
    chunks = split(fields["chunk"], fields["digest_size"], what)
    raw_sizes, sizes = numbers(fields["raw_size"], what), numbers(fields["size"], what)
    need(max(raw_sizes, default=0) <= MAX_CHUNK, f"{what}: a chunk that is too large")
    *offsets, frames_end = itertools.accumulate(sizes, initial=8)
    need(frames_end == start, f"the frames of {what} do not end where its index begins")
    need(all(map(operator.le, sizes, raw_sizes)), f"{what}: a frame larger than its chunk")
    encodings = [byte[0] for byte in split(fields["encoding"], 1, what)]
    checksums = split(fields["checksum"], 8, what)
    based, rows = fields["based"], len(chunks)
    need(type(based) is bytes and len(based) == -(-rows // 8), f"{what}: malformed bits")
    bits = [based[row // 8] >> row % 8 & 1 for row in range(8 * len(based))]
    need(not any(bits[rows:]), f"{what}: bits of rows that do not exist")
    own = iter(split(fields["base"], fields["digest_size"], what))
    bases = [next(own, b"") if bit else None for bit in bits[:rows]]
    need(b"" not in bases and next(own, None) is None, f"{what}: another number of bases")
    names, roots = [what] * len(chunks), parse_roots(fields, rows, what)
    need(not any(bits[row] and roots[row] for row in range(rows)), f"{what}: a base and roots")
    columns = (chunks, raw_sizes, names, offsets, sizes, encodings, checksums, bases, roots)
    return [Frame(*row) for row in zip(*columns, strict=True)]


def parse_roots(
    fields: dict[str, Any], rows: int, what: str
) -> list[tuple[tuple[bytes, int], ...]]:
    """Return the roots of each row."""
    chunks = split(fields.get("root", b""), fields["digest_size"], what)
    of, sizes = (numbers(fields.get(key, b""), what) for key in ("root_of", "root_size"))
    need(len(chunks) == len(of) == len(sizes), f"{what}: columns of roots of different lengths")
    need(of == sorted(of) and max(of, default=-1) < rows, f"{what}: roots of no row, or unordered")
    need(all(0 < size <= MAX_CHUNK for size in sizes), f"{what}: a root of a wrong size")
    found: dict[int, list[tuple[bytes, int]]] = {}
    for row, chunk, size in zip(of, chunks, sizes, strict=True):
        found.setdefault(row, []).append((chunk, size))
    need(all(len(roots) <= MAX_ROOTS for roots in found.values()), f"{what}: too many roots")
    return [tuple(found.get(row, ())) for row in range(rows)]


def numbers(column: bytes, what: str) -> list[int]:
    """Return the numbers in a column of u32."""
    return [int.from_bytes(number, "little") for number in split(column, 4, what)]


def decode(stored: bytes, encoding: int, raw_size: int, base: bytes | None) -> bytes:
    need(encoding in (0, 1, 2, 3, 4, 5, 7, 8), f"unknown encoding {encoding}")
    need((encoding >= 3) == (base is not None), "a base that is missing or not allowed")
    if base is not None:
        by_code = {3: decode_dense, 4: decode_sparse, 5: decode_parts, 7: decode_low_rank}
        by_code[8] = decode_records
        return by_code[encoding](stored, base)
    if encoding == 0:
        return stored
    if encoding == 1:
        return decompress(stored, raw_size, "a frame")
    return join_planes(split_planes(stored, raw_size))


def decode_derived(stored: bytes, raw_size: int, roots: list[bytes]) -> bytes:
    payload, base, used = Bytes(stored), bytearray(), set()
    number, rule, laid = payload.byte(), None, raw_size
    need(number in (0, 1, 2), "an unknown rule")
    if number == 1:
        source, target, flags = payload.take(3)
        rule = read_rule(source, target, flags, payload.take(8) if flags & 2 else b"")
        need(raw_size % rule.target.width == 0, "a part of an element")
        laid = rule.operand_bytes(raw_size)
    for root, offset, size in read_patterns(payload) if number == 2 else read_slices(payload):
        need(root <= len(roots) and size > 0, "a malformed slice")
        need(size <= laid - len(base), "slices that are longer than the operands")
        if root:
            need(offset + size <= len(roots[root - 1]), "a slice beyond its root")
            base += roots[root - 1][offset : offset + size]
            used.add(root)
        else:
            need(offset == 0, "a slice of zeros with an offset")
            base += bytes(size)
    need(len(base) == laid, "slices that do not cover the operands")
    need(len(used) == len(roots), "a root without a slice")
    result = bytes(base) if rule is None else rule.apply(bytes(base))
    encoding = payload.byte()
    need(encoding in (3, 4, 5, 7, 8, 255), "an unknown difference")
    rest = payload.take(payload.left)
    if encoding == 255:
        need(not rest, "bytes after the slices")
        return result
    return decode(rest, encoding, raw_size, result)


def read_slices(payload: Bytes) -> list[tuple[int, int, int]]:
    """Return the root, offset and bytes of slices that are listed one by one."""
    count = payload.varint()
    need(count <= MAX_SLICES, "too many slices")
    return [(payload.varint(), payload.varint(), payload.varint()) for _ in range(count)]


def read_patterns(payload: Bytes) -> list[tuple[int, int, int]]:
    """Return the root, offset and bytes of slices that are listed by patterns."""
    slices: list[tuple[int, int, int]] = []
    for _ in range(payload.varint()):
        times, count = payload.varint(), payload.varint()
        need(times > 0 and count > 0, "an empty pattern")
        need(len(slices) + times * count <= MAX_SLICES, "too many slices")
        rows = [[payload.varint() for _ in range(4)] for _ in range(count)]
        need(all(times > 1 or not step for *_, step in rows), "a step that leads nowhere")
        for time in range(times):
            slices += [(root, offset + time * step, size) for root, offset, size, step in rows]
    return slices


def decode_parts(stored: bytes, base: bytes) -> bytes:
    payload, decoded, at = Bytes(stored), [], 0
    heads = [(payload.byte(), payload.varint(), payload.varint()) for _ in range(payload.byte())]
    need(len(heads) >= 2, "a difference of less than two parts")
    need(sum(raw_size for _, raw_size, _ in heads) == len(base), "parts of a wrong size")
    for encoding, raw_size, size in heads:
        need(encoding in (0, 1, 2, 3, 4, 7, 8) and raw_size > 0, "a malformed part")
        part = base[at : at + raw_size] if encoding >= 3 else None
        decoded.append(decode(payload.take(size), encoding, raw_size, part))
        need(len(decoded[-1]) == raw_size, "a part of a wrong size")
        at += raw_size
    need(payload.left == 0, "a payload that is longer than its parts")
    return b"".join(decoded)


def decode_low_rank(stored: bytes, base: bytes) -> bytes:
    payload = Bytes(stored)
    kind = payload.byte()
    need(kind in FLOATS and len(base) % FLOATS[kind].width == 0, "elements that are no floats")
    count, columns, start = len(base) // FLOATS[kind].width, payload.varint(), payload.varint()
    rank, exponent = payload.byte(), int.from_bytes(payload.take(1), "little", signed=True)
    need(0 < rank <= MAX_RANK and start < columns <= count, "factors of a wrong shape")
    rows = -(-(start + count) // columns)
    need(rank * (rows + columns) <= count, "more factors than elements")
    planes = split_planes(payload.take(payload.varint()), 2 * rank * (rows + columns))
    factors = read_factors(join_planes(planes), rows, columns, rank, exponent, start)
    encoding = payload.byte()
    need(encoding in (3, 4), "an unknown difference")
    predicted = factors.predict(base, kind)
    return decode(payload.take(payload.left), encoding, len(base), predicted)


def split_planes(stored: bytes, raw_size: int) -> list[bytes]:
    """Return the planes of a frame, the least significant first."""
    width = stored[0]
    need(width in (1, 2, 4, 8) and raw_size % width == 0, "planes of a wrong width")
    plane_size, position = raw_size // width, 1 + 5 * width
    planes = []
    for mode, size in struct.iter_unpack("<BI", stored[1:position]):
        plane = stored[position : position + size]
        need(mode in (0, 1), "a plane of unknown mode")
        planes.append(decompress(plane, plane_size, "a plane") if mode == 1 else plane)
        need(len(planes[-1]) == plane_size, "a plane of a wrong size")
        position += size
    need(len(planes) == width and position == len(stored), "planes that do not fill their frame")
    return planes[::-1]


def join_planes(planes: list[bytes]) -> bytes:
    """Return the elements whose rotated bytes the planes hold.

    Byte k of an element is the upper 7 bits of plane k, below the lowest bit of plane k + 1 (of
    plane 0, for the highest byte). Large integers do this to all elements of a plane at once.
    """
    width, count = len(planes), len(planes[0])
    lowest_bits = int.from_bytes(b"\x01" * count, "little")
    rotated = [int.from_bytes(plane, "little") for plane in planes]
    joined = bytearray(width * count)
    for k in range(width):
        upper = (rotated[k] & ~lowest_bits) >> 1
        carried = (rotated[(k + 1) % width] & lowest_bits) << 7
        joined[k::width] = (upper | carried).to_bytes(count, "little")
    return bytes(joined)


class ChunkReader:
    """Reads chunks by chains of frames, first from the objects of the table, then from all."""

    def __init__(self, store: Path, digest: str, chunk_size: int, names: list[str]) -> None:
        self._store = store
        self._digest = DIGESTS[digest]
        self._most_roots = 8 * chunk_size
        self._frames: dict[bytes, list[Frame]] = {}
        self._indexed: set[str] = set()
        self._read_indexes(names)

    def _read_indexes(self, names: list[str]) -> bool:
        """Record all frames of these objects; return whether any object is new."""
        new = [name for name in names if name not in self._indexed]
        self._indexed.update(new)
        for name in new:
            try:
                frames = read_index(self._store, name)
            except FAILURES:
                continue  # another object may contain the same chunks
            for frame in frames:
                self._frames.setdefault(frame.chunk, []).append(frame)
        return bool(new)

    def _everything(self) -> list[str]:
        """Return the names of all packs and snapshot objects."""
        folders = ("packs", "snapshots")
        found = [path for folder in folders for path in (self._store / folder).glob("[0-9a-f]*")]
        return sorted({*whole_moves(self._store), *(f"{p.parent.name}/{p.name}" for p in found)})

    def read(self, chunk: bytes, raw_size: int) -> bytes:
        problem: object = "no pack contains it, or a base that it needs"
        while True:
            chain = self._find_chain(chunk, raw_size) or self._find_derived(chunk, raw_size)
            if not chain:
                if self._read_indexes(self._everything()):
                    continue
                raise StoreError(f"chunk {chunk.hex()}: {problem}")
            raw = None
            for frame in chain:
                try:
                    raw = self._read_frame(frame, raw)
                except FAILURES as error:
                    problem = f"the frame of {frame.chunk.hex()}: {error}"
                    self._frames[frame.chunk].remove(frame)  # and try another chain
                    break
            else:
                assert raw is not None
                return raw

    def _find_derived(self, chunk: bytes, raw_size: int) -> list[Frame]:
        """Return a chain that begins with a derived frame whose roots have chains."""
        chain = self._find_chain(chunk, raw_size, self._can_derive)
        needed = [self._find_chain(*root) for frame in chain for root in frame.roots]
        return chain if len(chain) + sum(map(len, needed)) <= MAX_FRAMES else []

    def _can_derive(self, frame: Frame) -> bool:
        nbytes = sum(size for _, size in frame.roots)
        has_chains = all(self._find_chain(*root) for root in frame.roots)
        return bool(frame.roots) and nbytes <= self._most_roots and has_chains

    def _find_chain(
        self,
        chunk: bytes,
        raw_size: int,
        begins: Callable[[Frame], bool] = lambda frame: not frame.roots,
    ) -> list[Frame]:
        """Return the shortest chain of frames that ends with a chunk; empty if no chain exists.

        `begins` tells whether it may begin with a frame that has no base.
        """
        after: dict[bytes, Frame | None] = {
            chunk: None
        }  # the frame that follows each chunk in its chain
        front = [chunk]
        for _ in range(MAX_FRAMES):
            known = [frame for place in front for frame in self._frames.get(place, [])]
            found = [frame for frame in known if frame.raw_size == raw_size]
            for frame in found:
                if frame.base is None and begins(frame):
                    return self._chain_from(frame, after)
            front = []
            for frame in found:
                if frame.base is not None and frame.base not in after:
                    after[frame.base] = frame
                    front.append(frame.base)
        return []

    def _chain_from(self, first: Frame, after: dict[bytes, Frame | None]) -> list[Frame]:
        chain = [first]
        while (following := after[chain[-1].chunk]) is not None:
            chain.append(following)
        return chain

    def _read_frame(self, frame: Frame, base: bytes | None) -> bytes:
        with place(self._store, frame.name).open("rb") as file:
            file.seek(frame.offset)
            stored = file.read(frame.size)
        need(xxhash.xxh3_64_digest(stored) == frame.checksum, "it is damaged")
        need((frame.encoding == 6) == bool(frame.roots), "roots that are missing or not allowed")
        if frame.roots:
            roots = [self.read(*root) for root in frame.roots]
            raw = decode_derived(stored, frame.raw_size, roots)
        else:
            raw = decode(stored, frame.encoding, frame.raw_size, base)
        is_right = len(raw) == frame.raw_size and self._digest(raw) == frame.chunk
        need(is_right, "it decodes to another chunk")
        return raw
