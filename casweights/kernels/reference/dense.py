"""The `dense` encoding: a step for every element, as an entropy-coded token and plain bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.kernels.reference.bits import (
    PayloadReader,
    pack_fields,
    unpack_fields,
    varint,
)
from casweights.kernels.reference.classes import (
    EXPONENTS,
    choose_classes,
    read_classes,
)
from casweights.kernels.reference.differences import (
    exponents,
    move,
    open_pair,
    open_payload,
    steps_between,
    unzigzag,
    zigzag,
)
from casweights.kernels.reference.groups import (
    BLOCK,
    MAX_GROUPS,
    block_count,
    choose_groups,
    decode_groups,
    encode_groups,
)
from casweights.kernels.reference.rans import (
    CHANCES,
    SEGMENT,
    SymbolTable,
    as_columns,
    decode_segments,
    encode_segments,
    from_columns,
    scale_counts,
)
from casweights.kernels.reference.trend import Trend, choose_trend, read_trend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.kernels.kinds import ElementKind
    from casweights.system.buffers import Buffer

_MAX_CLASSES = 16
_CLASS_BITS = 200  # bits that a class costs, chances included
_BATCH = 128 * SEGMENT  # elements processed at a time, to bound memory


class _Tokens:
    """The tokens of differences below 2^(8 * width).

    Differences below 16 are their own tokens. Of larger ones, the token represents the position of
    the highest bit and the two bits below it; the other bits are plain bits.

    Attributes:
        least: The smallest difference of each token.
        plain: Number of plain bits of each token.
    """

    def __init__(self, width: int) -> None:
        small = [(difference, 0) for difference in range(16)]
        large = [((4 | top) << n, n) for n in range(2, 8 * width - 2) for top in range(4)]
        least, plain = zip(*small, *large, strict=True)
        self.least = np.array(least, f"<u{width}")
        self.plain = np.array(plain, np.uint8)

    def __len__(self) -> int:
        return len(self.least)

    def of(self, difference: np.ndarray) -> np.ndarray:
        """Return the token of each difference."""
        return np.searchsorted(self.least, difference, "right") - 1


class _Model(NamedTuple):
    """The chances of tokens in each class of elements, which are those of each group in turn.

    A symbol of `table` is a class times the number of tokens, plus a token.

    Attributes:
        rows: The class of each exponent, an array for each group.
    """

    kind: ElementKind
    tokens: _Tokens
    trend: Trend
    rows: np.ndarray
    table: SymbolTable

    def class_of(self, base: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Return the class of each element of a base; `groups` has the group of each block."""
        own = np.repeat(groups, BLOCK)[: len(base)]
        numbers: np.ndarray = self.rows[own, exponents(base, self.kind)]
        return numbers


def dense_encode(base: Buffer, new: Buffer, kind: int, /) -> bytes:
    """Encode a chunk as its difference from a base in which many elements differ.

    Args:
        base: The base's bytes.
        new: The chunk's bytes, of the same length.
        kind: An `ElementKind`.

    Raises:
        ValueError: The lengths differ, or the kind is unknown or does not fit them.
    """
    known, old, bits = open_pair(base, new, kind)
    head, of, model = _choose_model(old, bits, known)
    batches = [_encode_batch(old[b], bits[b], of[_blocks(b)], model) for b in _batches(len(old))]
    columns = zip(*batches, strict=True)  # the payload has all sizes, all words, all plain bits
    return bytes([known]) + head + b"".join(part for column in columns for part in column)


