"""Decode chunks that are stored as differences, by docs/format.md alone. Part of `reader`.

It is plain Python, meant to be read together with the page: slow, but a proof that the page is
complete.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

SEGMENT = 16_384
BLOCK = 128
CHANCES = 4_096
LOWEST = 1 << 15
FULL = 1 << 32


class Kind(NamedTuple):
    """A kind of elements: its row of the page's table, and its letter for `struct`."""

    bits: int
    mantissa: int
    highest_exponent: int
    letter: str

    def exponent(self, element: int) -> int:
        if not self.mantissa:
            return 0
        exponent = (element & ~(1 << (self.bits - 1))) >> self.mantissa
        return min(max(exponent - 896, 0), 255) if self.bits == 64 else exponent

    def place(self, element: int) -> int:
        """Return the place of a bit pattern in the order of the numbers."""
        if not self.mantissa:
            return element
        highest = 1 << (self.bits - 1)
        return element ^ (2 * highest - 1) if element & highest else element | highest

    def element(self, place: int) -> int:
        """Return the bit pattern at a place."""
        if not self.mantissa:
            return place
        highest = 1 << (self.bits - 1)
        return place ^ highest if place & highest else place ^ (2 * highest - 1)

    def move(self, element: int, step: int) -> int:
        return self.element((self.place(element) + step) % (1 << self.bits))

    def pack(self, elements: list[int]) -> bytes:
        return struct.pack(f"<{len(elements)}{self.letter}", *elements)


KINDS = (
    *(Kind(8, 0, 0, "B"), Kind(16, 0, 0, "H"), Kind(32, 0, 0, "I"), Kind(64, 0, 0, "Q")),
    *(Kind(8, 2, 31, "B"), Kind(8, 3, 15, "B"), Kind(16, 10, 31, "H"), Kind(16, 7, 255, "H")),
    *(Kind(32, 23, 255, "I"), Kind(64, 52, 255, "Q"), Kind(16, 8, 127, "H")),
)


class DifferenceError(ValueError):
    """The payload breaks a rule of docs/format.md."""


def need(condition: bool, problem: str) -> None:
    if not condition:
        raise DifferenceError(problem)


class Bytes:
    """Reads a payload from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        need(count <= self.left, "a payload that ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise DifferenceError("a number that is too long")


class Bits:
    """Reads bits, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}"[::-1] for byte in data)
        self._at = 0

    def take(self, count: int) -> int:
        bits = self._bits[self._at : self._at + count]
        need(len(bits) == count, "bits that end too early")
        self._at += count
        return int("0" + bits[::-1], 2)

    def zeros(self) -> int:
        """Read up to and including the next 1 bit, and return the number of zeros before it."""
        start, end = self._at, self._bits.find("1", self._at)
        need(end >= 0, "bits that end too early")
        self._at = end + 1
        return end - start

    def rest(self) -> str:
        return self._bits[self._at :]


def decode_sparse(stored: bytes, base: bytes) -> bytes:
    payload = Bytes(stored)
    kind, elements = read_kind(payload, base)
    class_of = read_classes(payload, kind, 8)
    exponents = [kind.exponent(element) for element in elements]
    changed = read_gaps(payload, [class_of[exponent] for exponent in exponents], class_of[-1] + 1)
    steps = read_steps(payload, kind, [exponents[n] for n in changed])
    for n, step in zip(changed, steps, strict=True):
        elements[n] = kind.move(elements[n], step)
    return kind.pack(elements)


