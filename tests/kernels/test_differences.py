"""The compiled kernels of differences and their numpy twins encode and decode the same bytes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from casweights.kernels import _compiled
from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference import dense, sparse
from casweights.kernels.reference.bits import varint
from casweights.kernels.reference.range_coder import RangeEncoder
from casweights.kernels.reference.rans import SEGMENT
from casweights.kernels.reference.sizes import Sizes
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.system.buffers import Buffer

    Encode = Callable[[Buffer, Buffer, int], bytes]
    Decode = Callable[[Buffer, Buffer], None]


class Codec(NamedTuple):
    encode: Encode
    decode: Decode


COMPILED = {
    "sparse": Codec(_compiled.sparse_encode, _compiled.sparse_decode),
    "dense": Codec(_compiled.dense_encode, _compiled.dense_decode),
}
TWINS = {
    "sparse": Codec(sparse.sparse_encode, sparse.sparse_decode),
    "dense": Codec(dense.dense_encode, dense.dense_decode),
}
FLOATS = {
    ElementKind.E5M2: torch.float8_e5m2,
    ElementKind.E4M3: torch.float8_e4m3fn,
    ElementKind.FLOAT_16: torch.float16,
    ElementKind.BFLOAT_16: torch.bfloat16,
    ElementKind.FLOAT_32: torch.float32,
    ElementKind.FLOAT_64: torch.float64,
}
ONE = -1.0  # a share: a single element changes
SHARES = [0, ONE, 0.001, 0.01, 0.1, 0.6, 1]
BASES = ["weights", "random", "special", "equal"]
CHANGES = ["neighbour", "any step", "random", "special"]

any_encoding = pytest.mark.parametrize("encoding", COMPILED)
any_kind = pytest.mark.parametrize("kind", ElementKind, ids=lambda kind: kind.name)


def elements(style: str, kind: ElementKind, count: int, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(f"<u{kind.width}")
    if style == "random":
        return np.frombuffer(rng.bytes(count * kind.width), dtype)
    if style == "equal":
        return np.full(count, rng.integers(256), dtype)
    if style == "special":
        return np.array(rng.choice(special(kind), count))
    values: np.ndarray = rng.normal(0, 0.02, count) * rng.choice([0.01, 1, 30], count)
    if kind in FLOATS:
        return to_floats(values, kind)
    values *= 100
    return values.astype("<i8").astype(dtype)


def to_floats(values: np.ndarray, kind: ElementKind) -> np.ndarray:
    floats = torch.from_numpy(np.append(values, 0)).to(
        FLOATS[kind]
    )  # torch cannot view an empty tensor
    bits: np.ndarray = floats.view(torch.uint8).numpy().view(f"<u{kind.width}")
    return bits[:-1]


def special(kind: ElementKind) -> np.ndarray:
    """Return zeros, infinities, NaNs, the smallest and the largest numbers, with both signs."""
    sign = 1 << (8 * kind.width - 1)
    infinity = sign - (1 << kind.mantissa)
    positive = [0, 1, 1 << kind.mantissa, infinity - 1, infinity, infinity + 1, sign - 1]
    patterns = [bits % (2 * sign) for plus in positive for bits in (plus, plus | sign)]
    return np.array(patterns, f"<u{kind.width}")


def change(
    base: np.ndarray, style: str, share: float, kind: ElementKind, rng: np.random.Generator
) -> np.ndarray:
    new = base.copy()
    places = np.flatnonzero(rng.random(len(base)) < share)
    if share == ONE and len(base):
        places = rng.integers(len(base), size=1)
    if style == "neighbour":
        new[places] += rng.choice(np.array([1, -1]).astype(base.dtype), len(places))
    elif style == "any step":
        steps = elements("random", kind, len(places), rng)
        new[places] += steps >> rng.integers(8 * kind.width, size=len(places)).astype(base.dtype)
    else:
        new[places] = elements(style, kind, len(places), rng)
    return new


def optimized(
    kind: ElementKind, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return floats before and after a step of an optimizer, in which few large ones change."""
    before = rng.normal(0, 0.5, count)
    after = before + rng.normal(0, 2.0 ** (-5 - kind.mantissa), count)
    return to_floats(before, kind), to_floats(after, kind)


def first_classes(encoding: str, payload: bytes) -> int:
    """Return the number of classes of a payload that expects no steps; of its first group."""
    return payload[1 if encoding == "sparse" else 3]


