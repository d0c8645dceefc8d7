"""Encode a chunk as its difference from another one: the choice between the ways to do so."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from casweights.format.codecs import Encoding, encode
from casweights.format.elements import kind_of
from casweights.format.layout import Extent
from casweights.kernels.kinds import ElementKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.format.codecs import Encoded
    from casweights.format.dtypes import DType
    from casweights.format.low_rank import Factors
    from casweights.format.parts import Part
    from casweights.format.records import Records
    from casweights.system.buffers import Buffer

# Shares of changed elements. Below the first, `dense` is smaller only if the changes are of random
# sizes; above the second, `sparse` is hardly ever smaller. `tools/bench/run encodings --only
# densities` measures both encodings at every share.
_SURELY_SPARSE, _SURELY_DENSE = 0.02, 0.12
_RANDOM_CHANGE_BYTES = 2  # bytes that `sparse` needs for a change of random size, roughly
_BLOCKS, _BLOCK = 64, 4096  # blocks, and elements in each, of the sample that estimates the share
_SAMPLED = 16  # blocks of bytes on which elements are compared with halves of bytes
_MAYBE_HALVES = ("U8", "I32", "U32", "F4")  # dtypes in which numbers of 4 bits are stored
_HALVES_SHARE = 0.9  # of the bytes by elements: a smaller gain does not repay twice the elements
_LEAST_RECORDS = 4096  # bytes of a chunk that is looked at
_MAX_PART_SHARE = 0.5  # of a part's bytes: above it, a part without a base may be smaller


def encode_difference(
    raw: Buffer, base: Buffer, dtype: DType, extents: Sequence[Extent] = ()
) -> Encoded | None:
    """Encode a chunk as its difference from another one.

    Args:
        raw: The chunk's bytes.
        base: The other chunk's bytes, of the same length.
        dtype: Element type of both.
        extents: What the chunk has of each tensor, in order. If the tensors change differently,
            each group of neighbours that change alike is encoded by itself.

    Returns:
        The smallest difference found; None if it is not smaller than the chunk.
    """
    from casweights.format.parts import MAX_PARTS, divide, join

    extents = extents or [Extent(len(raw))]
    groups = divide(raw, base, kind_of(dtype).width, extents)
    if len(groups) == 1 and (records := _find_records(raw, base, dtype)) is not None:
        payload = _encode_records(raw, base, records)
        return (Encoding.RECORDS, payload) if len(payload) < len(raw) else None
    parts, start = [], 0
    for group in groups:
        size = sum(extent.nbytes for extent in group)
        new, old = (memoryview(data)[start : start + size] for data in (raw, base))
        parts += _encode_group(new, old, dtype, group, alone=len(groups) == 1)
        start += size
    if len(parts) > MAX_PARTS:
        parts = _encode_group(memoryview(raw), memoryview(base), dtype, (), alone=True)
    if len(parts) == 1:
        best: Encoded = Encoding(parts[0].encoding), parts[0].payload
    else:
        best = Encoding.PARTS, join(parts)
    return best if len(best[1]) < len(raw) else None


def _encode_group(
    new: memoryview, old: memoryview, dtype: DType, extents: Sequence[Extent], *, alone: bool
) -> list[Part]:
    """Return one part for all tensors of a group, or one for each if that is smaller.

    Args:
        new: The bytes of the group.
        old: Those of its base.
        dtype: Element type of both.
        extents: What it has of each tensor; nothing if they are not to be told apart.
        alone: Whether the group is all of the chunk, so that `encode` is not tried.
    """
    joint = _part(_encode_elements(new, old, kind_of(dtype)), new)
    if joint.encoding == Encoding.DENSE:
        each = _encode_each(new, old, dtype, extents, joint)
        if each and sum(len(part.payload) for part in each) < len(joint.payload):
            return each
    if not alone and len(joint.payload) > _MAX_PART_SHARE * len(new):
        whole = _part(encode(new, dtype, "auto"), new)
        return [min(joint, whole, key=lambda part: len(part.payload))]
    return [joint]


def _encode_each(
    new: memoryview, old: memoryview, dtype: DType, extents: Sequence[Extent], joint: Part
) -> list[Part]:
    """Return a part for each tensor, with factors where they help; nothing if none has any.

    Args:
        new: The bytes of the tensors.
        old: Those of their base.
        dtype: Element type of both.
        extents: What each tensor has of them.
        joint: The part that they are together.
    """
    from casweights.format.factoring import find_factors

    ends = accumulate((extent.nbytes for extent in extents), initial=0)
    sides = [(new[start:end], old[start:end]) for start, end in pairwise(ends)]
    kind = kind_of(dtype)
    found = [find_factors(*side, kind, extent) for side, extent in zip(sides, extents, strict=True)]
    if not any(found):
        return []
    parts = []
    for (raw, base), factors in zip(sides, found, strict=True):
        plain = joint if len(sides) == 1 else _part(_encode_elements(raw, base, kind), raw)
        better = None if factors is None else _part(_predicted(raw, base, kind, factors), raw)
        parts.append(better if better and len(better.payload) < len(plain.payload) else plain)
    return parts


def _part(encoded: Encoded, raw: memoryview) -> Part:
    from casweights.format.parts import Part

    return Part(encoded[0], len(raw), encoded[1])


def _predicted(new: memoryview, old: memoryview, kind: ElementKind, factors: Factors) -> Encoded:
    """Return the difference from what factors predict, with these."""
    from casweights.format.low_rank import LowRank

    predicted = bytearray(old)
    factors.apply(kind, memoryview(predicted))
    rest = _encode_elements(new, predicted, kind)
    return Encoding.LOW_RANK, LowRank(kind, factors, rest).join()


def _encode_elements(raw: Buffer, base: Buffer, kind: ElementKind) -> Encoded:
    """Return the smaller result of `sparse` and `dense`."""
    from casweights.kernels import dense_encode, sparse_encode

    share = _changed_share(raw, base, kind.width)
    found: list[Encoded] = []
    if share < _SURELY_DENSE:
        found.append((Encoding.SPARSE, sparse_encode(base, raw, kind)))
    if (
        share > _SURELY_SPARSE
        or len(found[0][1]) > _RANDOM_CHANGE_BYTES * share * len(raw) / kind.width + _BLOCK
    ):
        found.append((Encoding.DENSE, dense_encode(base, raw, kind)))
    return min(found, key=lambda item: len(item[1]))


def _find_records(raw: Buffer, base: Buffer, dtype: DType) -> Records | None:
    """Return the records of a chunk; None if it is better off without."""
    from casweights.format.blocks import find_blocks
    from casweights.format.records import all_halves

    if dtype.code not in _MAYBE_HALVES or len(raw) < _LEAST_RECORDS:
        return None
    blocks = find_blocks(raw) if dtype.code == "U8" else None
    if blocks is not None:
        return blocks
    new, old = _sampled(raw), _sampled(base)
    if new == old:
        return None
    as_halves = _encode_records(new, old, all_halves(len(new)))
    as_elements = _encode_elements(new, old, kind_of(dtype))[1]
    return all_halves(len(raw)) if len(as_halves) < _HALVES_SHARE * len(as_elements) else None


def _sampled(data: Buffer) -> bytes:
    """Return blocks spread over a chunk; all of a chunk that has no more bytes."""
    step = len(data) // _SAMPLED & ~7
    if step <= _BLOCK:
        return bytes(data)
    return b"".join(memoryview(data)[n * step :][:_BLOCK] for n in range(_SAMPLED))


def _encode_records(raw: Buffer, base: Buffer, records: Records) -> bytes:
    from casweights.format.records import NUMBERS, elements, expected, join

    old, new = records.take_apart(base), records.take_apart(raw)
    streams = [_encode_elements(new[0].data, old[0].data, ElementKind.PLAIN_8)]
    for field, before, after in zip(records.fields, old[1:], new[1:], strict=True):
        if not field.bits:
            kind = ElementKind.FLOAT_16 if field.size == 2 else ElementKind.PLAIN_8
            streams.append(_encode_elements(after.data, before.data, kind))
            continue
        scales = (old[field.scale].data, new[field.scale].data) if field.scale else None
        known = expected(field, before.data, scales)
        found = elements(field, after.data, known)
        streams.append(_encode_elements(found.data.cast("B"), known.data.cast("B"), NUMBERS))
    return join(records, streams)


def _changed_share(raw: Buffer, base: Buffer, width: int) -> float:
    """Estimate the share of elements that differ, from blocks spread over the whole chunk."""
    import numpy as np

    new, old = (np.frombuffer(data, f"<u{width}") for data in (raw, base))
    if len(new) > _BLOCKS * _BLOCK:
        step = len(new) // _BLOCKS
        new, old = (a[: _BLOCKS * step].reshape(_BLOCKS, step)[:, :_BLOCK] for a in (new, old))
    return np.count_nonzero(new != old) / max(1, new.size)
