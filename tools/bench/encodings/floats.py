"""Measures the encodings `dense` and `planes` on a real model: bytes, and speed per processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from casweights.format.codecs import Encoding, decode
from casweights.format.elements import kind_of
from casweights.format.planes import encode_planes
from casweights.kernels import dense_decode, dense_encode, join_planes, split_planes
from casweights.kernels.reference import planes as reference
from tools.bench.encodings.data import (
    Data,
    Pair,
    chunks,
    compare_files,
    dtype_of,
    nbytes,
    pinned,
    spread,
)
from tools.bench.encodings.entropy import exponent
from tools.bench.encodings.peers import zipnn_decode, zipnn_encode
from tools.bench.encodings.programs import NotInstalledError
from tools.bench.encodings.states import read_state
from tools.bench.harness import Clock, Result, compared, measured, pair

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tools.bench.encodings.states import Array, State

OF_BITX, OF_XOR_PLANES, OF_RAW = 0.70, 0.85, 0.68
DENSE_ENCODE, DENSE_DECODE = 0.4, 0.6  # GB/s
_FIRST_BITS = 4  # leading bits of a difference, which the bound counts by their entropy
PLANES_ENCODE, PLANES_DECODE = 0.5, 0.8


def dense(data: Data, rounds: int) -> list[Result]:
    """Return the rows on fine-tunes as differences from their base."""
    tuned = [version for version in data.family if version.name.startswith(("tuned", "seed"))]
    files = [(data.base, version.path) for version in tuned] + [data.masters]
    pairs: list[Pair] = spread(compare_files, files)
    ours: list[int] = spread(_dense_bytes, files)
    results = [
        _to_bitx(version.name, found, size)
        for version, found, size in zip(tuned, pairs[:-1], ours[:-1], strict=True)
    ]
    results.append(_to_xor_planes(tuned[-2].name, pairs[-1], ours[-1], data.masters))
    for name, (base, new) in (("bf16", files[len(tuned) - 2]), ("fp32", files[-1])):
        results += pinned(1, _dense_speed, name, base, new, rounds)
    return results


def _to_bitx(name: str, found: Pair, size: int) -> Result:
    bitx = found.peers["bitx"]
    assert bitx is not None
    return compared(
        f"dense, {name} from base, bf16",
        size / 1e6,
        bitx / 1e6,
        "MB",
        target=OF_BITX,
        note=f"reference: BitX; {found.changed / found.elements:.1%} changed. Limit: "
        f"{found.conditional / 1e6:.3f} MB, the entropy of the steps given tensor and "
        f"exponent; {size / found.conditional - 1:.1%} above it",
    )


def _to_xor_planes(name: str, found: Pair, size: int, masters: tuple[Path, Path]) -> Result:
    planes = found.peers["xor_planes_zstd3"]
    assert planes is not None
    limit = _fp32_bound(*masters)
    return compared(
        f"dense, {name} from base, fp32",
        size / 1e6,
        planes / 1e6,
        "MB",
        target=OF_XOR_PLANES,
        note=f"reference: XOR, planes of bytes, zstd-3; {found.elements * 4 / 1e6:.3f} MB raw. "
        f"Limit: {limit / 1e6:.3f} MB, the entropy of the differences' signs, lengths and first "
        f"bits given tensor and exponent, all others stored; {size / limit - 1:.1%} above it",
    )


def _fp32_bound(base: Path, new: Path) -> float:
    """Return the entropy of fp32 differences, in bytes, if bits below the first four are noise."""
    old, state = read_state(base), read_state(new)
    bits = 0.0
    for name, tensor in old.items():
        difference = state[name].astype(np.int64) - tensor
        size = np.abs(difference)
        length = np.frexp(size)[1].astype(np.int64)  # 0 for 0
        below = np.maximum(length - _FIRST_BITS, 0)
        symbol = (size >> below) + (length << _FIRST_BITS) + ((difference < 0) << 16)
        exponents = (tensor >> 23 & 0xFF).astype(np.int64) << 32
        bits += _entropy(exponents + symbol) - _entropy(exponents) + float(below.sum())
    return bits / 8


def _entropy(symbols: Array) -> float:
    """Return the entropy of independent symbols, times their number, in bits."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(len(symbols) / counts)).sum())


def _dense_bytes(files: tuple[Path, Path]) -> int:
    base, new = (read_state(path) for path in files)
    kind = kind_of(dtype_of(base))
    return sum(len(dense_encode(old, chunk, kind)) for old, chunk in chunks(base, new))


def _dense_speed(name: str, base: Path, new: Path, rounds: int) -> list[Result]:
    old, state = read_state(base), read_state(new)
    kind = kind_of(dtype_of(old))
    parts = list(chunks(old, state))
    payloads = [dense_encode(a, b, kind) for a, b in parts]
    outs = [bytearray(a) for a, _ in parts]

    def restore() -> None:
        for out, (a, _) in zip(outs, parts, strict=True):
            out[:] = a

    def apply() -> None:
        for payload, out in zip(payloads, outs, strict=True):
            dense_decode(payload, out)

    def encode() -> None:
        for a, b in parts:
            dense_encode(a, b, kind)

    speeds = _speeds(rounds, (encode, apply), restore)
    if any(out != b for out, (_, b) in zip(outs, parts, strict=True)):
        raise AssertionError("dense did not reproduce the chunks")
    size = nbytes(state)
    note = "one processor, in memory. Limit: the entropy coder, which works on every element"
    return [
        _speed(f"dense encode, {name}", size, speeds[0], DENSE_ENCODE, note),
        _speed(f"dense decode, {name}", size, speeds[1], DENSE_DECODE, note),
    ]