def encode(encoding: str, base: Buffer, new: Buffer, kind: int) -> bytes:
    """Encode with all implementations, assert that they agree, and return the payload."""
    expected = TWINS[encoding].encode(base, new, kind)
    for target in _compiled.TARGETS:
        _compiled.use(target)
        assert COMPILED[encoding].encode(base, new, kind) == expected, target
    return expected


def attempt(decode: Decode, payload: Buffer, base: Buffer) -> bytes | None:
    out = bytearray(base)
    try:
        decode(payload, out)
    except ValueError:
        return None
    return bytes(out)


def decode(encoding: str, payload: Buffer, base: Buffer) -> bytes | None:
    """Decode with all implementations, assert that they agree, and return the chunk or None."""
    expected = attempt(TWINS[encoding].decode, payload, base)
    for target in _compiled.TARGETS:
        _compiled.use(target)
        assert attempt(COMPILED[encoding].decode, payload, base) == expected, target
    return expected


def roundtrip(encoding: str, base: np.ndarray, new: np.ndarray, kind: ElementKind) -> bytes:
    before, after = base.tobytes(), new.tobytes()
    payload = encode(encoding, before, after, kind)
    assert payload[0] == kind
    assert decode(encoding, payload, before) == after
    return payload


@any_encoding
@any_kind
@pytest.mark.parametrize("share", SHARES)
def test_any_share_of_changes_comes_back(encoding: str, kind: ElementKind, share: float) -> None:
    rng = np.random.default_rng(int(kind))
    base = elements("weights", kind, 129, rng)
    roundtrip(encoding, base, change(base, "neighbour", share, kind, rng), kind)


