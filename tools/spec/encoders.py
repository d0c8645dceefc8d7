"""Encodings of chunks, written from docs/format.md alone.

Plain loops over integers, so that each line can be held against the page. Nothing here is fast, and
nothing looks for the smallest result.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import zstandard

from tools.spec.low_rank import Factors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RAW, ZSTD, PLANES, DENSE, SPARSE, PARTS, _, LOW_RANK, RECORDS = range(9)


class Kind(NamedTuple):
    """Elements as the page's table in "Differences" lists them."""

    code: int
    bits: int
    mantissa: int | None
    highest: int


KINDS = (
    Kind(0, 8, None, 0),
    Kind(1, 16, None, 0),
    Kind(2, 32, None, 0),
    Kind(3, 64, None, 0),
    Kind(4, 8, 2, 31),
    Kind(5, 8, 3, 15),
    Kind(6, 16, 10, 31),
    Kind(7, 16, 7, 255),
    Kind(8, 32, 23, 255),
    Kind(9, 64, 52, 255),
    Kind(10, 16, 8, 127),
)


class Models(NamedTuple):
    """What `dense` knows of elements apart from their exponents ("Dense").

    `groups` has the group of each block, up to 3; `growth` has 2, 4, ... or 256 expected steps, or
    none.
    """

    groups: Sequence[int]
    growth: Sequence[int]

    def expected(self, x: int, kind: Kind) -> int:
        """The expected step of an element of the base."""
        if not self.growth:
            return 0
        mantissa = kind.mantissa or 0
        first = (x % (1 << mantissa)) >> (mantissa - self.bits)
        return -self.growth[first] if x >> (kind.bits - 1) else self.growth[first]

    @property
    def bits(self) -> int:
        """How many bits of the mantissa decide what is expected."""
        return len(self.growth).bit_length() - 1

    def growth_listed(self) -> bytes:
        if not self.growth:
            return b"\0"
        steps = (new - old for old, new in zip([0, *self.growth], self.growth, strict=False))
        return bytes([self.bits]) + b"".join(varint(_zigzag(step)) for step in steps)


# Encodings


def zstd(raw: bytes) -> bytes:
    """One zstd frame that declares its content size ("Conventions")."""
    return zstandard.ZstdCompressor().compress(raw)


def planes(raw: bytes, width: int) -> bytes:
    """The planes of floating-point elements of `width` bytes ("Encodings")."""
    bits = 8 * width
    mask = (1 << bits) - 1
    rotated = [((x << 1) | (x >> (bits - 1))) & mask for x in _integers(raw, bits)]
    heads, bodies = b"", b""
    for k in range(width - 1, -1, -1):
        plain = bytes((x >> 8 * k) & 255 for x in rotated)
        packed = zstd(plain)
        mode, stored = (1, packed) if len(packed) < len(plain) else (0, plain)
        heads += bytes([mode]) + len(stored).to_bytes(4, "little")
        bodies += stored
    return bytes([width]) + heads + bodies