def planes(data: Data, rounds: int) -> list[Result]:
    """Return the rows on the real model in bf16, without a base."""
    results: list[Result] = pinned(1, _planes, data.base, rounds)
    return results


def _planes(path: Path, rounds: int) -> list[Result]:
    state = read_state(path)
    raw, width = nbytes(state), dtype_of(state).plane_width
    parts = [chunk for (chunk,) in chunks(state)]
    payloads = [encode_planes(chunk, width) for chunk in parts]
    results = [
        _planes_size(state, sum(map(len, payloads))),
        *_planes_speeds(parts, payloads, width, rounds),
        *_arranging(parts, width, rounds),
    ]
    try:
        results += _zipnn(path, raw, rounds)
    except NotInstalledError as error:
        print(f"not installed: {error}")
    return results


def _planes_size(state: State, size: int) -> Result:
    raw, exponents = nbytes(state), exponent(np.concatenate(list(state.values())))
    bits = _entropy(exponents) / len(exponents)
    limit = (bits + 8) / 16
    return measured(
        "planes, of raw",
        size / raw,
        "x",
        target=OF_RAW,
        note=f"{size / 1e6:.3f} of {raw / 1e6:.3f} MB. Limit: {limit:.3f}, exponents of "
        f"{bits:.2f} bits of entropy, signs and mantissas stored; {size / raw / limit - 1:.1%} "
        "above it",
    )


def _planes_speeds(
    parts: Sequence[memoryview], payloads: Sequence[bytes], width: int, rounds: int
) -> list[Result]:
    outs = [memoryview(bytearray(len(chunk))) for chunk in parts]

    def encode() -> None:
        for chunk in parts:
            encode_planes(chunk, width)

    def restore() -> None:
        for payload, out in zip(payloads, outs, strict=True):
            decode(Encoding.PLANES, payload, out)

    encoding, decoding = _speeds(rounds, (encode, restore))
    if any(out != chunk for out, chunk in zip(outs, parts, strict=True)):
        raise AssertionError("planes did not reproduce the chunks")
    raw, note = sum(map(len, parts)), "one processor, in memory"
    limit = f"{note}. Limit: zstd's Huffman coder on half of the bytes"
    return [
        _speed("planes encode", raw, encoding, PLANES_ENCODE, limit),
        _speed("planes decode", raw, decoding, PLANES_DECODE, note),
    ]


def _arranging(parts: Sequence[memoryview], width: int, rounds: int) -> list[Result]:
    """Return the rows on the kernels that split and join planes, compared with numpy."""
    outs = [bytearray(len(chunk)) for chunk in parts]

    def over(function: Callable[..., None], sources: Sequence[Any], targets: Sequence[Any]) -> Any:
        def run() -> None:
            for source, target in zip(sources, targets, strict=True):
                function(source, target, width)

        return run

    note = "reference: the same in numpy, without entropy coding"
    split = over(split_planes, parts, outs), over(reference.split_planes, parts, outs)
    backs = [bytearray(len(chunk)) for chunk in parts]
    join = over(join_planes, outs, backs), over(reference.join_planes, outs, backs)
    return [
        pair("planes split, kernel", *split, target=None, rounds=rounds, note=note),
        pair("planes join, kernel", *join, target=None, rounds=rounds, note=note),
    ]


def _zipnn(path: Path, raw: int, rounds: int) -> list[Result]:
    state = read_state(path)
    payload = zipnn_encode(state, state)
    speeds = _speeds(
        rounds,
        (lambda: zipnn_encode(state, state), lambda: zipnn_decode(state, payload)),
    )
    note = "one thread, including the copies that join the tensors; for comparison"
    return [
        measured("zipnn, of raw", len(payload) / raw, "x", note="for comparison"),
        _speed("zipnn encode", raw, speeds[0], None, note),
        _speed("zipnn decode", raw, speeds[1], None, note),
    ]


def _speeds(
    rounds: int,
    functions: Sequence[Callable[[], object]],
    prepare: Callable[[], object] = lambda: None,
) -> list[tuple[float, float]]:
    """Return the median seconds and processor seconds of some calls of each function."""
    clock = Clock()
    for n, function in enumerate(functions):
        prepare()
        function()  # a first call fills caches
        for _ in range(rounds):
            prepare()
            clock.time(str(n), function)
    return [clock.medians(str(n)) for n in range(len(functions))]


def _speed(
    what: str, size: int, seconds: tuple[float, float], target: float | None, note: str
) -> Result:
    speed, alone = (size / value / 1e9 for value in seconds)
    note = f"{note}; by processor time {alone:.2f} GB/s"
    return measured(what, speed, "GB/s", target=target, at_least=True, note=note)
