"""Compare the signatures of a store with its versions, by docs/format.md alone; see `reader`.

    python -m tools.spec.signatures STORE

writes a line for each signature: the version, and whether its samples and its coarse row are those
that the version's tensors have.
"""

import argparse
import math
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import xxhash
from blake3 import blake3

from tools.spec.chunks import FAILURES, StoreError, ints, need
from tools.spec.header import Tensor, parse_header
from tools.spec.reader import FORMAT, read_config, read_snapshot

NAME = re.compile(r"(([1-9][0-9]{0,4})-)?([0-9a-f]{64})")
ROW = struct.Struct("<32s256sI8s")
MAX_ROWS, MAX_SIZE, MAX_GRIDS, MAX_ELEMENTS = 16_384, 4_194_304, 65_536, 1 << 62
SPREAD, WORD = 0x9E3779B97F4A7C15, 1 << 64
WIDTHS = {
    **dict.fromkeys(("F4", "F6_E2M3", "F6_E3M2", "BOOL", "U8", "I8", "F8_E8M0"), 1),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 8),
}
SMALL = {  # bits of the mantissa, bias, whether the highest exponent has infinities, NaNs
    "F8_E4M3": (3, 7, False, (0x7F, 0xFF)),
    "F8_E5M2": (2, 15, True, ()),
    "F8_E4M3FNUZ": (3, 8, False, (0x80,)),
    "F8_E5M2FNUZ": (2, 16, False, (0x80,)),
}
FLOATS = {*SMALL, "F16", "BF16", "F32", "C64", "F64"}


class Grid(NamedTuple):
    rows: int
    columns: int
    dtype: str


class Signature(NamedTuple):
    grids: list[Grid]
    samples: list[int]
    coarse: bytes


def read_signatures(store: Path, name: str) -> dict[str, Signature]:
    """Return the signatures in an object, by the ID of the version, in hex."""
    return parse_object((store / name).read_bytes(), name)


def parse_object(data: bytes, name: str) -> dict[str, Signature]:
    match = NAME.fullmatch(name.removeprefix("signatures/"))
    need(match is not None, f"{name} has no valid name")
    assert match is not None
    count = int(match[2] or 1)
    end = 20 + count * ROW.size
    need(count <= MAX_ROWS and len(data) >= end, f"{name} has no {count} rows")
    need(xxhash.xxh3_64_digest(data[: end - 8]) == data[end - 8 : end], f"{name} is damaged")
    need(data[:5] == b"caswg" and data[5] == FORMAT, f"{name} is of another kind or version")
    need(int.from_bytes(data[8:12], "little") == count, f"{name} has another number of rows")
    rows = list(ROW.iter_unpack(data[12 : end - 8]))
    ids = [row[0] for row in rows]
    need(ids == sorted(set(ids)), f"{name} is not in order")
    own = blake3(data[:end]).hexdigest() if match[2] else ids[0].hex()
    need(own == match[3], f"{name} has another ID")
    found = {}
    for snapshot, coarse, size, check in rows:
        need(0 < size <= MAX_SIZE, f"{name} has a signature of {size} bytes")
        content = data[end : end + size]
        is_intact = len(content) == size and xxhash.xxh3_64_digest(content) == check
        need(is_intact, f"{name}: a signature is damaged")
        grids, samples = parse(content, name)
        found[snapshot.hex()] = Signature(grids, samples, coarse)
        end += size
    need(end == len(data), f"{name}: bytes follow its end")
    return found


def parse(content: bytes, name: str) -> tuple[list[Grid], list[int]]:
    fields = msgpack.unpackb(content)
    table = [parse_grid(entry, name) for entry in fields["grids"]]
    need(len(table) <= MAX_GRIDS, f"{name} has too many shapes")
    grids = [table[number] for number in words(fields["tensors"], name)]
    samples = words(fields["samples"], name)
    expected = sum(len(positions(grid.rows, grid.columns)) for grid in grids)
    need(len(samples) == expected, f"{name}: the samples are not those of the tensors")
    return grids, samples


def parse_grid(entry: Any, name: str) -> Grid:
    rows, columns, dtype = entry
    ints([rows, columns], 1, MAX_ELEMENTS, name)
    need(rows * columns <= MAX_ELEMENTS and dtype in WIDTHS, f"{name}: a malformed shape")
    return Grid(rows, columns, dtype)


def words(joined: Any, name: str) -> list[int]:
    need(isinstance(joined, bytes) and len(joined) % 2 == 0, f"{name}: malformed numbers")
    return [number for (number,) in struct.iter_unpack("<H", joined)]


