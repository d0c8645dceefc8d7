"""Peers: other ways to store the difference of two states, written from their publications.

Each peer encodes the new state to bytes, and decodes them with the help of the old state.

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

from tools.bench.encodings.entropy import bounds, exponent
from tools.bench.encodings.patches import (
    nemo_rl_decode,
    nemo_rl_encode,
    pulse_v1_decode,
    pulse_v1_encode,
    trl_v1_decode,
    trl_v1_encode,
    trl_v3_decode,
    trl_v3_encode,
)
from tools.bench.encodings.programs import NotInstalledError, zstd_patch
from tools.bench.encodings.pulse import pulse_v3_decode, pulse_v3_encode
from tools.bench.encodings.states import flat, read_state, unflat, unzstd, zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.bench.encodings.states import Array, State


# --- Dense: the XOR of everything.


def xor_zstd_encode(base: State, new: State) -> bytes:
    """Encode the XOR of all tensors with zstd-1."""
    return zstd((flat(base) ^ flat(new)).tobytes(), 1)


def xor_zstd_decode(base: State, payload: bytes) -> State:
    old = flat(base)
    return unflat(base, old ^ np.frombuffer(unzstd(payload), old.dtype))


def bitx_encode(base: State, new: State) -> bytes:
    """Encode the XOR's exponents, and its signs with mantissas, each with zstd-3."""
    xor: Array = flat(base) ^ flat(new)
    return _planes([exponent(xor), (xor >> 8 & 0x80 | xor & 0x7F).astype(np.uint8)])


def bitx_decode(base: State, payload: bytes) -> State:
    exponents, rest = (plane.astype(np.uint16) for plane in _unplanes(payload))
    return unflat(base, flat(base) ^ ((rest & 0x80) << 8 | exponents << 7 | rest & 0x7F))


def xor_planes_encode(base: State, new: State) -> bytes:
    """Encode the XOR's first bytes, second bytes and so on, each with zstd-3."""
    xor = flat(base) ^ flat(new)
    return _planes(list(xor.view(np.uint8).reshape(-1, xor.itemsize).T))


def xor_planes_decode(base: State, payload: bytes) -> State:
    old = flat(base)
    planes = np.stack(_unplanes(payload), axis=1)
    return unflat(base, old ^ planes.reshape(-1).view(old.dtype))


def _planes(planes: Sequence[Array]) -> bytes:
    packed: bytes = msgpack.packb([zstd(plane.tobytes(), 3) for plane in planes])
    return packed


def _unplanes(payload: bytes) -> list[Array]:
    return [np.frombuffer(unzstd(plane), np.uint8) for plane in msgpack.unpackb(payload)]


# --- Without the old state.


def zipnn_encode(base: State, new: State) -> bytes:
    """Encode the new state alone with the package zipnn."""
    joined = flat(new)
    packed: bytes = _zipnn(joined.itemsize).compress(bytearray(joined.tobytes()))
    return bytes(packed)


def zipnn_decode(base: State, payload: bytes) -> State:
    old = flat(base)
    return unflat(base, np.frombuffer(bytes(_zipnn(old.itemsize).decompress(payload)), old.dtype))


def _zipnn(itemsize: int) -> Any:
    try:
        zipnn: Any = import_module("zipnn")
    except ImportError as error:
        raise NotInstalledError("zipnn") from error
    return zipnn.ZipNN(bytearray_dtype={2: "bfloat16", 4: "float32"}[itemsize], threads=1)


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to store a state.

    Attributes:
        name: Name in reports.
        encode: Encodes the new state, given the old and the new one.
        decode: Decodes the new state, given the old one and the bytes.
        itemsizes: Sizes of elements that it supports, in bytes.
    """

    name: str
    encode: Callable[[State, State], bytes]
    decode: Callable[[State, bytes], State]
    itemsizes: tuple[int, ...] = (2, 4)


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
    """Return the bytes of every peer that supports the elements; None if it is not installed.

    Raises:
        AssertionError: A peer did not reproduce the new state.
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
            raise AssertionError(f"{peer.name} did not reproduce the state")
        result[peer.name] = len(payload)
    return result


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run peers", description=__doc__)
    made.add_argument("base", type=Path, help="the old state, a safetensors file")
    made.add_argument("new", type=Path, help="the new state, a safetensors file")
    made.add_argument("--scratch", type=Path, default=None, help="folder for temporary files")
    return made


def main() -> int:
    options = parser().parse_args()
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
