"""The models of `dense`: groups of blocks, and expected steps."""

from __future__ import annotations

import importlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from casweights.kernels.kinds import ElementKind
from tests.kernels.test_differences import Example, decode, encode, roundtrip
from tests.lengths import examples

COUNT = 20_011  # elements; the last block is not complete
ROW = 384  # elements that change alike


def weights(count: int = COUNT) -> np.ndarray:
    """Return floats of 32 bits as in an embedding."""
    values: np.ndarray = np.random.default_rng(0).normal(0, 0.05, count).astype("<f4")
    return values


def in_rows(every: int) -> np.ndarray:
    """Return whether each element is in a row that is trained, which one in `every` is."""
    rows: np.ndarray = np.arange(COUNT) // ROW % every == 0
    return rows


def decayed(base: np.ndarray, steps: int) -> np.ndarray:
    """Return weights after steps of an optimizer that only decays them."""
    for _ in range(steps):
        base = base - base * np.float32(3e-7)
    return base


def models(payload: bytes) -> tuple[int, int]:
    """Return how many bits of the mantissa have expected steps, and the number of groups."""
    at, bits = 2, payload[1]
    for _ in range(1 << bits if bits else 0):
        while payload[at] > 127:
            at += 1
        at += 1
    return bits, payload[at]


def test_rows_that_were_not_trained_are_a_group() -> None:
    bits = (weights().view("<u4") >> 16).astype("<u2")
    rng = np.random.default_rng(1)
    moves = rng.integers(0, 3, COUNT).astype("<u2")
    payload = roundtrip("dense", bits, bits + moves * in_rows(5), ElementKind.BFLOAT_16)
    assert models(payload)[1] > 1
    noise = rng.permutation(moves * in_rows(5)).astype("<u2")  # the same changes, anywhere
    mixed = roundtrip("dense", bits, bits + noise, ElementKind.BFLOAT_16)
    assert models(mixed) == (0, 1)
    assert len(payload) < 0.7 * len(mixed)


@pytest.mark.parametrize("steps", [1, 20])
def test_weight_decay_is_expected(steps: int) -> None:
    base = weights()
    after = decayed(base, steps)
    trained = in_rows(8)
    rng = np.random.default_rng(2)
    after[trained] += rng.normal(0, 1e-4, int(trained.sum())).astype("<f4")
    old, new = base.view("<u4"), after.view("<u4")
    payload = roundtrip("dense", old, new, ElementKind.FLOAT_32)
    bits, groups = models(payload)
    assert bits == 8
    assert groups > 1
    assert len(payload) < 1.25 * 2 * trained.sum() + 2000  # noise takes two bytes an element


def test_models_that_do_not_pay_are_left_out() -> None:
    old = weights().view("<u4")
    noise = np.random.default_rng(3).integers(0, 1 << 12, COUNT).astype("<u4")
    payload = roundtrip("dense", old, old + noise, ElementKind.FLOAT_32)
    assert models(payload) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "largest"), [(ElementKind.FLOAT_16, 1 << 14), (ElementKind.FLOAT_64, 1 << 40)]
)
def test_expected_steps_of_other_floats_come_back(kind: ElementKind, largest: int) -> None:
    """Each element grows by the same as all whose mantissa begins alike; some by too much."""
    rng = np.random.default_rng(4)
    old = rng.normal(0, 1, COUNT).astype(f"<f{kind.width}").view(f"<u{kind.width}")
    growth = rng.integers(-largest, largest, 256).astype(f"<i{kind.width}").view(old.dtype)
    first = (old >> (kind.mantissa - 8)).astype(np.intp) % 256
    payload = roundtrip("dense", old, old + growth[first], kind)
    assert models(payload)[0] == (8 if kind is ElementKind.FLOAT_16 else 0)


def small(kind: ElementKind, groups: int, bits: int) -> Example:
    """Return a small payload that an encoder would not write, made by the independent one."""
    spec = importlib.import_module("tools.spec.encoders")
    rng = np.random.default_rng(groups + bits)
    base = rng.bytes(300 * kind.width)
    steps = rng.integers(0, 3, 300).astype(f"<u{kind.width}")
    new = (np.frombuffer(base, steps.dtype) + steps).tobytes()
    growth = rng.integers(-300, 300, 1 << bits).tolist() if bits else ()
    of = [(5 * n + 1) % groups for n in range(3)]
    payload = spec.dense(new, base, spec.KINDS[kind], [], spec.Models(of, growth))
    return Example(base, new, payload)