def _choose_model(
    base: np.ndarray, bits: np.ndarray, kind: ElementKind
) -> tuple[bytes, np.ndarray, _Model]:
    """Return a model as payloads store it, the group of each block, and the model."""
    tokens = _Tokens(kind.width)
    shape = EXPONENTS, len(tokens)
    trend = choose_trend(base, bits, kind, _counter(kind, tokens))
    cells = np.concatenate(
        [np.zeros(0, np.uint16)]
        + [
            _cells(base[b], _surprises(base[b], bits[b], trend), kind, tokens)
            for b in _batches(len(base))
        ]
    )
    of = choose_groups(cells, shape)
    groups = int(of.max(initial=0)) + 1
    head = trend.encode() + bytes([groups])
    rows: list[np.ndarray] = []
    chances: list[np.ndarray] = []
    for group in range(groups):
        own = cells[np.repeat(of == group, BLOCK)[: len(cells)]]
        counts = np.bincount(own, minlength=shape[0] * shape[1]).reshape(shape)
        classes, counted = choose_classes(counts, _MAX_CLASSES, _CLASS_BITS)
        rows.append(classes.of.astype(np.intp) + len(chances))
        chances += [scale_counts(row) for row in counted]
        head += classes.encode() + b"".join(map(_encode_chances, chances[-len(counted) :]))
    if groups > 1:
        coded = encode_groups(of, groups)
        head += varint(len(coded)) + coded
    return head, of, _Model(kind, tokens, trend, np.array(rows), SymbolTable.of(chances))


def _batches(count: int) -> Iterator[slice]:
    for start in range(0, count, _BATCH):
        yield slice(start, start + _BATCH)


def _blocks(batch: slice) -> slice:
    """Return the blocks of a batch of elements."""
    return slice(batch.start // BLOCK, batch.stop // BLOCK)


def _surprises(base: np.ndarray, bits: np.ndarray, trend: Trend) -> np.ndarray:
    """Return the difference of each element in zigzag, less what is expected."""
    steps = steps_between(base, bits, trend.kind)
    return zigzag(steps - trend.expected(base) if trend.first else steps)


def _cells(
    base: np.ndarray, difference: np.ndarray, kind: ElementKind, tokens: _Tokens
) -> np.ndarray:
    """Return each element's exponent and token in one number."""
    cells: np.ndarray = exponents(base, kind).astype(np.uint16) * np.uint16(len(tokens))
    cells += tokens.of(difference).astype(np.uint16)
    return cells


def _counter(
    kind: ElementKind, tokens: _Tokens
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]]:
    """Return a function that counts the cells and plain bits of elements with these steps."""

    def count(base: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, int]:
        cells = _cells(base, zigzag(steps), kind, tokens)
        counts = np.bincount(cells, minlength=EXPONENTS * len(tokens))
        plain = int(tokens.plain[cells % len(tokens)].sum())
        return counts.reshape(EXPONENTS, len(tokens)), plain

    return count


def _encode_chances(chances: np.ndarray) -> bytes:
    kept = np.trim_zeros(chances, "b").tolist()
    return bytes([len(kept) - 1]) + b"".join(map(varint, kept))


def _encode_batch(
    base: np.ndarray, bits: np.ndarray, groups: np.ndarray, model: _Model
) -> tuple[bytes, bytes, bytes]:
    """Return the sizes, words and plain bits of some segments."""
    tokens, table = model.tokens, model.table
    difference = _surprises(base, bits, model.trend)
    token = tokens.of(difference)
    symbols = as_columns(model.class_of(base, groups) * len(tokens) + token, table.certain)
    words, word_counts = encode_segments(symbols, table)
    plain, plain_sizes = _encode_plain(difference - tokens.least[token], tokens.plain[token])
    sizes = [varint(n) for pair in zip(word_counts, plain_sizes, strict=True) for n in pair]
    return b"".join(sizes), words, plain


def _encode_plain(values: np.ndarray, sizes: np.ndarray) -> tuple[bytes, list[int]]:
    """Return the plain bits of all segments, and the number of bytes of each segment."""
    starts, nbytes = _plain_layout(sizes)
    some = np.flatnonzero(sizes)
    packed = pack_fields(values[some].astype(np.uint64), starts[some], int(nbytes.sum()))
    return packed, nbytes.tolist()


