"""How others store the difference of two model states, written from what they publish.

A state maps tensor names to flat arrays of bit patterns: uint16 for bf16, uint32 for fp32. Each
peer turns the new state into bytes and, with the old one, back. The sparse formats are held in a
lean container (names and counts in msgpack), not in their own envelopes, which are larger; what
they say about shapes, digests and versions is left out.

Prints the size of each peer and the entropy bounds for one pair of bf16 safetensors files.
Usage: tools/bench/run peers BASE NEW [--scratch DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import safetensors
import safetensors.numpy
import zstandard

from tools.bench.encodings.entropy import bounds, exponent
from tools.bench.encodings.programs import NotInstalledError, zstd_patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Indices = NDArray[np.int64]
    State = dict[str, Array]

DTYPES = {"BF16": np.uint16, "F32": np.uint32}
GAP_ESCAPE = 0xFFFF
VALUE_ESCAPE = 0xFF
RICE_ESCAPE = 32  # ones; the quotient is then written aside
RICE_BITS = 31


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to store a state.

    Attributes:
        name: Its name.
        encode: Makes bytes of the old and the new state.
        decode: Makes the new state of the old one and those bytes.
        itemsizes: The element sizes it is made for.
    """

    name: str
    encode: Callable[[State, State], bytes]
    decode: Callable[[State, bytes], State]
    itemsizes: tuple[int, ...] = (2, 4)


def read_state(path: Path) -> State:
    """The tensors of a safetensors file of bf16 or fp32, as bit patterns."""
    tensors: Any = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return {n: np.frombuffer(t["data"], DTYPES[t["dtype"]]) for n, t in sorted(tensors)}


# --- Sparse: which elements changed, and to what.


def _changes(base: State, new: State) -> Iterator[tuple[str, Indices]]:
    """The tensors that changed, and where."""
    for name, old in base.items():
        indices = np.flatnonzero(old != new[name])
        if len(indices):
            yield name, indices


def _apply(base: State, changes: Iterable[tuple[str, Indices, Array]]) -> State:
    result = dict(base)
    for name, indices, values in changes:
        result[name] = base[name].copy()
        result[name][indices] = values
    return result


def _gaps(indices: Indices) -> Indices:
    """The first index, then the distance of each one from the one before."""
    return np.diff(indices, prepend=0)


def trl_v1_encode(base: State, new: State) -> bytes:
    """int32 indices and values."""
    tensors: dict[str, Array] = {}
    for name, indices in _changes(base, new):
        tensors[f"{name}.indices"] = indices.astype(np.int32)
        tensors[f"{name}.values"] = new[name][indices]
    return safetensors.numpy.save(tensors)


def trl_v1_decode(base: State, payload: bytes) -> State:
    tensors = safetensors.numpy.load(payload)
    names = [key.removesuffix(".indices") for key in tensors if key.endswith(".indices")]
    return _apply(
        base, ((n, tensors[f"{n}.indices"].astype(np.int64), tensors[f"{n}.values"]) for n in names)
    )


def trl_v3_encode(base: State, new: State) -> bytes:
    """uint16 gaps, or uint32 ones for a tensor in which one does not fit, and values."""
    tensors: dict[str, Array] = {}
    for name, indices in _changes(base, new):
        gaps = _gaps(indices)
        tensors[f"{name}.idx"] = gaps.astype(np.uint16 if gaps.max() < 1 << 16 else np.uint32)
        tensors[f"{name}.val"] = new[name][indices]
    return safetensors.numpy.save(tensors)


def trl_v3_decode(base: State, payload: bytes) -> State:
    tensors = safetensors.numpy.load(payload)
    names = [key.removesuffix(".idx") for key in tensors if key.endswith(".idx")]
    return _apply(
        base,
        ((n, np.cumsum(tensors[f"{n}.idx"], dtype=np.int64), tensors[f"{n}.val"]) for n in names),
    )


def nemo_rl_encode(base: State, new: State) -> bytes:
    """All gaps, 16 or 32 bits wide in a tensor, or one range; then XORs; zstd-1 over both."""
    header, places, values = [], [], []
    for name, indices in _changes(base, new):
        gaps = _gaps(indices)
        code = "range" if (gaps[1:] == 1).all() else "<u2" if gaps.max() < 1 << 16 else "<u4"
        header.append((name, len(indices), code))
        places.append((gaps[:1].astype("<u4") if code == "range" else gaps.astype(code)).tobytes())
        values.append((base[name][indices] ^ new[name][indices]).tobytes())
    return _zstd(msgpack.packb((header, b"".join(places), b"".join(values))), 1)