SMALL = [
    (ElementKind.PLAIN_8, 2, 0),
    (ElementKind.E4M3, 3, 2),
    (ElementKind.FLOAT_16, 4, 1),
    (ElementKind.BFLOAT_16, 4, 6),
    (ElementKind.FLOAT_32, 1, 8),
    (ElementKind.FLOAT_64, 3, 3),
]
any_small = pytest.mark.parametrize(("kind", "groups", "bits"), SMALL)


@any_small
def test_payloads_of_any_writer_are_read(kind: ElementKind, groups: int, bits: int) -> None:
    base, new, payload = small(kind, groups, bits)
    assert models(payload) == (bits, groups)
    assert decode("dense", payload, base) == new


@any_small
def test_truncated_and_flipped_models_are_read_alike(
    kind: ElementKind, groups: int, bits: int
) -> None:
    base, _, payload = small(kind, groups, bits)
    for size in range(0, len(payload), 7):
        assert decode("dense", payload[:size], base) is None
    rng = np.random.default_rng(5)
    for bit in {*range(60), *rng.integers(0, 8 * len(payload), 40).tolist()}:
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        decode("dense", flipped, base)


@pytest.mark.parametrize("bits", [7, 8, 9, 255])
def test_expected_steps_by_more_bits_than_there_are_are_refused(bits: int) -> None:
    """A mantissa of BF16 has 7 bits."""
    base, _, payload = small(ElementKind.BFLOAT_16, 1, 6)
    longer = bytes([payload[0], bits]) + bytes(1 << min(bits, 8)) + payload[2 + (1 << 6) :]
    assert decode("dense", longer, base) is None


def test_expected_steps_beyond_32_bits_are_refused() -> None:
    base = bytes(8)
    rest = b"\1\1\0\x80\x20\2\0\0\0\0\x80"  # a group, a class, a certain token, and no words
    far = {(1 << 32) - 2: True, (1 << 32) - 1: True, 1 << 32: False, (1 << 33) + 2: False}
    for zigzag, is_valid in far.items():
        payload = bytes([ElementKind.FLOAT_64, 1]) + varints(zigzag, 0) + rest
        assert (decode("dense", payload, base) is not None) is is_valid
    twice = bytes([ElementKind.FLOAT_64, 1]) + varints((1 << 32) - 2, 2) + rest
    assert decode("dense", twice, base) is None


def varints(*values: int) -> bytes:
    encoders = importlib.import_module("tools.spec.encoders")
    return b"".join(map(encoders.varint, values))


@hypothesis.settings(max_examples=examples(8))
@hypothesis.given(
    kind=st.sampled_from(ElementKind),
    blocks=st.integers(63, 140),
    more=st.integers(0, 127),
    every=st.integers(1, 6),
    steps=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_any_models_come_back(
    kind: ElementKind, blocks: int, more: int, every: int, steps: int, seed: int
) -> None:
    """Quiet blocks grow in the same way, others by anything."""
    rng = np.random.default_rng(seed)
    count = 128 * blocks + more
    old = np.frombuffer(rng.bytes(count * kind.width), f"<u{kind.width}")
    if kind is ElementKind.FLOAT_32:
        old = rng.normal(0, 1, count).astype("<f4").view("<u4")
    quiet = np.arange(count) // 128 % every > 0
    moves = rng.integers(0, steps, count).astype(old.dtype)
    shift = max(kind.mantissa - 3, 0)
    roundtrip("dense", old, old + np.where(quiet, old >> shift & 3, moves), kind)


def test_groups_of_one_chunk_are_learnt_from_a_sample() -> None:
    """More blocks than are sampled, and groups that only few of them are in."""
    count = 128 * 1100
    rng = np.random.default_rng(6)
    old = rng.integers(0, 200, count).astype("<u1")
    busy = np.repeat(rng.random(1100) < 0.05, 128)
    payload = encode(
        "dense", old.tobytes(), (old + busy * rng.integers(0, 9, count)).astype("<u1").tobytes(), 0
    )
    assert models(payload)[1] > 1
