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
_SAMPLED = 16  # blocks of bytes on which records are compared with elements
_MAYBE_HALVES = ("U8", "I32", "U32", "F4")  # dtypes in which numbers of 4 bits are stored
_SURELY_RECORDS = 0.9  # of a sample's bytes by elements; above it, both are tried
_TABLES = 300  # bytes of `dense`, roughly, which weigh more in a sample than in a chunk
_LEAST_NUMBERS = 1 << 21  # bytes of their elements from which on a sample of them decides
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
    joint = _part(_encode_alike(new, old, dtype), new)
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
    if kind is ElementKind.NUMBER:
        share = _surer_share(raw, base, kind, share)
    found: list[Encoded] = []
    if share < _SURELY_DENSE:
        found.append((Encoding.SPARSE, sparse_encode(base, raw, kind)))
    if (
        share > _SURELY_SPARSE
        or len(found[0][1]) > _RANDOM_CHANGE_BYTES * share * len(raw) / kind.width + _BLOCK
    ):
        found.append((Encoding.DENSE, dense_encode(base, raw, kind)))
    return min(found, key=lambda item: len(item[1]))


def _encode_alike(raw: memoryview, base: memoryview, dtype: DType) -> Encoded:
    """Return the smaller difference, of records or of elements."""
    kind = kind_of(dtype)
    records = _find_records(raw, dtype)
    if records is None:
        return _encode_elements(raw, base, kind)
    share = _share_as_records(raw, base, kind, records)
    if share < _SURELY_RECORDS:
        return Encoding.RECORDS, encode_records(raw, base, records)
    as_elements = _encode_elements(raw, base, kind)
    as_records = Encoding.RECORDS, encode_records(raw, base, records)
    return min(as_elements, as_records, key=lambda item: len(item[1]))


def _find_records(raw: memoryview, dtype: DType) -> Records | None:
    """Return the records that a chunk may consist of; None if there are surely none."""
    from casweights.format.blocks import find_blocks
    from casweights.format.records import all_halves

    if dtype.code not in _MAYBE_HALVES or len(raw) < _LEAST_RECORDS:
        return None
    blocks = find_blocks(raw) if dtype.code == "U8" else None
    return all_halves(len(raw)) if blocks is None else blocks


def _share_as_records(
    raw: memoryview, base: memoryview, kind: ElementKind, records: Records
) -> float:
    """Return what a sample takes as records, relative to elements; 1 if nothing has changed."""
    from casweights.format.records import Records, Run

    places = records.spread(_SAMPLED, _BLOCK)
    new, old = (b"".join([data[place] for place in places]) for data in (raw, base))
    if new == old:
        return 1
    sampled = Records(records.fields, [Run(0, len(new) // records.nbytes)])
    return len(encode_records(new, old, sampled)) / len(_encode_elements(new, old, kind)[1])


def encode_records(raw: Buffer, base: Buffer, records: Records) -> bytes:
    """Encode a chunk of records as its difference from another one.

    Args:
        raw: The chunk's bytes.
        base: The other chunk's bytes, of the same length.
        records: The records of both.
    """
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


def _surer_share(raw: Buffer, base: Buffer, kind: ElementKind, share: float) -> float:
    """Return a share of changed numbers for which `_encode_elements` tries the better encoding.

    There are one or two numbers in each byte of a chunk, so that both would take long.
    """
    from casweights.kernels import dense_encode, sparse_encode

    if len(raw) <= _LEAST_NUMBERS or not _SURELY_SPARSE < share < _SURELY_DENSE:
        return share
    new, old = (_sampled(data) for data in (raw, base))
    is_sparse = len(sparse_encode(old, new, kind)) < len(dense_encode(old, new, kind)) - _TABLES
    return _SURELY_SPARSE if is_sparse else _SURELY_DENSE


def _sampled(data: Buffer) -> bytes:
    """Return blocks spread over a stream of numbers."""
    step = len(data) // _BLOCKS & ~1
    return b"".join([memoryview(data)[n * step :][: 2 * _BLOCK] for n in range(_BLOCKS)])


def _changed_share(raw: Buffer, base: Buffer, width: int) -> float:
    """Estimate the share of elements that differ, from blocks spread over the whole chunk."""
    import numpy as np

    new, old = (np.frombuffer(data, f"<u{width}") for data in (raw, base))
    if len(new) > _BLOCKS * _BLOCK:
        step = len(new) // _BLOCKS
        new, old = (a[: _BLOCKS * step].reshape(_BLOCKS, step)[:, :_BLOCK] for a in (new, old))
    return np.count_nonzero(new != old) / max(1, new.size)