@hypothesis.settings(max_examples=examples(100))
@hypothesis.given(
    encoding=st.sampled_from(sorted(COMPILED)),
    kind=st.sampled_from(ElementKind),
    count=st.sampled_from([0, 1, 2, 63, 64, 65, 127, 128, 129, 200, 777]),
    base=st.sampled_from(BASES),
    how=st.sampled_from(CHANGES),
    share=st.sampled_from(SHARES),
    seed=st.integers(0, 99),
)
def test_any_elements_come_back(
    encoding: str, kind: ElementKind, count: int, base: str, how: str, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    old = elements(base, kind, count, rng)
    roundtrip(encoding, old, change(old, how, share, kind, rng), kind)


@pytest.mark.parametrize("count", [8191, 8192, 8193, SEGMENT - 1, SEGMENT, SEGMENT + 1, 100_003])
@pytest.mark.parametrize("kind", [ElementKind.PLAIN_8, ElementKind.BFLOAT_16])
@pytest.mark.parametrize("share", [ONE, 0.001, 0.1])
def test_few_changes_of_many_elements_come_back(
    count: int, kind: ElementKind, share: float
) -> None:
    rng = np.random.default_rng(count)
    base = elements("weights", kind, count, rng)
    roundtrip("sparse", base, change(base, "neighbour", share, kind, rng), kind)


@pytest.mark.parametrize(
    ("count", "kind", "how", "share"),
    [
        (SEGMENT - 1, ElementKind.PLAIN_8, "neighbour", 0),
        (SEGMENT, ElementKind.FLOAT_64, "any step", 0.6),
        (SEGMENT + 1, ElementKind.BFLOAT_16, "neighbour", 0.01),
        (3 * SEGMENT, ElementKind.FLOAT_16, "random", 0.1),
        (4 * SEGMENT - 1, ElementKind.E4M3, "neighbour", 0.1),
        (4 * SEGMENT, ElementKind.FLOAT_32, "any step", 1),
        (4 * SEGMENT + 1, ElementKind.BFLOAT_16, "any step", 0.6),
        (5 * SEGMENT, ElementKind.PLAIN_32, "special", ONE),
        (9 * SEGMENT + 7, ElementKind.BFLOAT_16, "neighbour", 0.6),
        (25 * SEGMENT + 7, ElementKind.BFLOAT_16, "any step", 0.2),
    ],
)
def test_many_changes_of_many_elements_come_back(
    count: int, kind: ElementKind, how: str, share: float
) -> None:
    rng = np.random.default_rng(count)
    base = elements("weights", kind, count, rng)
    roundtrip("dense", base, change(base, how, share, kind, rng), kind)


@any_encoding
@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
def test_steps_of_an_optimizer_get_several_classes(encoding: str, kind: ElementKind) -> None:
    payload = roundtrip(encoding, *optimized(kind, 6000, np.random.default_rng(1)), kind)
    assert first_classes(encoding, payload) > 1


@any_encoding
@pytest.mark.parametrize(
    ("kind", "lowest", "highest"),
    [(ElementKind.BFLOAT_16, 20, 255), (ElementKind.FLOAT_64, 880, 1165)],
)
def test_the_number_of_classes_is_limited(
    encoding: str, kind: ElementKind, lowest: int, highest: int
) -> None:
    """Elements of every second exponent change; those of F64 exceed F32's on both sides."""
    exponents = np.repeat(np.arange(lowest, highest, dtype=f"<u{kind.width}"), 200)
    base = exponents << kind.mantissa
    payload = roundtrip(encoding, base, base + exponents % 2, kind)
    classes = first_classes(encoding, payload)
    assert classes == 8 if encoding == "sparse" else classes in (15, 16)


@pytest.mark.parametrize("kind", [ElementKind.E4M3, ElementKind.FLOAT_16, ElementKind.FLOAT_32])
def test_long_runs_without_a_change_come_back(kind: ElementKind) -> None:
    """Few of the small elements change, and no large ones."""
    rng = np.random.default_rng(6)
    small = rng.random(150_000) < 0.5
    base = to_floats(np.where(small, 0.06, 1.5), kind)
    payload = roundtrip("sparse", base, base + (small & (rng.random(len(base)) < 0.002)), kind)
    assert payload[1] == 2


def test_batches_of_the_twin_make_one_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BATCH", SEGMENT)
    rng = np.random.default_rng(2)
    base = elements("weights", ElementKind.BFLOAT_16, SEGMENT + 5, rng)
    new = change(base, "any step", 0.6, ElementKind.BFLOAT_16, rng)
    roundtrip("dense", base, new, ElementKind.BFLOAT_16)


def shifted(data: Buffer) -> memoryview:
    """Return a copy at an odd address."""
    return memoryview(bytearray(b"x") + data)[1:]


@any_encoding
@any_kind
def test_unaligned_bytes_give_the_same_payload(encoding: str, kind: ElementKind) -> None:
    rng = np.random.default_rng(3)
    base = elements("weights", kind, 100, rng)
    new = change(base, "any step", 0.1, kind, rng)
    payload = encode(encoding, base.tobytes(), new.tobytes(), kind)
    for codec in (COMPILED[encoding], TWINS[encoding]):
        assert codec.encode(shifted(base.tobytes()), shifted(new.tobytes()), kind) == payload
        out = shifted(base.tobytes())
        codec.decode(shifted(payload), out)
        assert out == new.tobytes()


class Example(NamedTuple):
    base: bytes
    new: bytes
    payload: bytes


EXAMPLES = [*(kind.name for kind in ElementKind), "classes"]
any_example = pytest.mark.parametrize("name", EXAMPLES)


@cache
def example(encoding: str, name: str) -> Example:
    """Return a small payload with all features: gaps, plain bits, two classes."""
    rng = np.random.default_rng(4)
    if name == "classes":
        kind = ElementKind.BFLOAT_16
        base = np.tile(np.array([0x3F80, 0x3C00], "<u2"), 160)
        new = base + (base == 0x3C00)  # the small elements change
    else:
        kind = ElementKind[name]
        base = elements("weights", kind, 40, rng)
        new = change(base, "any step", 0.3, kind, rng)
    payload = encode(encoding, base.tobytes(), new.tobytes(), kind)
    assert first_classes(encoding, payload) == 1 + (name == "classes")
    return Example(base.tobytes(), new.tobytes(), payload)


@any_encoding
@any_example
def test_truncated_payloads_do_not_decode_to_the_chunk(encoding: str, name: str) -> None:
    base, new, payload = example(encoding, name)
    for size in range(len(payload)):
        decoded = decode(encoding, payload[:size], base)
        assert decoded is None or (encoding == "sparse" and decoded != new)


@any_encoding
@any_example
def test_payloads_with_many_extra_bytes_are_refused(encoding: str, name: str) -> None:
    base, new, payload = example(encoding, name)
    for more in (b"\0", b"\1", b"\xff", b"\0\0", b"\0\0\0\0\1", bytes(100)):
        decoded = decode(encoding, payload + more, base)
        if encoding == "sparse" and not any(more):  # zeros at the end are optional
            assert decoded in (None, new)
        elif encoding == "dense":
            assert decoded is None
    assert decode(encoding, payload + bytes(100), base) is None


@any_encoding
@pytest.mark.parametrize("name", ["PLAIN_8", "BFLOAT_16", "FLOAT_64", "classes"])
def test_flipped_bits_are_read_alike(encoding: str, name: str) -> None:
    base, _, payload = example(encoding, name)
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        decode(encoding, flipped, base)


@hypothesis.settings(max_examples=examples(150))
@hypothesis.given(
    encoding=st.sampled_from(sorted(COMPILED)),
    name=st.sampled_from(EXAMPLES),
    at=st.integers(0, 60),
    inserted=st.binary(max_size=6),
    removed=st.integers(0, 6),
)
def test_edited_payloads_are_read_alike(
    encoding: str, name: str, at: int, inserted: bytes, removed: int
) -> None:
    base, _, payload = example(encoding, name)
    decode(encoding, payload[:at] + inserted + payload[at + removed :], base)


@hypothesis.settings(max_examples=examples(150))
@hypothesis.given(
    encoding=st.sampled_from(sorted(COMPILED)),
    kind=st.sampled_from(ElementKind),
    rest=st.binary(max_size=30),
    count=st.integers(0, 70),
)
def test_any_payload_is_read_alike(
    encoding: str, kind: ElementKind, rest: bytes, count: int
) -> None:
    decode(encoding, bytes([kind]) + rest, bytes(count * kind.width))


def one_change(kind: ElementKind, difference: int) -> bytes:
    """Return a `sparse` payload that changes the first element by this, possibly too far."""
    coder = RangeEncoder()
    Sizes().put(coder, 0, difference)
    gaps = bytes([1, 1, 0, 1, 1])  # classes, changes, Rice parameter, bytes, a gap of 0
    return bytes([kind]) + gaps + coder.finish()


@pytest.mark.parametrize(
    "kind", [ElementKind.PLAIN_8, ElementKind.PLAIN_16, ElementKind.PLAIN_32, ElementKind.PLAIN_64]
)
def test_steps_beyond_the_width_are_refused(kind: ElementKind) -> None:
    last = (1 << 8 * kind.width) - 1  # in zigzag: to the most distant element
    farthest = decode("sparse", one_change(kind, last), bytes(kind.width))
    assert farthest == ((last + 1) // 2).to_bytes(kind.width, "little")
    for beyond in (last + 1, last + 2, 2 * last + 1, 2 * last + 2, 2 * last + 3):
        assert decode("sparse", one_change(kind, beyond), bytes(kind.width)) is None


@pytest.mark.parametrize("size", range(1, 24))
def test_codes_beyond_the_range_are_read_alike(size: int) -> None:
    """No range coder writes such codes, but all decoders must read them alike."""
    head = bytes([ElementKind.PLAIN_16, 1, 8, 0, 1, 0xFF])  # all of the 8 elements change
    decode("sparse", head + b"\xff" * size, bytes(16))
    decode("sparse", head + b"\xff" * size + b"\x12\x34\x56", bytes(16))


def test_a_missing_word_is_not_read_past_the_payload() -> None:
    """The last word of this segment is 0, as memory past the payload may be."""
    base = np.zeros(512, "<u2")
    new = np.append(np.ones(510, "<u2"), [0, 0]).astype("<u2")
    payload = roundtrip("dense", base, new, ElementKind.PLAIN_16)
    words = 3
    head, stream = payload[: -2 * words - 2], payload[-2 * words :]
    assert payload == head + varint(words) + varint(0) + stream
    assert stream[-2:] == b"\0\0"
    short = head + varint(words - 1) + varint(0) + stream[:-2]
    assert decode("dense", short, base.tobytes()) is None


@any_encoding
@any_kind
def test_bases_of_another_size_are_read_alike(encoding: str, kind: ElementKind) -> None:
    base, _, payload = example(encoding, kind.name)
    for size in range(len(base) + 2 * kind.width + 1):
        decoded = decode(encoding, payload, (base + base)[:size])
        assert decoded is None or size % kind.width == 0
    assert decode(encoding, payload, b"") is None


@any_encoding
def test_wrong_arguments_are_refused(encoding: str) -> None:
    payload = encode(encoding, bytes(8), b"12345678", ElementKind.PLAIN_16)
    for codec in (COMPILED[encoding], TWINS[encoding]):
        for base, new, kind in [(8, 4, 1), (0, 2, 1), (3, 3, 1), (9, 9, 3), (8, 8, 11), (8, 8, -1)]:
            with pytest.raises(ValueError, match=r"."):
                codec.encode(bytes(base), bytes(new), kind)
        with pytest.raises(TypeError, match="read-write"):
            codec.decode(payload, bytes(8))
        with pytest.raises(TypeError, match="read-write"):
            codec.decode(payload, memoryview(bytearray(8)).toreadonly())
