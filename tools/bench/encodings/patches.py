"""Patch formats of other projects: positions and new values of the elements that a step changes.

The formats are written from their publications. They use a lean container (names and counts in
msgpack) instead of their own, larger envelopes, without shapes, digests and versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import numpy as np
import safetensors.numpy

from tools.bench.encodings.states import unzstd, zstd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tools.bench.encodings.states import Array, Indices, State

GAP_ESCAPE = 0xFFFF


def changes(base: State, new: State) -> Iterator[tuple[str, Indices]]:
    """Yield the tensors that changed, with the positions of the changes."""
    for name, old in base.items():
        indices = np.flatnonzero(old != new[name])
        if len(indices):
            yield name, indices


def apply(base: State, changes: Iterable[tuple[str, Indices, Array]]) -> State:
    """Return a copy of a state with changes applied: tensor name, positions and new values."""
    result = dict(base)
    for name, indices, values in changes:
        result[name] = base[name].copy()
        result[name][indices] = values
    return result


def _gaps(indices: Indices) -> Indices:
    """Return the first index, and then the distance of each index from the previous one."""
    return np.diff(indices, prepend=0)


def trl_v1_encode(base: State, new: State) -> bytes:
    """Encode int32 indices and values."""
    tensors: dict[str, Array] = {}
    for name, indices in changes(base, new):
        tensors[f"{name}.indices"] = indices.astype(np.int32)
        tensors[f"{name}.values"] = new[name][indices]
    return safetensors.numpy.save(tensors)


def trl_v1_decode(base: State, payload: bytes) -> State:
    tensors = safetensors.numpy.load(payload)
    names = [key.removesuffix(".indices") for key in tensors if key.endswith(".indices")]
    return apply(
        base, ((n, tensors[f"{n}.indices"].astype(np.int64), tensors[f"{n}.values"]) for n in names)
    )


def trl_v3_encode(base: State, new: State) -> bytes:
    """Encode values and gaps in uint16, or in uint32 for tensors in which a gap needs more."""
    tensors: dict[str, Array] = {}
    for name, indices in changes(base, new):
        gaps = _gaps(indices)
        tensors[f"{name}.idx"] = gaps.astype(np.uint16 if gaps.max() < 1 << 16 else np.uint32)
        tensors[f"{name}.val"] = new[name][indices]
    return safetensors.numpy.save(tensors)


def trl_v3_decode(base: State, payload: bytes) -> State:
    tensors = safetensors.numpy.load(payload)
    names = [key.removesuffix(".idx") for key in tensors if key.endswith(".idx")]
    return apply(
        base,
        ((n, np.cumsum(tensors[f"{n}.idx"], dtype=np.int64), tensors[f"{n}.val"]) for n in names),
    )


def nemo_rl_encode(base: State, new: State) -> bytes:
    """Encode gaps (16 or 32 bits per tensor, or one range) and XORs; zstd-1 over both."""
    header, places, values = [], [], []
    for name, indices in changes(base, new):
        gaps = _gaps(indices)
        code = "range" if (gaps[1:] == 1).all() else "<u2" if gaps.max() < 1 << 16 else "<u4"
        header.append((name, len(indices), code))
        places.append((gaps[:1].astype("<u4") if code == "range" else gaps.astype(code)).tobytes())
        values.append((base[name][indices] ^ new[name][indices]).tobytes())
    return zstd(msgpack.packb((header, b"".join(places), b"".join(values))), 1)


def nemo_rl_decode(base: State, payload: bytes) -> State:
    header, places, values = msgpack.unpackb(unzstd(payload))

    def decoded() -> Iterator[tuple[str, Indices, Array]]:
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

    return apply(base, decoded())


def pulse_v1_encode(base: State, new: State) -> bytes:
    """Encode first index, escaped 16-bit gaps and values; zstd-1 over everything."""
    header, body = [], []
    for name, indices in changes(base, new):
        gaps = _gaps(indices)[1:]
        places = indices[:1].astype("<u4").tobytes() + _escaped_gaps(gaps)
        header.append((name, len(indices), len(places)))
        body += [places, new[name][indices].tobytes()]
    return zstd(msgpack.packb((header, b"".join(body))), 1)


def pulse_v1_decode(base: State, payload: bytes) -> State:
    header, body = msgpack.unpackb(unzstd(payload))

    def decoded() -> Iterator[tuple[str, Indices, Array]]:
        start = 0
        for name, count, length in header:
            first = np.frombuffer(body, "<u4", 1, start)
            gaps = _unescaped_gaps(np.frombuffer(body, "<u2", length // 2 - 2, start + 4))
            start += length
            values = np.frombuffer(body, base[name].dtype, count, start)
            start += values.nbytes
            yield name, np.cumsum(np.concatenate([first.astype(np.int64), gaps])), values

    return apply(base, decoded())


def _escaped_gaps(gaps: Indices) -> bytes:
    """Encode gaps in 16 bits each; a larger gap is an escape code and then 32 bits."""
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
        if n >= start:  # otherwise these 16 bits belong to the previous gap
            gaps[n] = int(words[n + 1]) | int(words[n + 2]) << 16
            keep[n + 1 : n + 3] = False
            start = n + 3
    return gaps[keep]