def sparse(raw: bytes, base: bytes, kind: Kind, starts: Sequence[int]) -> bytes:
    """The steps of the elements that changed ("Sparse").

    Args:
        raw: The chunk.
        base: A chunk of the same size.
        kind: What both consist of.
        starts: The first exponents of all classes but the first; at most 7 of them.
    """
    steps, exponents = _steps(raw, base, kind)
    classes = [sum(start <= exponent for start in starts) for exponent in exponents]
    counts, gaps = b"", _Bits()
    for number in range(len(starts) + 1):
        ranked = [step for step, which in zip(steps, classes, strict=True) if which == number]
        found = _gaps(ranked)
        counts += varint(len(found))
        if found:
            k = min(26, (sum(found) // len(found)).bit_length())
            counts += bytes([k])
            for gap in found:
                gaps.add(0, gap >> k)
                gaps.add(1, 1)
                gaps.add(gap, k)
    stored = gaps.finish()
    classes_listed = bytes([len(starts) + 1, *starts])
    head = bytes([kind.code]) + classes_listed + counts + varint(len(stored))
    return head + stored + _coded_steps(steps, exponents)


def dense(raw: bytes, base: bytes, kind: Kind, starts: Sequence[int], models: Models) -> bytes:
    """The step of every element ("Dense"). `starts` as for `sparse`, at most 15."""
    steps, exponents = _steps(raw, base, kind)
    half, whole = 1 << (kind.bits - 1), 1 << kind.bits
    surprises = [
        (step - models.expected(x, kind) + half) % whole - half
        for step, x in zip(steps, _integers(base, kind.bits), strict=True)
    ]
    count = max(models.groups, default=0) + 1
    classes = [
        (models.groups[n // 128], sum(start <= exponent for start in starts))
        for n, exponent in enumerate(exponents)
    ]
    tokens = [_token(_zigzag(surprise)) for surprise in surprises]
    chances = {
        (group, number): _chances(
            [t.number for t, own in zip(tokens, classes, strict=True) if own == (group, number)]
        )
        for group in range(count)
        for number in range(len(starts) + 1)
    }
    payload = bytes([kind.code]) + models.growth_listed() + bytes([count])
    for group in range(count):
        payload += bytes([len(starts) + 1, *starts])
        for number in range(len(starts) + 1):
            row = chances[group, number].chances
            payload += bytes([len(row) - 1]) + b"".join(varint(chance) for chance in row)
    if count > 1:
        coded = _coded_groups(models.groups, 1 if count == 2 else 2)
        payload += varint(len(coded)) + coded
    sizes, words, plain = b"", b"", b""
    for begin in range(0, len(tokens), 16384):
        segment = tokens[begin : begin + 16384]
        rows = [chances[own] for own in classes[begin : begin + 16384]]
        its_words = _segment_words([token.number for token in segment], rows)
        bits = _Bits()
        for token in segment:
            bits.add(token.plain, token.width)
        its_plain = bits.finish()
        sizes += varint(len(its_words)) + varint(len(its_plain))
        words += b"".join(word.to_bytes(2, "little") for word in its_words)
        plain += its_plain
    return payload + sizes + words + plain


def parts(rows: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Parts of a chunk, each its encoding, raw bytes and stored bytes ("Parts")."""
    listed = list(rows)
    heads = b"".join(
        bytes([code]) + varint(size) + varint(len(stored)) for code, size, stored in listed
    )
    return bytes([len(listed)]) + heads + b"".join(stored for _, _, stored in listed)


def low_rank(raw: bytes, base: bytes, kind: Kind, columns: int, start: int) -> bytes:
    """A matrix that gains a product, and a `sparse` difference from that ("Low rank").

    The one factor of each row is its number, and that of each column, too, with its sign in turn.

    Args:
        raw: The chunk.
        base: A chunk of the same size.
        kind: What both consist of: floats of at most 32 bits.
        columns: Elements of a row.
        start: Elements of the first row that lie before the chunk.
    """
    rows = -(-(start + 8 * len(raw) // kind.bits) // columns)
    left = [[row % 99] for row in range(rows)]
    right = [[(-1) ** column * (column % 99) for column in range(columns)]]
    factors = Factors(left, right, -20, start)
    words = [_zigzag(number) for number in (*(row[0] for row in left), *right[0])]
    stored = planes(b"".join(word.to_bytes(2, "little") for word in words), 2)
    head = bytes([kind.code]) + varint(columns) + varint(start) + bytes([1, 256 + factors.exponent])
    rest = sparse(raw, factors.predict(base, kind.code), kind, ())
    return head + varint(len(stored)) + stored + bytes([SPARSE]) + rest


def varint(value: int) -> bytes:
    """LEB128 ("Differences")."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def exponents_of(raw: bytes, kind: Kind) -> list[int]:
    """The exponent of every element ("Differences")."""
    return [_exponent(x, kind) for x in _integers(raw, kind.bits)]


# Elements and their steps, section "Differences"


def _integers(raw: bytes, bits: int) -> list[int]:
    values: list[int] = np.frombuffer(raw, f"<u{bits // 8}").tolist()
    return values


def _place(x: int, kind: Kind) -> int:
    if kind.mantissa is None:
        return x
    top = 1 << (kind.bits - 1)
    return x ^ ((1 << kind.bits) - 1) if x & top else x | top


def _exponent(x: int, kind: Kind) -> int:
    if kind.mantissa is None:
        return 0
    exponent = (x & ((1 << (kind.bits - 1)) - 1)) >> kind.mantissa
    return min(max(exponent - 896, 0), 255) if kind.code == 9 else exponent


def _steps(raw: bytes, base: bytes, kind: Kind) -> tuple[list[int], list[int]]:
    """The step of every element, and the exponent of its base."""
    old, new = _integers(base, kind.bits), _integers(raw, kind.bits)
    half, whole = 1 << (kind.bits - 1), 1 << kind.bits
    steps = [
        (_place(y, kind) - _place(x, kind) + half) % whole - half
        for x, y in zip(old, new, strict=True)
    ]
    return steps, [_exponent(x, kind) for x in old]


def _zigzag(step: int) -> int:
    return 2 * step if step >= 0 else -2 * step - 1


class _Bits:
    """Bits that fill each byte from its lowest."""

    def __init__(self) -> None:
        self._bits: list[int] = []

    def add(self, value: int, count: int) -> None:
        """Add the `count` lowest bits of a value, the lowest first."""
        self._bits += [(value >> n) & 1 for n in range(count)]

    def finish(self) -> bytes:
        return bytes(
            sum(bit << n for n, bit in enumerate(self._bits[at : at + 8]))
            for at in range(0, len(self._bits), 8)
        )


# Gaps and the range coder, section "Sparse"


def _gaps(steps: Sequence[int]) -> list[int]:
    """How many elements lie between one that changed and the next, in one class."""
    ranks = [rank for rank, step in enumerate(steps) if step]
    return [rank - before - 1 for before, rank in zip([-1, *ranks], ranks, strict=False)]


class _Context:
    """What was seen of one bit."""

    def __init__(self) -> None:
        self.zero = 32768
        self.seen = 0


class _RangeWriter:
    """The other end of the page's reader of bits.

    Whatever number the reader starts from, its `code` is that number minus `low`, in the unit that
    its shifts have reached. So any number from `low` on and below `low + range` has these bits.
    """

    def __init__(self) -> None:
        self._low = 0
        self._range = 2**32 - 1
        self._bytes = 4

    def even(self, bit: int) -> None:
        self._range >>= 1
        if bit:
            self._low += self._range
        self._shift()

    def learnt(self, bit: int, context: _Context) -> None:
        bound = (self._range >> 12) * (context.zero >> 4)
        rate = 655360 // (10 * context.seen + 16)
        if bit:
            self._low += bound
            self._range -= bound
            context.zero -= context.zero * rate >> 16
        else:
            self._range = bound
            context.zero += (65536 - context.zero) * rate >> 16
        if context.seen < 62:
            context.seen += 1
        self._shift()

    def _shift(self) -> None:
        while self._range < 2**24:
            self._range <<= 8
            self._low <<= 8
            self._bytes += 1

    def finish(self) -> bytes:
        """The number with the most zero bytes at its end, without those."""
        for zeros in range(self._bytes, -1, -1):
            number = -(-self._low >> 8 * zeros)
            if number << 8 * zeros < self._low + self._range:
                return number.to_bytes(self._bytes - zeros, "big")
        raise AssertionError("the range is never empty")


def _coded_steps(steps: Sequence[int], exponents: Sequence[int]) -> bytes:
    writer = _RangeWriter()
    first, later, second = ([_Context() for _ in range(320)] for _ in range(3))
    for step, e in zip(steps, exponents, strict=True):
        if not step:
            continue
        size = abs(step)
        log = size.bit_length() - 1
        for n in range(log + 1):
            writer.learnt(int(n < log), first[e] if n == 0 else later[e + n])
        if log >= 1:
            writer.learnt((size >> (log - 1)) & 1, second[e + log])
        for n in range(log - 2, -1, -1):
            writer.even((size >> n) & 1)
        writer.even(int(step < 0))
    return writer.finish()


# Groups and tokens, section "Dense"


def _coded_groups(groups: Sequence[int], bits: int) -> bytes:
    writer = _RangeWriter()
    contexts: dict[tuple[int, str], _Context] = {}
    for before, group in zip([0, *groups], groups, strict=False):
        text = f"{group:0{bits}b}"
        for n, bit in enumerate(text):
            writer.learnt(int(bit), contexts.setdefault((before, text[:n]), _Context()))
    return writer.finish()


class _Token(NamedTuple):
    number: int
    plain: int
    width: int


def _token(z: int) -> _Token:
    if z < 16:
        return _Token(z, 0, 0)
    log = z.bit_length() - 1
    return _Token(4 * log + ((z >> (log - 2)) & 3), z & ((1 << (log - 2)) - 1), log - 2)


class _Chances(NamedTuple):
    """The chance and the `start` of each token of a class."""

    chances: list[int]
    starts: list[int]


def _chances(tokens: Sequence[int]) -> _Chances:
    """Chances that add up to 4,096, at least 1 for each token that occurs."""
    if not tokens:
        return _Chances([4096], [0])
    counts = Counter(tokens)
    chances = [0] * (max(counts) + 1)
    for token, count in counts.items():
        chances[token] = 1 + count * (4096 - len(counts)) // len(tokens)
    chances[counts.most_common(1)[0][0]] += 4096 - sum(chances)
    return _Chances(chances, [0, *accumulate(chances)])


def _segment_words(tokens: Sequence[int], chances: Sequence[_Chances]) -> list[int]:
    """The words of a segment, made from its last element to its first."""
    state, words = 2**15, []
    for token, (row, starts) in zip(reversed(tokens), reversed(chances), strict=True):
        chance, start = row[token], starts[token]
        if state >= chance << 19:  # reading would not bring the state below 2^31 again
            words.append(state & 65535)
            state >>= 16
        state = (state // chance << 12) + state % chance + start
    return [state >> 16, state & 65535, *reversed(words)]
