"""The `derived` encoding: a chunk that is a function of other chunks, its *roots*.

*Slices* of the roots, end to end, are the operands of a rule: either they are its result, or it is
calculated from them. The result is the chunk, or the base of a difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.format.arithmetic import Arithmetic
from casweights.format.codecs import decode, is_difference
from casweights.format.patterns import join_patterns, join_slices, split_patterns, split_slices
from casweights.kernels.reference.bits import PayloadReader
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.format.codecs import Encoded
    from casweights.format.patterns import Slice
    from casweights.system.buffers import Buffer

_SLICES, _ARITHMETIC, _PATTERNS = range(3)  # the rules
_EXACT = 255  # in the place of an encoding: there is no difference


class Derived(NamedTuple):
    """The content of a payload.

    Attributes:
        slices: The slices, which cover the operands of the rule.
        difference: The difference from what the rule makes; None if that is the chunk.
        rule: How the chunk is calculated from the slices; None if it consists of them.
    """

    slices: Sequence[Slice]
    difference: tuple[int, Buffer] | None
    rule: Arithmetic | None = None


def join(
    slices: Sequence[Slice], difference: Encoded | None, rule: Arithmetic | None = None
) -> bytes:
    """Return the payload with these slices, and a difference from what they make by a rule."""
    head = bytes([_SLICES]) if rule is None else bytes([_ARITHMETIC]) + rule.join()
    head += join_slices(slices)
    if rule is None:
        head = min(head, bytes([_PATTERNS]) + join_patterns(slices), key=len)
    encoding, payload = (_EXACT, b"") if difference is None else difference
    return b"".join((head, bytes([encoding]), payload))


def split(payload: Buffer, total: int, sizes: Sequence[int]) -> Derived:
    """Return the content of a payload.

    Args:
        payload: What `join` returned.
        total: Bytes of the chunk.
        sizes: Bytes of each root.

    Raises:
        ValueError: The payload is malformed, or does not fit the chunk or the roots.
    """
    reader = PayloadReader(payload)
    if (number := reader.byte()) not in (_SLICES, _ARITHMETIC, _PATTERNS):
        raise ValueError(f"its rule {number} is unknown: a newer casweights may know it")
    rule = Arithmetic.split(reader) if number == _ARITHMETIC else None
    slices = (split_patterns if number == _PATTERNS else split_slices)(reader, sizes)
    if sum(one.nbytes for one in slices) != (total if rule is None else rule.operand_bytes(total)):
        raise ValueError("its slices do not add up")
    if len({one.root for one in slices} - {None}) != len(sizes):
        raise ValueError("it has a root of which it uses nothing")
    encoding, stored = reader.byte(), reader.take(reader.left)
    if encoding == _EXACT and not stored:
        return Derived(slices, None, rule)
    if not is_difference(encoding):
        raise ValueError(f"its difference has the encoding {encoding}")
    return Derived(slices, (encoding, stored), rule)


def lay(slices: Sequence[Slice], number: int | None, root: Buffer, out: memoryview) -> None:
    """Put the slices of one root in their places.

    Args:
        slices: All slices.
        number: Number of the root; None for zeros.
        root: Its bytes; anything for zeros.
        out: Receives the slices of all roots, end to end.
    """
    at, data = 0, memoryview(root)
    for its_root, offset, nbytes in slices:
        if its_root == number:
            out[at : at + nbytes] = (
                bytes(nbytes) if number is None else data[offset : offset + nbytes]
            )
        at += nbytes


def decode_derived(payload: Buffer, roots: Sequence[Buffer], out: memoryview) -> None:
    """Decode a derived frame's stored bytes into `out`.

    Args:
        payload: The stored bytes.
        roots: The bytes of its roots.
        out: Receives the chunk; its length is the chunk's raw size.

    Raises:
        ValueError: The payload does not decode to exactly `len(out)` bytes.
    """
    content = split(payload, len(out), [len(root) for root in roots])
    put(content.slices, roots, content.rule, out)
    if content.difference is not None:
        decode(*content.difference, out)


def put(
    slices: Sequence[Slice], roots: Sequence[Buffer], rule: Arithmetic | None, out: memoryview
) -> None:
    """Put what a rule makes of slices into `out`, which it fills."""
    operands = out if rule is None else uninitialized(rule.operand_bytes(len(out)))
    for number, root in [(None, b""), *enumerate(roots)]:
        lay(slices, number, root, operands)
    if rule is not None:
        rule.apply(operands, out)
