"""The `sparse` encoding: the positions of the elements that changed, and their steps."""

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
_CLASS_BITS = 28  # bits that a class costs
_BLOCK = 64  # elements that are counted at once
_SAMPLE = 1 << 13  # elements to count: at most about this many, and at least half of it


def sparse_encode(base: Buffer, new: Buffer, kind: int, /) -> bytes:
    """Encode a chunk as its difference from a base in which few elements differ.

    Args:
        base: The base's bytes.
        new: The chunk's bytes, of the same length.
        kind: An `ElementKind`.

    Raises:
        ValueError: The lengths differ, or the kind is unknown or does not fit them.
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
    """Choose classes from the changed elements of each exponent and an estimate of all elements."""
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
    """Decode the result of `sparse_encode` in place.

    Args:
        payload: The encoded difference.
        base_to_new: The base; the function turns it into the new chunk.

    Raises:
        TypeError: `base_to_new` is read-only.
        ValueError: The payload is malformed; the content of `base_to_new` is then undefined.
    """
    reader, kind, elements = open_payload(payload, base_to_new)
    classes = read_classes(reader, kind, _MAX_CLASSES)
    ranks = read_ranks(reader, len(elements), len(classes.first))
    exponent = exponents(elements, kind)
    places = _find_places(classes.of[exponent], ranks)
    steps = _decode_sizes(reader.take(reader.left), exponent[places], 8 * kind.width)
    elements[places] = apply(elements[places], np.array(steps, elements.dtype), kind)


def _find_places(class_of: np.ndarray, ranks: list[list[int]]) -> np.ndarray:
    """Return the positions of the elements with these ranks in their classes, ascending."""
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
    """Decode the differences that `_encode_sizes` encoded."""
    coder, sizes = RangeDecoder(data), Sizes()
    steps = [sizes.get(coder, e, width) for e in exponent.tolist()]
    if not coder.is_at_end():
        raise ValueError("it holds more than its changes")
    return steps