def nemo_rl_decode(base: State, payload: bytes) -> State:
    header, places, values = msgpack.unpackb(_unzstd(payload))

    def changes() -> Iterator[tuple[str, Indices, Array]]:
        at_place, at_value = 0, 0
        for name, count, code in header:
            if code == "range":
                gaps = np.ones(count, np.int64)
                gaps[:1] = np.frombuffer(places, "<u4", 1, at_place)
                at_place += 4
            else:
                gaps = np.frombuffer(places, code, count, at_place).astype(np.int64)
                at_place += count * np.dtype(code).itemsize
            old, indices = base[name], np.cumsum(gaps)
            yield name, indices, old[indices] ^ np.frombuffer(values, old.dtype, count, at_value)
            at_value += count * old.itemsize

    return _apply(base, changes())


def pulse_v1_encode(base: State, new: State) -> bytes:
    """First index, escaped 16-bit gaps, values; zstd-1 over all of it."""
    header, body = [], []
    for name, indices in _changes(base, new):
        gaps = _gaps(indices)[1:]
        places = indices[:1].astype("<u4").tobytes() + _escaped_gaps(gaps)
        header.append((name, len(indices), len(places)))
        body += [places, new[name][indices].tobytes()]
    return _zstd(msgpack.packb((header, b"".join(body))), 1)


