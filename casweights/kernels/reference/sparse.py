"""The `sparse` encoding: which elements changed, and how far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels.reference.classes import (
    EXPONENTS,
    Classes,
    choose_classes,
    read_classes,
)
from casweights.kernels.reference.differences import (
    apply,
    differences,
    exponents,
    open_pair,
    open_payload,
)
from casweights.kernels.reference.range_coder import RangeDecoder, RangeEncoder
from casweights.kernels.reference.rice import encode_ranks, read_ranks
from casweights.kernels.reference.sizes import Sizes

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_MAX_CLASSES = 8
_CLASS_BITS = 28  # what a class costs
_BLOCK = 64
_SAMPLE = 1 << 13  # elements to count at most, about; half as many at least, if there are more


def sparse_encode(base: Buffer, new: Buffer, kind: int, /) -> bytes:
    """Encode a chunk as its difference from a base, for few elements that differ.

    Args:
        base: The base's bytes.
        new: The chunk's bytes, as many.
        kind: A `Kind` of elements.
    """
    known, old, bits = open_pair(base, new, kind)
    changed = old != bits
    places = np.flatnonzero(changed)
    exponent = exponents(old, known)
    classes = _choose_classes(exponent, places)
    class_of = classes.of[exponent]
    ranks = [np.flatnonzero(changed[class_of == c]) for c in range(len(classes.first))]
    steps = differences(old[places], bits[places], known)
    head = bytes([known]) + classes.encode()
    return head + encode_ranks(ranks) + _encode_sizes(exponent[places], steps)


def _choose_classes(exponent: np.ndarray, places: np.ndarray) -> Classes:
    """The changes are counted; how many elements there are is estimated from some blocks."""
    stride = len(exponent) // _SAMPLE + 1
    elements = np.zeros(EXPONENTS, np.int64)
    for start in range(0, len(exponent), stride * _BLOCK):
        elements += stride * np.bincount(exponent[start : start + _BLOCK], minlength=EXPONENTS)
    changes = np.bincount(exponent[places], minlength=EXPONENTS)
    counts = np.stack([np.maximum(elements - changes, 0), changes], axis=1)
    return choose_classes(counts, _MAX_CLASSES, _CLASS_BITS)[0]


def _encode_sizes(exponent: np.ndarray, steps: np.ndarray) -> bytes:
    coder, sizes = RangeEncoder(), Sizes()
    for e, difference in zip(exponent.tolist(), steps.tolist(), strict=True):
        sizes.put(coder, e, difference)
    return coder.finish()


def sparse_decode(payload: Buffer, base_to_new: Buffer, /) -> None:
    """The inverse of `sparse_encode`.

    Args:
        payload: What it returned.
        base_to_new: The base, which becomes the new chunk.

    Raises:
        ValueError: The payload is malformed; what the base became is of no use.
    """
    reader, kind, elements = open_payload(payload, base_to_new)
    classes = read_classes(reader, kind, _MAX_CLASSES)
    ranks = read_ranks(reader, len(elements), len(classes.first))
    exponent = exponents(elements, kind)
    places = _find_places(classes.of[exponent], ranks)
    steps = _decode_sizes(reader.take(reader.left), exponent[places], 8 * kind.width)
    elements[places] = apply(elements[places], np.array(steps, elements.dtype), kind)


def _find_places(class_of: np.ndarray, ranks: list[list[int]]) -> np.ndarray:
    """The elements that changed, by their ranks in their classes."""
    changed = np.zeros(len(class_of), bool)
    for c, own in enumerate(ranks):
        members = class_of == c
        marks = np.zeros(np.count_nonzero(members), bool)
        if own and own[-1] >= len(marks):
            raise ValueError("its positions are out of range")
        marks[own] = True
        changed[members] = marks
    return np.flatnonzero(changed)


def _decode_sizes(data: Buffer, exponent: np.ndarray, width: int) -> list[int]:
    """The inverse of `_encode_sizes`."""
    coder, sizes = RangeDecoder(data), Sizes()
    steps = [sizes.get(coder, e, width) for e in exponent.tolist()]
    if not coder.is_at_end():
        raise ValueError("it holds more than its changes")
    return steps