def decode_dense(stored: bytes, base: bytes) -> bytes:
    payload = Bytes(stored)
    kind, elements = read_kind(payload, base)
    expected = read_expected(payload, kind)
    tables = read_tables(payload, kind)
    groups = read_groups(payload, -(-len(elements) // BLOCK), len(tables))
    starts = range(0, len(elements), SEGMENT)
    sizes = [(payload.varint(), payload.varint()) for _ in starts]
    words = [struct.unpack(f"<{count}H", payload.take(2 * count)) for count, _ in sizes]
    plain = [Bits(payload.take(count)) for _, count in sizes]
    need(payload.left == 0, "a payload that is longer than its streams")
    for start, its_words, its_plain in zip(starts, words, plain, strict=True):
        own = elements[start : start + SEGMENT]
        its_tables = [
            tables[groups[(start + n) // BLOCK]][kind.exponent(element)]
            for n, element in enumerate(own)
        ]
        steps = read_segment(its_words, its_plain, its_tables)
        elements[start : start + SEGMENT] = [
            kind.move(element, step + expected_step(kind, expected, element))
            for element, step in zip(own, steps, strict=True)
        ]
    return kind.pack(elements)


def read_expected(payload: Bytes, kind: Kind) -> list[int]:
    """Return how much elements grow, by the first bits of their mantissa; one 0 for none."""
    bits = payload.byte()
    if not bits:
        return [0]
    need(bits <= 8 and bits < kind.mantissa, "too many bits of the mantissa")
    growth = [0]
    for _ in range(1 << bits):
        zigzag = payload.varint()
        need(zigzag <= 1 << 33, "an expected step out of range")
        growth.append(growth[-1] + (-(zigzag + 1) // 2 if zigzag % 2 else zigzag // 2))
        need(-(1 << 31) <= growth[-1] < 1 << 31, "an expected step out of range")
    return growth[1:]


def expected_step(kind: Kind, growth: list[int], element: int) -> int:
    if len(growth) == 1:
        return growth[0]
    mantissa = element % (1 << kind.mantissa)
    grows = growth[mantissa * len(growth) >> kind.mantissa]
    return -grows if element >> (kind.bits - 1) else grows


def read_tables(payload: Bytes, kind: Kind) -> list[list["Table"]]:
    """Return the table of each exponent, for each group."""
    count = payload.byte()
    need(1 <= count <= 4, "a wrong number of groups")
    groups = []
    for _ in range(count):
        class_of = read_classes(payload, kind, 16)
        tokens = 16 + 4 * (kind.bits - 4)
        tables = [read_chances(payload, tokens) for _ in range(class_of[-1] + 1)]
        groups.append([tables[c] for c in class_of])
    return groups


def read_groups(payload: Bytes, blocks: int, count: int) -> list[int]:
    """Return the group of each block."""
    if count == 1:
        return [0] * blocks
    data = Bytes(payload.take(payload.varint()))
    coder = RangeCoder(data)
    contexts = [{begun: Context() for begun in ("", "0", "1")} for _ in range(count)]
    groups: list[int] = []
    for _ in range(blocks):
        bits = ""
        for _ in range(1 if count == 2 else 2):
            bits += str(coder.learnt(contexts[groups[-1] if groups else 0][bits]))
        groups.append(int(bits, 2))
        need(groups[-1] < count, "a group that does not exist")
    need(data.left == 0, "groups with bytes left over")
    return groups


def read_kind(payload: Bytes, base: bytes) -> tuple[Kind, list[int]]:
    """Return the kind of elements, and the elements of the base."""
    code = payload.byte()
    need(code < len(KINDS), "an unknown kind of elements")
    kind = KINDS[code]
    count, rest = divmod(len(base), kind.bits // 8)
    need(rest == 0, "elements that do not fill the chunk")
    return kind, list(struct.unpack(f"<{count}{kind.letter}", base))


def read_classes(payload: Bytes, kind: Kind, limit: int) -> list[int]:
    """Return the class of each exponent."""
    count = payload.byte()
    need(1 <= count <= limit, "a wrong number of classes")
    first = [0, *payload.take(count - 1), kind.highest_exponent + 1]
    need(all(a < b for a, b in pairwise(first)), "classes out of order")
    return [c for c in range(count) for _ in range(first[c], first[c + 1])]


def read_gaps(payload: Bytes, classes: list[int], class_count: int) -> list[int]:
    """Return the positions of the changed elements, in the order of the chunk.

    `classes` contains the class of each element.
    """
    counts, parameters = [], []
    for _ in range(class_count):
        counts.append(payload.varint())
        parameters.append(payload.byte() if counts[-1] else 0)
    data = payload.take(payload.varint())
    need(max(parameters) <= 26, "a parameter above 26")
    need(sum(counts) <= min(len(classes), 8 * len(data)), "more changes than there can be")
    gaps = Bits(data)
    changed = []
    for c in range(class_count):
        members = [n for n, own in enumerate(classes) if own == c]
        rank = 0
        for _ in range(counts[c]):
            rank += gaps.zeros() << parameters[c] | gaps.take(parameters[c])
            need(rank < len(members), "a change after the last element of its class")
            changed.append(members[rank])
            rank += 1
    need(len(gaps.rest()) < 8 and "1" not in gaps.rest(), "bits that are left over")
    return sorted(changed)


class Context:
    """The learnt probability of a 0."""

    def __init__(self) -> None:
        self.zero = 32_768
        self._seen = 0

    def learn(self, bit: int) -> None:
        rate = 655_360 // (10 * self._seen + 16)
        if bit:
            self.zero -= self.zero * rate >> 16
        else:
            self.zero += (65_536 - self.zero) * rate >> 16
        self._seen = min(self._seen + 1, 62)


class RangeCoder:
    """Reads bits of the range coder; bytes past the end are 0."""

    def __init__(self, payload: Bytes) -> None:
        self._payload = payload
        self._range = FULL - 1
        self._code = 0
        for _ in range(4):
            self._code = self._code << 8 | self._byte()

    def _byte(self) -> int:
        return self._payload.byte() if self._payload.left else 0

    def _refill(self) -> None:
        while self._range < 1 << 24:
            self._range <<= 8
            self._code = (self._code << 8 | self._byte()) % FULL

    def learnt(self, context: Context) -> int:
        bound = (self._range >> 12) * (context.zero >> 4)
        bit = int(self._code >= bound)
        if bit:
            self._code -= bound
            self._range -= bound
        else:
            self._range = bound
        context.learn(bit)
        self._refill()
        return bit

    def even(self, count: int) -> int:
        bits = 0
        for _ in range(count):
            self._range >>= 1
            bit = int(self._code >= self._range)
            self._code -= bit * self._range
            bits = bits << 1 | bit
            self._refill()
        return bits


def read_steps(payload: Bytes, kind: Kind, exponents: list[int]) -> list[int]:
    """Return the steps of elements whose bases have these exponents."""
    coder = RangeCoder(payload)
    first, later, second = ([Context() for _ in range(320)] for _ in range(3))
    steps = []
    for exponent in exponents:
        log = 0
        while coder.learnt((later if log else first)[exponent + log]):
            log += 1
            need(log < kind.bits, "a step out of range")
        size = 1
        if log:
            size = 2 | coder.learnt(second[exponent + log])
            size = size << (log - 1) | coder.even(log - 1)
        step = -size if coder.even(1) else size
        need(-(1 << (kind.bits - 1)) <= step < 1 << (kind.bits - 1), "a step out of range")
        steps.append(step)
    need(payload.left == 0, "a payload that is longer than its steps")
    return steps


Table = list[tuple[int, int, int]]  # for each of 4,096 slots: token, its chance, place in its range


def read_chances(payload: Bytes, limit: int) -> Table:
    count = payload.byte() + 1
    need(count <= limit, "too many tokens")
    table: Table = []
    for token in range(count):
        chance = payload.varint()
        need(len(table) + chance <= CHANCES, "chances that do not add up")
        table += [(token, chance, place) for place in range(chance)]
    need(len(table) == CHANCES, "chances that do not add up")
    return table


def read_segment(words: Sequence[int], plain: Bits, tables: list[Table]) -> list[int]:
    """Return the steps of a segment; `tables` contains a table for each element."""
    need(len(words) >= 2, "a segment without a state")
    state, at = words[0] << 16 | words[1], 2
    need(LOWEST <= state < LOWEST << 16, "a state out of range")
    steps = []
    for table in tables:
        token, chance, place = table[state % CHANCES]
        state = chance * (state // CHANCES) + place
        if state < LOWEST:
            need(at < len(words), "words that end too early")
            state, at = state << 16 | words[at], at + 1
        zigzag = token
        if token >= 16:
            more = token // 4 - 2
            zigzag = (4 + token % 4) << more | plain.take(more)
        steps.append(-(zigzag + 1) // 2 if zigzag % 2 else zigzag // 2)
    is_used_up = state == LOWEST and at == len(words) and len(plain.rest()) < 8
    need(is_used_up, "a segment that does not end with its elements")
    return steps