def pulse_v1_decode(base: State, payload: bytes) -> State:
    header, body = msgpack.unpackb(_unzstd(payload))

    def changes() -> Iterator[tuple[str, Indices, Array]]:
        start = 0
        for name, count, length in header:
            first = np.frombuffer(body, "<u4", 1, start)
            gaps = _unescaped_gaps(np.frombuffer(body, "<u2", length // 2 - 2, start + 4))
            start += length
            values = np.frombuffer(body, base[name].dtype, count, start)
            start += values.nbytes
            yield name, np.cumsum(np.concatenate([first.astype(np.int64), gaps])), values

    return _apply(base, changes())


def _escaped_gaps(gaps: Indices) -> bytes:
    """16 bits each; one that does not fit is the escape and then 32 bits."""
    large = gaps >= GAP_ESCAPE
    starts = np.arange(len(gaps)) + 2 * (np.cumsum(large) - large)
    words = np.zeros(len(gaps) + 2 * int(large.sum()), "<u2")
    words[starts] = np.where(large, GAP_ESCAPE, gaps)
    words[starts[large] + 1] = gaps[large] & 0xFFFF
    words[starts[large] + 2] = gaps[large] >> 16
    return words.tobytes()


def _unescaped_gaps(words: Array) -> Indices:
    gaps = words.astype(np.int64)
    keep, start = np.ones(len(words), bool), 0
    for n in np.flatnonzero(words == GAP_ESCAPE).tolist():
        if n >= start:  # not a half of the gap before
            gaps[n] = int(words[n + 1]) | int(words[n + 2]) << 16
            keep[n + 1 : n + 3] = False
            start = n + 3
    return gaps[keep]


def pulse_v3_encode(base: State, new: State) -> bytes:
    """Ranks within exponent classes in Rice codes, steps in a byte each; zstd-1 over all of it."""
    header, body = [], []
    for name, indices in _changes(base, new):
        old = base[name]
        places = _encode_classes(old, indices)
        values = _encode_steps(old[indices], new[name][indices])
        header.append((name, len(indices), len(places), len(values)))
        body += [places, values]
    return _zstd(msgpack.packb((header, b"".join(body))), 1)


def pulse_v3_decode(base: State, payload: bytes) -> State:
    header, body = msgpack.unpackb(_unzstd(payload))

    def changes() -> Iterator[tuple[str, Indices, Array]]:
        start = 0
        for name, count, places, values in header:
            old, middle, end = base[name], start + places, start + places + values
            indices = _decode_classes(old, body[start:middle])
            yield name, indices, _decode_steps(old[indices], body[middle:end], count)
            start = end

    return _apply(base, changes())


def _encode_classes(old: Array, indices: Indices) -> bytes:
    """Per exponent: a record of 10 bytes, and the ranks of what changed or, if fewer, of the rest.

    The record holds exponent, whether it is the rest, the number of ranks, and their bytes.
    """
    exponents = exponent(old)
    changed = np.zeros(len(old), bool)
    changed[indices] = True
    records, blocks = [], []
    for value in np.unique(exponents[indices]):
        flags = changed[exponents == value]
        rest = 2 * int(flags.sum()) > len(flags)
        ranks = np.flatnonzero(flags != rest)
        block = _rice(ranks)
        records.append(bytes([value, rest]) + np.array([len(ranks), len(block)], "<u4").tobytes())
        blocks.append(block)
    return np.array([len(records)], "<u2").tobytes() + b"".join([*records, *blocks])


def _decode_classes(old: Array, data: bytes) -> Indices:
    exponents = exponent(old)
    changed = np.zeros(len(old), bool)
    classes = int(np.frombuffer(data, "<u2", 1)[0])
    start = 2 + 10 * classes
    for n in range(classes):
        value, rest = data[2 + 10 * n], data[3 + 10 * n]
        count, length = (int(x) for x in np.frombuffer(data, "<u4", 2, 4 + 10 * n))
        members = np.flatnonzero(exponents == value)
        flags = np.full(len(members), rest, bool)
        flags[_unrice(data[start : start + length], count)] = not rest
        changed[members] = flags
        start += length
    return np.flatnonzero(changed)


def _rice(ranks: Indices) -> bytes:
    """The gaps of ascending numbers: k, unary quotients, remainders of k bits, large quotients."""
    if not len(ranks):
        return b""
    gaps = np.diff(ranks, prepend=-1) - 1
    k = min(range(RICE_BITS), key=lambda k: _rice_cost(gaps, k))
    quotients = gaps >> k
    ends = np.cumsum(np.minimum(quotients, RICE_ESCAPE) + 1) - 1
    unary = np.ones(-(-int(ends[-1] + 1) // 8) * 8, bool)
    unary[ends] = False
    remainders = (gaps[:, None] >> np.arange(k)[::-1] & 1).astype(bool)
    ones = np.packbits(unary).tobytes()
    large = quotients[quotients >= RICE_ESCAPE].astype("<u4").tobytes()
    size = np.array([len(ones)], "<u4").tobytes()
    return bytes([k]) + size + ones + np.packbits(remainders).tobytes() + large


def _rice_cost(gaps: Indices, k: int) -> int:
    quotients = gaps >> k
    escapes = int((quotients >= RICE_ESCAPE).sum())
    return int(np.minimum(quotients, RICE_ESCAPE).sum()) + len(gaps) * (1 + k) + 32 * escapes


def _unrice(data: bytes, count: int) -> Indices:
    if not count:
        return np.zeros(0, np.int64)
    k, size = data[0], int(np.frombuffer(data, "<u4", 1, 1)[0])
    unary = np.unpackbits(np.frombuffer(data, np.uint8, size, 5))
    quotients = np.diff(np.flatnonzero(unary == 0)[:count], prepend=-1) - 1
    middle = 5 + size
    end = middle + -(-count * k // 8)
    large = quotients == RICE_ESCAPE
    quotients[large] = np.frombuffer(data, "<u4", int(large.sum()), end)
    bits = np.unpackbits(np.frombuffer(data[middle:end], np.uint8), count=count * k)
    remainders = bits.reshape(count, k).astype(np.int64) @ (1 << np.arange(k)[::-1])
    result: Indices = np.cumsum((quotients << k) + remainders + 1) - 1
    return result


def _encode_steps(old: Array, new: Array) -> bytes:
    """Zigzags of the differences of bit patterns: a byte each, those that do not fit aside."""
    difference = (new - old).view(np.int16)
    steps = (difference << 1 ^ difference >> 15).view(np.uint16)
    short = np.minimum(steps, VALUE_ESCAPE).astype(np.uint8)
    return short.tobytes() + steps[steps >= VALUE_ESCAPE].tobytes()


def _decode_steps(old: Array, data: bytes, count: int) -> Array:
    steps = np.frombuffer(data, np.uint8, count).astype(np.uint16)
    steps[steps == VALUE_ESCAPE] = np.frombuffer(data[count:], np.uint16)
    result: Array = old + (steps >> 1 ^ -(steps & 1))
    return result


# --- Dense: the XOR of everything.


def _flat(state: State) -> Array:
    return np.concatenate([state[name] for name in sorted(state)])


def _unflat(base: State, flat: Array) -> State:
    names = sorted(base)
    ends = np.cumsum([len(base[name]) for name in names])
    return dict(zip(names, np.split(flat, ends[:-1]), strict=True))


def xor_zstd_encode(base: State, new: State) -> bytes:
    """The XOR of all tensors, as zstd-1."""
    return _zstd((_flat(base) ^ _flat(new)).tobytes(), 1)


def xor_zstd_decode(base: State, payload: bytes) -> State:
    old = _flat(base)
    return _unflat(base, old ^ np.frombuffer(_unzstd(payload), old.dtype))


def bitx_encode(base: State, new: State) -> bytes:
    """The XOR's exponents, and its signs with mantissas, each as zstd-3."""
    xor: Array = _flat(base) ^ _flat(new)
    return _planes([exponent(xor), (xor >> 8 & 0x80 | xor & 0x7F).astype(np.uint8)])


def bitx_decode(base: State, payload: bytes) -> State:
    exponents, rest = (plane.astype(np.uint16) for plane in _unplanes(payload))
    return _unflat(base, _flat(base) ^ ((rest & 0x80) << 8 | exponents << 7 | rest & 0x7F))


def xor_planes_encode(base: State, new: State) -> bytes:
    """The XOR's first bytes, second bytes and so on, each as zstd-3."""
    xor = _flat(base) ^ _flat(new)
    return _planes(list(xor.view(np.uint8).reshape(-1, xor.itemsize).T))


def xor_planes_decode(base: State, payload: bytes) -> State:
    old = _flat(base)
    planes = np.stack(_unplanes(payload), axis=1)
    return _unflat(base, old ^ planes.reshape(-1).view(old.dtype))


def _planes(planes: Sequence[Array]) -> bytes:
    packed: bytes = msgpack.packb([_zstd(plane.tobytes(), 3) for plane in planes])
    return packed


def _unplanes(payload: bytes) -> list[Array]:
    return [np.frombuffer(_unzstd(plane), np.uint8) for plane in msgpack.unpackb(payload)]


def _zstd(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)


# --- Without the old state.


def zipnn_encode(base: State, new: State) -> bytes:
    """The package zipnn, over the new state alone."""
    flat = _flat(new)
    packed: bytes = _zipnn(flat.itemsize).compress(bytearray(flat.tobytes()))
    return bytes(packed)


def zipnn_decode(base: State, payload: bytes) -> State:
    old = _flat(base)
    return _unflat(base, np.frombuffer(bytes(_zipnn(old.itemsize).decompress(payload)), old.dtype))


def _zipnn(itemsize: int) -> Any:
    try:
        zipnn: Any = import_module("zipnn")
    except ImportError as error:
        raise NotInstalledError("zipnn") from error
    return zipnn.ZipNN(bytearray_dtype={2: "bfloat16", 4: "float32"}[itemsize], threads=1)


PEERS = (
    Peer("trl_v1", trl_v1_encode, trl_v1_decode),
    Peer("trl_v3", trl_v3_encode, trl_v3_decode),
    Peer("nemo_rl", nemo_rl_encode, nemo_rl_decode),
    Peer("pulse_v1", pulse_v1_encode, pulse_v1_decode),
    Peer("pulse_v3", pulse_v3_encode, pulse_v3_decode, (2,)),
    Peer("xor_zstd", xor_zstd_encode, xor_zstd_decode),
    Peer("bitx", bitx_encode, bitx_decode, (2,)),
    Peer("xor_planes_zstd3", xor_planes_encode, xor_planes_decode),
    Peer("zipnn", zipnn_encode, zipnn_decode),
)


# --- All of them on one pair.


def sizes(base: State, new: State) -> dict[str, int | None]:
    """The bytes of every peer made for such elements, checked by decoding; None: not installed.

    Raises:
        AssertionError: A peer did not give the new state back.
    """
    itemsize = next(iter(base.values())).itemsize
    result: dict[str, int | None] = {}
    for peer in PEERS:
        if itemsize not in peer.itemsizes:
            continue
        try:
            payload = peer.encode(base, new)
            again = peer.decode(base, payload)
        except NotInstalledError:
            result[peer.name] = None
            continue
        if any((again[name] != tensor).any() for name, tensor in new.items()):
            raise AssertionError(f"{peer.name} did not give the state back")
        result[peer.name] = len(payload)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--scratch", type=Path, default=None, help="where to work")
    options = parser.parse_args()
    base, new = read_state(options.base), read_state(options.new)
    rows: dict[str, float | None] = {"raw": sum(tensor.nbytes for tensor in new.values())}
    rows |= sizes(base, new)
    with tempfile.TemporaryDirectory(dir=options.scratch) as directory:
        try:
            rows["zstd --patch-from"] = zstd_patch(options.base, options.new, Path(directory))
        except NotInstalledError:
            rows["zstd --patch-from"] = None
    if next(iter(base.values())).itemsize == 2:
        found = bounds(base, new)
        rows |= {"memoryless bound": found.memoryless, "conditional bound": found.conditional}
        print(f"{found.changed:,} of {found.elements:,} elements changed")
    for name, size in rows.items():
        print(f"{name:18} {'not installed' if size is None else f'{size:13,.0f}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