def positions(rows: int, columns: int) -> list[int]:
    """Return the element numbers of a tensor's samples."""
    elements = rows * columns
    wanted = 4 if elements < 2**15 else 8 if elements < 2**20 else 16
    in_row, every = min(columns, 4), 1
    while 2 * every <= rows // (wanted // in_row):
        every *= 2
    if rows * in_row < wanted:
        in_row = min(columns, wanted // rows)
    column = [(n * SPREAD % WORD) * columns // WORD for n in range(1, in_row + 1)]
    return [r * columns + c for r in range(SPREAD % every, rows, every) for c in column]


def sample(element: bytes, dtype: str) -> int:
    """Return the sample of an element."""
    bits = int.from_bytes(element, "little")
    if dtype in SMALL:
        return small_float(bits, *SMALL[dtype])
    if dtype == "F16":
        [value] = struct.unpack("<e", element)
        return nearest(value) if value == value else (bits & 0x8000 or 0) | 0x7FC0
    if dtype == "F64":
        [value] = struct.unpack("<d", element)
        return nearest(value) if value == value else (bits >> 48 & 0x8000) | 0x7FC0
    if dtype in ("F32", "C64"):
        return round_bits(bits % 2**32)
    found = 0
    while bits:
        found, bits = found ^ bits % 2**16, bits >> 16
    return found


def round_bits(bits: int) -> int:
    """Round an F32 to a BF16: to the nearest, of two to the even one."""
    if bits % 2**31 > 0x7F800000:
        return bits >> 16 | 0x40
    return (bits + 0x7FFF + (bits >> 16) % 2) >> 16


def nearest(value: float) -> int:
    """Round a number to F32, and then to BF16."""
    try:
        single = struct.pack("<f", value)
    except OverflowError:
        single = struct.pack("<f", math.copysign(math.inf, value))
    return round_bits(int.from_bytes(single, "little"))


def small_float(
    bits: int, mantissa: int, bias: int, infinities: bool, nans: tuple[int, ...]
) -> int:
    exponent, fraction = bits % 128 >> mantissa, bits % 2**mantissa
    sign = bits & 128
    if bits in nans or (infinities and exponent == 127 >> mantissa and fraction):
        return 0x7FC0
    if infinities and exponent == 127 >> mantissa:
        return sign << 8 | 0x7F80
    lead = 1 if exponent else 0
    value = (lead + fraction / 2**mantissa) * 2.0 ** (max(exponent, 1) - bias)
    return nearest(-value if sign else value)


def grid_of(tensor: Tensor) -> Grid:
    elements = tensor.size // WIDTHS[tensor.dtype]
    rows = tensor.shape[0] if tensor.shape else 1
    if rows == elements or elements % rows:
        return grid_of_vector(elements, tensor.dtype)
    return Grid(rows, elements // rows, tensor.dtype)


def grid_of_vector(elements: int, dtype: str) -> Grid:
    columns = 64 if elements >= 64 else 1
    return Grid(elements // columns, columns, dtype)


def sampled(store: Path, snapshot: str) -> Iterator[tuple[Grid, bytes]]:
    """Yield the tensors of a version that are not empty, in the order of a signature."""
    files, chunks = read_snapshot(store, snapshot, read_config(store))
    for file in files:
        content = b"".join(chunks.read(*chunk) for chunk in file.chunks)
        if file.header:
            for tensor in parse_header(file.header, file.path).values():
                if tensor.size:
                    yield grid_of(tensor), content[tensor.begin : tensor.end]
        elif content:
            yield grid_of_vector(len(content), "U8"), content


def chosen(grids: list[Grid]) -> list[int]:
    """Return the numbers of the tensors that have samples."""
    costs = [2 + 2 * len(positions(grid.rows, grid.columns)) for grid in grids]
    elements = [grid.rows * grid.columns for grid in grids]
    room = max(10_000, min(262_144, sum(elements) // 50_000))
    if sum(costs) <= room:
        return list(range(len(grids)))
    taken: list[int] = []
    for size in sorted(set(elements), reverse=True):
        alike = [n for n, count in enumerate(elements) if count == size]
        each = max(costs[n] for n in alike)
        fit = min(len(alike), room // each)
        taken += [alike[n * len(alike) // fit] for n in range(fit)]
        room -= fit * each
        if fit < len(alike):
            break
    return sorted(taken)


def signature_of(store: Path, snapshot: str) -> Signature:
    """Return the signature that a version has by its tensors."""
    tensors = list(sampled(store, snapshot))
    grids = [grid for grid, _ in tensors]
    numbers, samples = chosen(grids), []
    for grid, content in (tensors[n] for n in numbers):
        width = WIDTHS[grid.dtype]
        places = (at * width for at in positions(grid.rows, grid.columns))
        samples += [sample(content[at : at + width], grid.dtype) for at in places]
    taken = [grids[n] for n in numbers]
    return Signature(taken, samples, coarse_row(taken, samples))


def coarse_row(grids: list[Grid], samples: list[int]) -> bytes:
    """Return the smallest features of both kinds."""
    exact, rough, start = set(), set(), 0
    for grid in grids:
        found = positions(grid.rows, grid.columns)
        in_row = sum(at // grid.columns == found[0] // grid.columns for at in found)
        for at in range(start, start + len(found), in_row):
            row = samples[at : at + 4]
            if grid.columns < 4 or len(set(row[:3])) < 3:
                continue
            exact.add(mix(2 * grid.columns, row[:3]))
            if grid.dtype in FLOATS:
                rough.add(mix(2 * grid.columns + 1, [value >> 5 for value in row]))
        start += len(found)
    kinds = [sorted(kind - {2**32 - 1})[:32] for kind in (exact, rough)]
    padded = [[*kind, *[2**32 - 1] * (32 - len(kind))] for kind in kinds]
    return struct.pack("<64I", *padded[0], *padded[1])


def mix(start: int, values: list[int]) -> int:
    mixed = start
    for value in values:
        mixed = (mixed ^ value) * SPREAD % WORD
        mixed ^= mixed >> 29
    return mixed >> 32


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the signatures of a local store.")
    parser.add_argument("store", type=Path)
    store = parser.parse_args().store
    try:
        for path in sorted((store / "signatures").glob("*[0-9a-f]")):
            for snapshot, found in read_signatures(store, f"signatures/{path.name}").items():
                print(snapshot, "equal" if found == signature_of(store, snapshot) else "different")
    except FAILURES as error:
        is_told = isinstance(error, StoreError | OSError)
        print(f"error: {str(error) if is_told else repr(error):.500}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
