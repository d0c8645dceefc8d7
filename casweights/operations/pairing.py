"""Pair the tensors of two versions whose names, files or order differ.

Names and shapes decide. Where they do not suffice, a pair is a guess, which the caller confirms by
content.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

_NUMBERS = re.compile(r"[0-9]+")
_MAX_COMPARED = 32  # names that are compared letter by letter; longer lists are paired in order


class Member(NamedTuple):
    """A tensor of a version.

    Attributes:
        file: Path of its file.
        name: Its name.
        form: What a counterpart shares with it, such as its dtype and shape.
        content: Equal for two tensors only if they have the same bytes; None if it is not known.
    """

    file: str
    name: str
    form: Hashable
    content: Hashable | None = None


class Pair(NamedTuple):
    """A tensor, and its counterpart in the other version.

    Attributes:
        new: Position of the tensor in the list of new ones.
        old: Position of its counterpart in the list of old ones.
        is_guess: Whether only shapes and the likeness of names speak for it.
    """

    new: int
    old: int
    is_guess: bool


def pair(old: Sequence[Member], new: Sequence[Member]) -> list[Pair]:
    """Pair tensors, each with at most one of the other version.

    The strongest evidence comes first: the same name and content, the same name, the same content,
    and then the same form and the same numbers in the name, as in ``h.3.attn`` and
    ``layers.3.attention``. Among several candidates, the one with the most similar name wins.

    Args:
        old: Tensors of the old version.
        new: Tensors of the new version.

    Returns:
        The pairs, in the order of `new`.
    """
    free_old, free_new = dict(enumerate(old)), dict(enumerate(new))
    pairs: list[Pair] = []
    for key, is_guess in _EVIDENCE:
        for n, o in _matches(free_old, free_new, key):
            del free_new[n], free_old[o]
            pairs.append(Pair(n, o, is_guess))
    return sorted(pairs)


def is_prefixed(name: str, other: str) -> bool:
    """Whether two names are equal but for a prefix, as those that a wrapper adds."""
    one, long = sorted((name, other), key=len)
    return long == one or long.endswith(f".{one}")


def is_numbered(name: str) -> bool:
    """Whether a name has a number, as those of layers have."""
    return _NUMBERS.search(name) is not None


def _numbers(member: Member) -> tuple[int, ...]:
    return tuple(map(int, _NUMBERS.findall(member.name)))


def _known(member: Member, *more: Hashable) -> Hashable | None:
    """Return a key of a tensor's content; None if the content is not known."""
    return None if member.content is None else (member.content, *more)


_EVIDENCE: list[tuple[Callable[[Member], Hashable | None], bool]] = [
    (lambda member: _known(member, member.name), False),
    (lambda member: (member.form, member.name), False),
    (lambda member: _known(member, _numbers(member)), False),
    (_known, False),
    (lambda member: (member.form, _numbers(member)), True),
    (lambda member: member.form, True),
]


def _matches(
    old: dict[int, Member], new: dict[int, Member], key: Callable[[Member], Hashable | None]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of a new and an old tensor with the same key, which is not None."""
    olds = _groups(old, key)
    for value, wanted in _groups(new, key).items():
        if value in olds:
            yield from _most_similar(old, olds[value], new, wanted)


def _groups(
    members: dict[int, Member], key: Callable[[Member], Hashable | None]
) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for number, member in members.items():
        if (value := key(member)) is not None:
            groups.setdefault(value, []).append(number)
    return groups


def _most_similar(
    old: dict[int, Member], olds: list[int], new: dict[int, Member], news: list[int]
) -> list[tuple[int, int]]:
    """Return pairs of the most similar names and files; of long lists, pairs in natural order."""
    if len(olds) == len(news) == 1:
        return [(news[0], olds[0])]
    if max(len(olds), len(news)) > _MAX_COMPARED:
        if len(olds) != len(news):
            return []
        return list(zip(_in_order(new, news), _in_order(old, olds), strict=True))
    found = sorted(
        (-_likeness(new[n], old[o]), position, n, o)
        for n in news
        for position, o in enumerate(olds)
    )
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, n, o in found:
        if n not in pairs and o not in taken:
            pairs[n] = o
            taken.add(o)
    return list(pairs.items())


def _likeness(one: Member, other: Member) -> float:
    """Return how similar the names and files of two tensors are, from 0 to 2."""
    texts = ((one.name, other.name), (one.file, other.file))
    return sum(1.0 if a == b else SequenceMatcher(None, a, b, False).ratio() for a, b in texts)


def _in_order(members: dict[int, Member], numbers: Iterable[int]) -> list[int]:
    """Return numbers of tensors in the order of their names, in which 10 follows 9."""
    return sorted(numbers, key=lambda n: (_natural(members[n].file), _natural(members[n].name)))


def _natural(text: str) -> list[tuple[str, int]]:
    """Return a sort key that compares the numbers in a text as numbers."""
    words, numbers = _NUMBERS.split(text), [*map(int, _NUMBERS.findall(text)), -1]
    return list(zip(words, numbers, strict=True))