def _plain_layout(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay out plain bits, so that each segment begins with a new byte.

    Args:
        sizes: Number of plain bits of each element.

    Returns:
        The bit at which each element's plain bits begin, and the bytes of each segment.
    """
    segments = np.arange(0, len(sizes), SEGMENT)
    nbytes = (np.add.reduceat(sizes, segments, dtype=np.int64) + 7) // 8
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    shift = 8 * (np.cumsum(nbytes) - nbytes) - starts[segments]
    return starts + np.repeat(shift, SEGMENT)[: len(starts)], nbytes


def dense_decode(payload: Buffer, base_to_new: Buffer, /) -> None:
    """Decode the result of `dense_encode` in place.

    Args:
        payload: The encoded difference.
        base_to_new: The base; the function turns it into the new chunk.

    Raises:
        TypeError: `base_to_new` is read-only.
        ValueError: The payload is malformed; the content of `base_to_new` is then undefined.
    """
    reader, kind, elements = open_payload(payload, base_to_new)
    trend, of, model = _read_model(reader, kind, len(elements))
    tokens = model.tokens
    word_counts, plain_sizes = _read_sizes(reader, -(-len(elements) // SEGMENT))
    words = PayloadReader(reader.take(2 * int(word_counts.sum())))
    plain = PayloadReader(reader.take(int(plain_sizes.sum())))
    for batch in _batches(len(elements)):
        own, base = slice(batch.start // SEGMENT, batch.stop // SEGMENT), elements[batch]
        token = _decode_tokens(base, of[_blocks(batch)], words, word_counts[own], model)
        difference = tokens.least[token]
        difference |= _decode_plain(plain, plain_sizes[own], tokens.plain[token])
        steps = unzigzag(difference)
        elements[batch] = move(base, steps + trend.expected(base) if trend.first else steps, kind)


def _read_model(
    reader: PayloadReader, kind: ElementKind, count: int
) -> tuple[Trend, np.ndarray, _Model]:
    """Read what precedes the segments: the trend, the group of each block, and the chances."""
    tokens = _Tokens(kind.width)
    trend = read_trend(reader, kind)
    groups = reader.byte()
    if not 1 <= groups <= MAX_GROUPS:
        raise ValueError("its number of groups is not valid")
    rows: list[np.ndarray] = []
    chances: list[np.ndarray] = []
    for _ in range(groups):
        classes = read_classes(reader, kind, _MAX_CLASSES)
        rows.append(classes.of.astype(np.intp) + len(chances))
        chances += [_read_chances(reader, len(tokens)) for _ in classes.first]
    of = np.zeros(block_count(count), np.uint8)
    if groups > 1:
        data = reader.take(reader.varint(reader.left))
        of = decode_groups(data, len(of), groups)
    return trend, of, _Model(kind, tokens, trend, np.array(rows), SymbolTable.of(chances))


def _read_chances(reader: PayloadReader, tokens: int) -> np.ndarray:
    """Read the chances of a class, and return one for each of its `tokens` tokens."""
    count = reader.byte() + 1
    if count > tokens:
        raise ValueError("it has too many tokens")
    chances = np.zeros(tokens, np.int64)
    for token in range(count):
        chances[token] = reader.varint(CHANCES)
    if chances.sum() != CHANCES:
        raise ValueError("its chances do not add up")
    return chances


def _read_sizes(reader: PayloadReader, segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the number of words and of plain bytes of each segment."""
    limit = reader.left
    sizes = [reader.varint(limit) for _ in range(2 * segments)]
    words, plain = np.array(sizes, np.int64).reshape(segments, 2).T
    if (words < 2).any() or 2 * words.sum() + plain.sum() != reader.left:
        raise ValueError("its sizes do not add up")
    return words, plain


def _decode_tokens(
    base: np.ndarray,
    groups: np.ndarray,
    words: PayloadReader,
    counts: np.ndarray,
    model: _Model,
) -> np.ndarray:
    """Return the token of each element of a batch; `counts` has the words of each segment."""
    columns = as_columns(model.class_of(base, groups), int(model.rows.max()) + 1)
    own = words.take(2 * int(counts.sum()))
    symbols = decode_segments(columns, own, counts, model.table)
    return from_columns(symbols, len(base)) % len(model.tokens)


def _decode_plain(plain: PayloadReader, nbytes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Read the plain bits of each element as a number; the inverse of `_encode_plain`."""
    starts, expected = _plain_layout(sizes)
    if (nbytes != expected).any():
        raise ValueError("its streams do not fit its elements")
    return unpack_fields(plain.take(int(nbytes.sum())), starts, sizes)
