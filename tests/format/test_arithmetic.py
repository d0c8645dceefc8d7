"""Derived frames that calculate: the library and the independent reader agree on all of them."""

from __future__ import annotations

import importlib
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casweights.format.arithmetic import KINDS, Arithmetic
from casweights.format.codecs import Encoding
from casweights.format.derived import decode_derived, join, split
from casweights.format.patterns import Slice
from casweights.kernels import sparse_encode
from casweights.kernels.kinds import ElementKind

kinds = st.sampled_from(sorted(KINDS))
weights = st.floats(-2, 2, width=32) | st.floats(width=32, allow_nan=False, allow_infinity=False)
rules = st.builds(Arithmetic, kinds, kinds, st.booleans(), st.none() | st.tuples(weights, weights))


def decoded(payload: bytes, total: int, roots: list[bytes]) -> bytes:
    out = bytearray(total)
    decode_derived(payload, roots, memoryview(out))
    return bytes(out)


def by_the_page(payload: bytes, total: int, roots: list[bytes]) -> bytes:
    chunks: Any = importlib.import_module("tools.spec.chunks")
    result: bytes = chunks.decode_derived(payload, total, roots)
    return result


@given(rules, st.integers(1, 40), st.data())
def test_the_page_says_what_is_calculated(
    rule: Arithmetic, count: int, data: st.DataObject
) -> None:
    total = count * rule.target.width
    size = rule.operand_bytes(total)
    root = data.draw(st.binary(min_size=size, max_size=size))
    cut = data.draw(st.integers(0, size - 1))
    slices = [Slice(None, 0, cut)] * (cut > 0) + [Slice(0, cut, size - cut)]
    payload = join(slices, None, rule)
    assert split(payload, total, [size]) == (slices, None, rule)
    assert decoded(payload, total, [root]) == by_the_page(payload, total, [root])


def test_a_mean_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn((2, 100_000), generator=generator).bfloat16()
    expected = ((pair[0].float() + pair[1].float()) / 2).bfloat16()
    rule = Arithmetic(ElementKind.BFLOAT_16, ElementKind.BFLOAT_16, weights=(0.5, 0.5))
    roots = [one.view(torch.int16).numpy().tobytes() for one in pair]
    payload = join([Slice(n, 0, 200_000) for n in range(2)], None, rule)
    assert decoded(payload, 200_000, roots) == expected.view(torch.int16).numpy().tobytes()


def test_a_difference_is_applied_to_the_result() -> None:
    rule = Arithmetic(ElementKind.FLOAT_32, ElementKind.FLOAT_16)
    root = np.arange(100, dtype="<f4")
    base = root.astype("<f2")
    raw = base.copy()
    raw[7] += 1
    encoded = sparse_encode(base.tobytes(), raw.tobytes(), ElementKind.FLOAT_16)
    payload = join([Slice(0, 0, 400)], (Encoding.SPARSE, encoded), rule)
    assert decoded(payload, 200, [root.tobytes()]) == raw.tobytes()
    assert by_the_page(payload, 200, [root.tobytes()]) == raw.tobytes()


def head(*rule: int, more: bytes = b"") -> bytes:
    return bytes([1, *rule]) + more + b"\1\1\0\x08\xff"  # a slice of eight bytes of the root


REFUSED = {
    "an unknown kind of operands": (head(9, 7, 0), 4),
    "plain operands": (head(2, 7, 0), 4),
    "an unknown kind of chunks": (head(8, 3, 0), 4),
    "an unknown flag": (head(8, 7, 4), 4),
    "a part of an element": (head(8, 7, 0), 3),
    "more elements than the chunk": (head(8, 7, 0), 2),
    "fewer elements than the chunk": (head(8, 7, 0), 6),
    "one operand of two": (head(8, 7, 2, more=struct.pack("<2f", 1, 1)), 4),
    "infinite weights": (head(8, 7, 2, more=struct.pack("<2f", float("inf"), 1)), 2),
    "no weights": (bytes([1, 8, 7, 2]), 4),
    "nothing": (b"\1", 4),
}


@pytest.mark.parametrize(("payload", "total"), REFUSED.values(), ids=REFUSED)
def test_malformed_rules_are_refused(payload: bytes, total: int) -> None:
    with pytest.raises(ValueError, match="it"):
        decoded(payload, total, [bytes(8)])
    with pytest.raises((ValueError, LookupError)):
        by_the_page(payload, total, [bytes(8)])


def test_what_is_refused_is_one_byte_from_what_is_not() -> None:
    assert decoded(head(8, 7, 0), 4, [bytes(8)]) == bytes(4)
    two = head(8, 7, 2, more=struct.pack("<2f", 1, 1))
    assert decoded(two, 2, [bytes(8)]) == bytes(2)


CALCULATED = join(
    [Slice(0, 0, 6), Slice(None, 0, 9), Slice(1, 0, 1)],
    (Encoding.SPARSE, sparse_encode(bytes(4), b"\0\1\0\0", ElementKind.PLAIN_8)),
    Arithmetic(ElementKind.FLOAT_16, ElementKind.E4M3, weights=(0.5, 0.5)),
)


@given(st.integers(0, len(CALCULATED) - 1), st.integers(0, 255), st.sampled_from([4, 2, 8]))
def test_an_edited_payload_gives_the_same_value_or_error_by_the_page(
    at: int, byte: int, total: int
) -> None:
    edited = bytearray(CALCULATED)
    edited[at] = byte
    roots = [b"root 0", b"1"]
    try:
        found = decoded(bytes(edited), total, roots)
    except ValueError:
        with pytest.raises((ValueError, LookupError)):
            by_the_page(bytes(edited), total, roots)
    else:
        assert by_the_page(bytes(edited), total, roots) == found
